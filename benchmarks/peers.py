"""What users would run instead on the same weights: transformers' own ways to decode one prompt at a time.

Needs transformers and torch alone.  Each way is warmed up by a whole answer, because the compiled one compiles then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WAYS: dict[str, dict[str, Any]] = {
    "transformers, eager": {},
    "transformers, static cache and compile": {"cache_implementation": "static"},
    "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
}


def peer_speed(
    folder: Path, prompts: Sequence[Sequence[int]], max_tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Greedy tokens per second by way, prompts one after the other; a way that fails says why instead.

    ``agree`` counts the prompts that a way answers as eager decoding does: where two tokens are nearly tied, kernels
    of other shapes may choose otherwise.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return {name: {"skipped": "transformers is not installed"} for name in WAYS}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.to(device).eval()
    found: dict[str, Any] = {}
    reference: list[list[int]] | None = None
    for name, options in WAYS.items():
        if device.type != "cuda" and "cache_implementation" in options:
            found[name] = {"skipped": "compiling for a CPU takes minutes"}
            continue
        try:
            seconds, answers = _run(model, prompts, max_tokens, device, options)
        except Exception as error:  # the other ways are still of interest
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            continue
        reference = answers if reference is None else reference
        tokens = sum(len(answer) for answer in answers)
        agree = sum(a == b for a, b in zip(answers, reference, strict=True))
        found[name] = {"tokens_per_second": tokens / seconds, "tokens": tokens, "agree": agree, "prompts": len(answers)}
    return found


def _run(
    model: Any, prompts: Sequence[Sequence[int]], max_tokens: int, device: torch.device, options: dict[str, Any]
) -> tuple[float, list[list[int]]]:
    """Seconds for all prompts, and the answers."""

    def answer(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=device)
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, **options
            )
        return made[0, len(prompt) :].tolist()  # type: ignore[no-any-return]

    answer(prompts[0])
    begun = time.perf_counter()
    answers = [answer(prompt) for prompt in prompts]
    return time.perf_counter() - begun, answers
