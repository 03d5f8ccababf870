"""Compile what rounds launch, each specialisation as Triton's launcher makes it: ``python launched.py [--all]``.

Rounds run on tensors without contents that claim to be on a GPU; instead of launching, a kernel's types, constants and
which integers are 1 or multiples of 16 are written down.  A line of JSON for every architecture it is compiled for.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from redraft.benchmarks.launches import CPU, _as_on_a_gpu, _Count, default_draft, some_kernel
from redraft.benchmarks.shape_target import random_weights
from redraft.benchmarks.shapes import TARGETS
from redraft.drafts.base import Drafter
from redraft.drafts.checkpoint import Checkpoint, read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.kernels.aot import CAPABILITIES, compile_case
from redraft.kernels.attention import block_attention
from redraft.kernels.triton_support import CompileCase
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.round import Plan, run_prefill, run_round
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec

NODES, SLOTS, PREFILL, PAGES, POSITIONS = 15, 8, 2048, 70, 8192
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


@dataclass
class Specialisations:
    """What was launched, each once, by all that it is compiled by."""

    found: dict[str, CompileCase]

    def note(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """In place of ``JITFunction.run``."""
        ours = {one.name for one in kernel.params}
        taken = {name: options[name] for name in options if name not in ours and name != "launch_pdl"}
        arguments = {name: value for name, value in options.items() if name in ours}
        bound = inspect.signature(kernel.fn).bind(*args, **arguments)
        types: dict[str, str] = {}
        constants: dict[str, Any] = {}
        divisible = []
        for one in kernel.params:
            value = bound.arguments[one.name]
            if one.is_constexpr or value is None or (type(value) is int and value == 1 and not one.do_not_specialize):
                constants[one.name] = value
            elif isinstance(value, torch.Tensor):
                types[one.name] = f"*{TYPES[value.dtype]}"
            elif isinstance(value, float):
                types[one.name] = "fp32"
            else:
                types[one.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible += [one.name] if value % 16 == 0 else []
        case = CompileCase(kernel, types, constants, divisible=tuple(divisible), **taken)
        self.found.setdefault(
            f"{kernel.fn.__module__}.{kernel.fn.__name__} {types} {constants} {divisible} {taken}", case
        )


def rounds(spec: TargetSpec, drafter: Drafter, weights: Any, every: bool) -> None:
    """Run rounds of few and of many rows and requests, greedy and with everything asked of them; and prefill."""
    tree = 1 + drafter.max_nodes
    state = DeviceState(
        spec, CPU, torch.bfloat16, slots=SLOTS, pages=PAGES, max_model_len=POSITIONS - tree, tree_rows=tree,
        prefill=PREFILL, context=drafter.context,
    )  # fmt: skip
    state.adjusting.reserve()
    target = Target(spec, weights, POSITIONS)
    sizes = [(4, 1, False), (8, 8, False), (16, 1, True), (32, 2, True), (64, 4, True), (128, 8, True)]
    for (rows, requests, drafting), bound, sampled in product(
        sizes if every else sizes[:3:2], (512, 4096, 8000) if every else (512,), (False, True)
    ):
        stages = Stages(sampled, sampled, sampled) if sampled else Stages(ends=1)
        plan = Plan(rows, bound, requests, sampled, filtered=sampled, stages=stages, drafting=drafting)
        run_round(state, target, drafter, plan, block_attention)
    for rows in (64, 512, PREFILL) if every else (512,):
        alone = Plan(0, 0, 0, False, filtered=False, drafting=False, prefill=rows, prefill_bound=PREFILL)
        run_prefill(state, target, drafter, alone, block_attention)


def eagle3() -> Checkpoint:
    """The shipped draft of that kind."""
    root = Path(str(resources.files("redraft.drafts"))) / "checkpoints"
    return read_draft(root / "smollm2-135m-instruct" / "eagle3")


@contextmanager
def written_down(into: Specialisations) -> Iterator[None]:
    """Launches go to ``into``."""

    def run(kernel: Any, *args: Any, **options: Any) -> None:
        into.note(kernel, *args, **options)

    with _as_on_a_gpu(_Count()), patch.object(type(some_kernel), "run", run):
        yield


def launched(every: bool) -> list[CompileCase]:
    """Of the default target with its draft; ``every``: of all targets and kinds of drafts."""
    into = Specialisations({})
    trained, grown = default_draft(), eagle3()
    for name, spec in TARGETS.items():
        ours = name == "SmolLM2-135M"
        if not ours and not every:
            continue
        # drafts' taps are of all layers
        spec = spec if ours else replace(spec, layers=2)
        with written_down(into):
            weights = random_weights(spec, CPU, torch.bfloat16)
            lookup = NgramDrafter(SLOTS, spec.vocab, CPU, NODES)
            drafters: list[Drafter] = [lookup] if every else []
            if ours:
                table = weights.embedding
                block = DFlashDrafter(without_contents(trained), table, table, POSITIONS, NODES)
                drafters.append(MergedDrafter(block, lookup))
            if ours and every:
                drafters.append(Eagle3Drafter(without_contents(grown), table, POSITIONS, NODES))
            for drafter in drafters:
                rounds(spec, drafter, weights, every)
    return list(into.found.values())


def without_contents(draft: Checkpoint) -> Checkpoint:
    """``draft`` for tensors that have shapes alone."""
    return replace(
        draft, tensors={name: torch.empty(one.shape, dtype=one.dtype) for name, one in draft.tensors.items()}
    )


def _compile(job: tuple[int, int]) -> dict[str, Any]:
    case = CASES[job[0]]
    found = asdict(compile_case(case, job[1]))
    return {"kernel": case.kernel.__name__, "constants": str(case.constexprs), "capability": job[1], **found}


CASES: list[CompileCase] = []


def main() -> None:
    """Print one JSON line per specialisation and architecture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="all targets and drafts, all architectures; minutes")
    every = parser.parse_args().all
    CASES.extend(launched(every))
    jobs = [(number, capability) for number in range(len(CASES)) for capability in (CAPABILITIES if every else (90,))]
    # forked, so workers have the cases
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for usage in pool.map(_compile, jobs):
            sys.stdout.write(json.dumps(usage) + "\n")


if __name__ == "__main__":
    main()
