"""How many kernels a round launches, counted without a GPU: ``python -m redraft.benchmarks.launches``.

A small target's step on a GPU takes as long as its launches, 2 to 3 microseconds each in a graph, so this predicts it.
The round runs on tensors without contents that claim to be on a GPU.  Every launch of a Triton kernel counts as one,
and so does every op of torch that is neither a view nor an allocation, of which a few (sorts, top-k) are several.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.benchmarks.shapes import TARGETS
from redraft.benchmarks.step_speed import random_weights
from redraft.drafts.base import Drafter
from redraft.drafts.checkpoint import Checkpoint, read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.attention import block_attention
from redraft.kernels.attention_partial import tickets
from redraft.kernels.matmul import workspace
from redraft.kernels.pack_tree import _rank as some_kernel
from redraft.kernels.triton_support import HAS_TRITON
from redraft.server.engine.round import Plan, run_round
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec

NODES = 15
"""Drafted by each of two drafters; a GPU's default."""
SLOTS, POSITIONS = 4, 1024
CPU = torch.device("cpu")
_FREE = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::_unsafe_view"}


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts ops by the module of ours that asked for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        if not is_view and schema.name.partition(".")[0] not in _FREE and schema.name.startswith("aten::"):
            self.launched()
        return func(*args, **(kwargs or {}))

    def launched(self) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            module = str(frame.f_globals.get("__name__"))
            if module.startswith("redraft.") and module != __name__:
                break
        self.found[module.removeprefix("redraft.")] += 1


@contextmanager
def _as_on_a_gpu(count: _Count) -> Iterator[None]:
    """Fake tensors say that they are on one, and kernels are counted and not run."""

    def launch(self: object, *arguments: object, **options: object) -> None:
        count.launched()

    # memory that kernels keep for good; what is made here has no contents
    kept = (workspace, tickets)
    for make in kept:
        make.cache_clear()
    with (
        ExitStack() as stack,
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.inference_mode(),
        patch.object(FakeTensor, "is_cuda", PropertyMock(return_value=True)),
        patch.object(torch.backends.mkldnn, "is_available", return_value=False),
        patch.object(Checkpoint, "version", PropertyMock(return_value="")),
        patch.object(type(some_kernel), "run", launch),
    ):
        for make in kept:
            stack.callback(make.cache_clear)
        yield


def count_launches(spec: TargetSpec, draft: Checkpoint | None, *, sampled: bool = False) -> Mapping[str, int]:
    """Launches of one request's round by the module that asks for them.

    ``draft``: a DFlash draft, beside which n-gram lookup fills the tree; None for a plain step.  ``sampled``: at a
    temperature.  Raises ``RuntimeError`` without Triton.
    """
    if not HAS_TRITON:
        raise RuntimeError("launches of Triton kernels are counted with Triton's own launcher: install triton")
    count = _Count()
    with _as_on_a_gpu(count):
        weights = random_weights(spec, CPU, torch.bfloat16)
        target = Target(spec, weights, POSITIONS)
        drafter: Drafter = NoDrafter() if draft is None else _drafter(draft, spec, weights.embedding)
        rows = 1 + drafter.max_nodes
        state = DeviceState(
            spec, CPU, torch.bfloat16, slots=SLOTS, pages=8, max_model_len=POSITIONS - rows, tree_rows=rows,
            context=drafter.context,
        )  # fmt: skip
        plan = Plan(4 if draft is None else 1 + NODES, 512, 1, sampled, filtered=False, drafting=draft is not None)
        # the first one also makes what is kept
        run_round(state, target, drafter, plan, block_attention)
        count.found.clear()
        with count:
            run_round(state, target, drafter, plan, block_attention)
    return dict(count.found.most_common())


def _drafter(draft: Checkpoint, spec: TargetSpec, embedding: Tensor) -> Drafter:
    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in draft.tensors.items()}
    trained = DFlashDrafter(replace(draft, tensors=shapes), embedding, embedding, POSITIONS, NODES)
    return MergedDrafter(trained, NgramDrafter(SLOTS, spec.vocab, CPU, NODES))


def default_draft() -> Checkpoint:
    """The draft that serves the default target."""
    root = Path(str(resources.files("redraft.drafts"))) / "checkpoints"
    return read_draft(root / "smollm2-135m-instruct" / "dflash-sft")


def main() -> None:
    """Entry point of ``python -m``."""
    parser = argparse.ArgumentParser(description="Count the kernels that a round launches on a GPU; needs none.")
    parser.add_argument("--sampled", action="store_true", help="at a temperature; else greedy")
    options = parser.parse_args()
    name = "SmolLM2-135M"
    for what, draft in (("plain step", None), ("speculative round", default_draft())):
        found = count_launches(TARGETS[name], draft, sampled=options.sampled)
        print(f"{name}, {what}: {sum(found.values())} launches")
        for module, launches in found.items():
            print(f"  {launches:4} {module}")


if __name__ == "__main__":
    main()
