"""What users would run instead on the same weights: transformers' own ways to decode one prompt at a time.

Needs transformers and torch alone.  Each way is warmed up by a whole answer, because the compiled one compiles then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from redraft.benchmarks.peer_draft import assistant
from redraft.drafts.checkpoint import Checkpoint

WAYS: dict[str, dict[str, Any]] = {
    "transformers, eager": {},
    "transformers, static cache and compile": {"cache_implementation": "static"},
    "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
}
WITH_DRAFT = "transformers, our DFlash draft"


def peer_speed(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    draft: Checkpoint | None = None,
) -> dict[str, Any]:
    """Greedy tokens per second by way, prompts one after the other; a way that fails says why instead.

    ``draft``: of DFlash, which transformers decodes with as well, where it can.
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
    ways = dict(WAYS)
    if draft is not None:
        try:
            ways[WITH_DRAFT] = {"speculation_type": "dflash", "assistant_model": assistant(draft, device, dtype)}
        except Exception as error:  # another version of transformers, or a draft of another kind
            found[WITH_DRAFT] = {"skipped": f"{type(error).__name__}: {error}"[:500]}
    for name, options in ways.items():
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
        given = {"attention_mask": torch.ones_like(ids), **options}
        if "assistant_model" in options:
            # their candidates are made of positions that they do not make up for every model
            given["position_ids"] = torch.arange(ids.shape[1], device=device).unsqueeze(0)
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, **given)
        return made[0, len(prompt) :].tolist()  # type: ignore[no-any-return]

    answer(prompts[0])
    begun = time.perf_counter()
    answers = [answer(prompt) for prompt in prompts]
    return time.perf_counter() - begun, answers
