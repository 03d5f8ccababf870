"""The GPU suite's stages, each of which checks or measures one thing and returns what it found."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from redraft.benchmarks import op_speed, round_speed, step_speed
from redraft.benchmarks.attention_checks import attention_checks
from redraft.benchmarks.attention_speed import attention_speed
from redraft.benchmarks.dependent_checks import dependent, dependent_checks
from redraft.benchmarks.draft_checks import draft_checks
from redraft.benchmarks.equality_checks import equality_checks
from redraft.benchmarks.equality_run import equality_run
from redraft.benchmarks.kernel_checks import Check, kernel_checks
from redraft.benchmarks.layer_checks import layer_checks
from redraft.benchmarks.peers import peer_speed
from redraft.benchmarks.predict_speed import bound_of_peer
from redraft.benchmarks.product_speed import product_speed, table
from redraft.benchmarks.row_checks import QUICK_SHAPES, SHAPES, layer_row_checks, row_checks
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.benchmarks.suite_context import SLOTS, Suite
from redraft.benchmarks.suite_speed import expected, same_answers, speed
from redraft.drafts.checkpoint import read_draft
from redraft.kernels.attention import block_attention, cpu_attention
from redraft.kernels.dependent_launch import LEAST_CAPABILITY
from redraft.kernels.triton_support import HAS_TRITON, INTERPRETED

Found = dict[str, Any]
CHECK_SECONDS = 2.0
"""A check is not begun with less of the suite's time left; most of it goes into compiling."""


FEW_TOKENS = 64
"""Of answers with drafters that are wrong on purpose; long ones are compared with the draft's own."""


def run_checks(checks: Iterator[Check], fits: Callable[[float], bool] = always) -> Found:
    """Run every check; one that raises has failed, and the others still run.

    ``fits``: whether so many seconds are left; from the first check on that does not, all are left out.
    """
    found = list[Found]()
    for name, check in checks:
        if not fits(CHECK_SECONDS):
            return {"checks": found, "left_out": f"checks from {name} on: {LEFT_OUT}"}
        try:
            problem = check()
        except Exception:
            problem = traceback.format_exc()
        found.append({"name": name, "ok": problem is None, "problem": problem})
        print(
            f"  {'ok  ' if problem is None else 'FAIL'} {name}{'' if problem is None else ': ' + problem}", flush=True
        )
    return {"checks": found}


def kernels(suite: Suite) -> Found:
    """Triton kernels against twins."""
    if not HAS_TRITON:
        return {"skipped": "Triton is not installed"}
    if suite.device.type != "cuda" and not INTERPRETED:
        return {"skipped": "kernels need a CUDA device, or TRITON_INTERPRET=1; on a CPU the twins are what runs"}
    of_sizes = kernel_checks(suite.sizes, suite.device), draft_checks(suite.sizes, suite.device)
    return run_checks(chain(*of_sizes, layer_checks(suite.targets, suite.device)), suite.clock.fits)


def rows(suite: Suite) -> Found:
    """Row invariance, op by op and over whole layers."""
    make_attention = block_attention if suite.device.type == "cuda" else cpu_attention
    ops = row_checks(suite.sizes, suite.device, suite.dtype, QUICK_SHAPES if suite.quick else SHAPES)
    layers = layer_row_checks(suite.targets, suite.device, suite.dtype, make_attention)
    return run_checks(chain(ops, layers), suite.clock.fits)


def attention(suite: Suite) -> Found:
    """Attention's bits in any company, and its share of the copy bandwidth."""
    if not HAS_TRITON or suite.device.type != "cuda":
        return {"skipped": "needs a CUDA device and Triton; the interpreter's products have other bits"}
    dtypes = tuple(dict.fromkeys((suite.dtype, torch.float32)))
    found = run_checks(attention_checks(suite.device, dtypes, suite.quick), suite.clock.fits)
    figures = attention_speed(suite.device, suite.dtype, suite.copy_bytes_per_second, suite.clock.fits)
    return {**found, "figures": figures}


def dependent_launches(suite: Suite) -> Found:
    """Kernels launched before the one before has ended: whether they wait, and what that gains."""
    if suite.device.type != "cuda" or torch.cuda.get_device_capability()[0] < LEAST_CAPABILITY:
        return {"skipped": "needs a CUDA device of capability 9.0 or newer"}
    found = run_checks(dependent_checks(suite.targets, suite.device, suite.dtype), suite.clock.fits)
    with dependent():
        return {**found, "steps": _by_case(suite, step_speed.step_speed, step_speed.CASES[:3])}


def equality(suite: Suite) -> Found:
    """Output with every drafter against plain output, and speculation against plain decoding over many prompts."""
    # the adversarial drafters tell requests apart by slot
    few = suite.mixed[:SLOTS]
    checks = equality_checks(suite.engine, suite.drafter, few, min(suite.equality_tokens, FEW_TOKENS))
    found = run_checks(checks, suite.clock.fits)
    prompts = suite.mixed[: suite.equality_prompts]
    drafter = suite.many_drafter
    return {**found, **equality_run(suite.many, drafter, prompts, suite.equality_tokens, suite.clock.fits)}


