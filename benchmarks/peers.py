"""What users would run instead on the same weights: transformers' own ways to decode one prompt at a time.

Needs transformers and torch alone.  What is timed is decoding and nothing else:

- Every way answers every prompt with exactly ``max_tokens`` tokens, ends of text being ignored, as the engine is made
  to beside them (suite_speed.py), so that all speeds are of the same work.
- Compiled code is made for one size of static cache.  ``generate`` makes a cache as large as its own prompt needs, so a
  longer prompt than those before compiles again (``_prepare_static_cache`` of transformers 5.17 to 5.23).  Here the
  cache has the final size from the first answer on (``max_cache_len``).  A new cache lies elsewhere in memory, and
  CUDA graphs of the compiled code are recorded again for it; a user who keeps one cache over all prompts is spared
  that, which is a way of its own.
- A way is warmed up by whole answers to the longest and to the first prompt, and what Dynamo compiled while the clock
  ran is told beside the speed (``compiled``): it has to be 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from redraft.benchmarks.peer_draft import assistant
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.drafts.checkpoint import Checkpoint

STATIC, KEPT = "transformers, static cache and compile", "transformers, one static cache and compile"
"""A new cache for every prompt, as ``generate`` makes them, and one that is emptied between them."""
WITH_DRAFT = "transformers, our DFlash draft"
WAYS: dict[str, dict[str, Any]] = {
    "transformers, eager": {},
    STATIC: {"cache_implementation": "static"},
    KEPT: {"cache": "kept"},
    "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
}
LEAST_SECONDS = 20.0
"""A way is not begun with less of the suite's time left; compiling takes as long."""


def peer_speed(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    draft: Checkpoint | None = None,
    fits: Callable[[float], bool] = always,
) -> dict[str, Any]:
    """Greedy tokens per second by way, prompts one after the other; a way that fails says why instead.

    ``draft``: of DFlash, which transformers decodes with as well, where it can.  ``fits``: whether so many seconds are
    left; a way for which they are not is skipped.  ``agree`` counts the prompts that a way answers as eager decoding
    does: where two tokens are nearly tied, kernels of other shapes may choose otherwise.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return {name: {"skipped": "transformers is not installed"} for name in WAYS}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None
    found: dict[str, Any] = {}
    reference: list[list[int]] | None = None
    ways = dict(WAYS)
    if draft is not None:
        try:
            ways[WITH_DRAFT] = {"speculation_type": "dflash", "assistant_model": assistant(draft, device, dtype)}
        except Exception as error:  # another version of transformers, or a draft of another kind
            found[WITH_DRAFT] = {"skipped": f"{type(error).__name__}: {error}"[:500]}
    for name, options in ways.items():
        if device.type != "cuda" and name in (STATIC, KEPT):
            found[name] = {"skipped": "compiling for a CPU takes minutes"}
            continue
        if not fits(LEAST_SECONDS):
            found[name] = {"skipped": LEFT_OUT}
            continue
        try:
            seconds, answers, compiled = run_way(model, prompts, max_tokens, device, options)
        except Exception as error:  # the other ways are still of interest
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            continue
        reference = answers if reference is None else reference
        tokens = sum(len(answer) for answer in answers)
        found[name] = {
            "tokens_per_second": tokens / seconds,
            "tokens": tokens,
            "agree": sum(a == b for a, b in zip(answers, reference, strict=True)),
            "prompts": len(answers),
            "compiled": compiled,
        }
    return found


def fastest_compiled(peers: dict[str, Any]) -> float | None:
    """Tokens per second of the faster of the compiled ways, of those of ``peer_speed`` that ran."""
    speeds = [peers.get(name, {}).get("tokens_per_second") for name in (STATIC, KEPT)]
    return max((speed for speed in speeds if speed), default=None)


def run_way(
    model: Any, prompts: Sequence[Sequence[int]], max_tokens: int, device: torch.device, options: dict[str, Any]
) -> tuple[float, list[list[int]], int]:
    """Seconds for all prompts, the answers, and how many graphs Dynamo compiled in that time."""
    given, room = dict(options), max(map(len, prompts)) + max_tokens
    cache: Any = None
    if given.get("cache_implementation") == "static":
        given["max_cache_len"] = room
    if given.pop("cache", None) is not None:
        from transformers import StaticCache

        cache = given["past_key_values"] = StaticCache(config=model.config, max_cache_len=room)

    def answer(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=device)
        if "assistant_model" in given:
            # their candidates are made of positions that they do not make up for every model
            given["position_ids"] = torch.arange(ids.shape[1], device=device).unsqueeze(0)
        with torch.inference_mode():
            if cache is not None:
                cache.reset()
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
                **given,
            )
        return made[0, len(prompt) :].tolist()  # type: ignore[no-any-return]

    for prompt in (max(prompts, key=len), prompts[0]):
        answer(prompt)
    compiled, begun = compiled_graphs(), time.perf_counter()
    answers = [answer(prompt) for prompt in prompts]
    return time.perf_counter() - begun, answers, compiled_graphs() - compiled


def compiled_graphs() -> int:
    """Graphs that Dynamo has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