def bandwidth(suite: Suite) -> Found:
    """Bytes per second of a large copy: what decoding speed is measured against."""
    return {"copy_bytes_per_second": suite.copy_bytes_per_second}


def products(suite: Suite) -> Found:
    """Each weight shape's product against what its bytes must take."""
    found = [
        one
        for name, spec in suite.targets.items()
        for one in product_speed(name, spec, suite.device, suite.dtype, suite.copy_bytes_per_second, suite.clock.fits)
    ]
    print(table(found))
    return {"products": found}


def ops(suite: Suite) -> Found:
    """Each op of a round that is neither product nor attention against what its bytes must take."""
    cases = op_speed.CASES[:1] if suite.quick else op_speed.CASES
    shared = suite.device, suite.dtype, suite.copy_bytes_per_second
    found = op_speed.op_speed(suite.targets, cases, *shared, suite.clock.fits)
    print(op_speed.table(found))
    return {"ops": found}


def speed_of_sets(suite: Suite) -> Found:
    """Plain and speculative decoding, one request at a time and together, on every set of prompts."""
    engine, drafter, found = suite.engine, suite.drafter, dict[str, Found]()
    for name, whole in suite.sets.items():
        prompts = whole[: suite.speed_prompts]
        of = speed(engine, drafter, name, prompts, suite.max_tokens, 1 if suite.quick else 3)
        found[name] = {**of, "expected": expected(engine, drafter, prompts, of["alone"], suite.copy_bytes_per_second)}
    spec = engine.target.spec
    return {
        "target": engine.info.target,
        "draft": engine.info.draft,
        "max_nodes": engine.info.max_nodes,
        "weight_bytes": spec.parameters * engine.target.dtype.itemsize,
        "sets": found,
    }


def steps(suite: Suite) -> Found:
    """Plain steps and verified trees on random weights of known shapes."""
    cases = step_speed.CASES[:2] if suite.quick else step_speed.CASES
    return {"steps": _by_case(suite, step_speed.step_speed, cases)}


def rounds(suite: Suite) -> Found:
    """Whole rounds, drafts and all, on the same shapes, with acceptance simulated."""
    cases = round_speed.CASES[:1] if suite.quick else round_speed.CASES
    return {"rounds": _by_case(suite, round_speed.round_speed, cases)}


def _by_case(suite: Suite, measure: Callable[..., list[Found]], cases: tuple[Any, ...]) -> list[Found]:
    make_attention = block_attention if suite.device.type == "cuda" else cpu_attention
    shared = suite.device, suite.dtype, make_attention, suite.copy_bytes_per_second
    return measure(suite.targets, cases, *shared, suite.clock.fits)


def peers(suite: Suite) -> Found:
    """transformers on the same weights, and the engine beside it, both on the same prompts and numbers of tokens."""
    folder = Path(suite.options.draft)
    draft = read_draft(folder) if folder.is_dir() else None
    prompts, tokens = suite.peer_work
    ours = same_answers(suite.engine, suite.drafter, prompts, tokens)
    found = peer_speed(suite.folder, prompts, tokens, suite.device, suite.dtype, draft, suite.clock.fits)
    for name, one in (*ours.items(), *found.items()):
        speed = one.get("tokens_per_second")
        print(f"  {name}: {one.get('skipped') or one.get('failed') or f'{speed:.1f} tokens/s'}", flush=True)
    target, context = suite.engine.target, round(fmean(map(len, prompts))) + tokens // 2
    bound = bound_of_peer(target.spec, context, target.dtype.itemsize, suite.copy_bytes_per_second)
    return {
        "prompts": len(prompts),
        "max_tokens": tokens,
        "predicted_ratio": bound,
        "ours": ours,
        "peers": found,
    }


STAGES: dict[str, Callable[[Suite], Found]] = {
    "kernels": kernels,
    "rows": rows,
    "bandwidth": bandwidth,
    "equality": equality,
    "speed": speed_of_sets,
    "steps": steps,
    "rounds": rounds,
    "peers": peers,
    "attention": attention,
    "products": products,
    "ops": ops,
    # off unless asked for, so what goes wrong here is to spoil nothing else
    "dependent": dependent_launches,
}
LEAST_SECONDS = {
    "kernels": 30.0,
    "rows": 10.0,
    "equality": 30.0,
    "speed": 20.0,
    "steps": 15.0,
    "rounds": 20.0,
    "peers": 45.0,
    "attention": 30.0,
    "products": 20.0,
    "ops": 15.0,
    "dependent": 30.0,
}
"""What must be left for a stage to begin: guesses for a GPU, from what its parts took there or must take.  Stages of
many cases look at the time themselves and leave out what no longer fits."""
