"""How many kernels a round launches, counted without a GPU: ``python -m redraft.benchmarks.launches``.

A small target's step on a GPU takes as long as its launches, 2 to 3 microseconds each in a graph, so this predicts it.
The round runs on tensors without contents that claim to be on a GPU.  Every launch of a Triton kernel counts as one,
and so does every op of torch that is neither a view nor an allocation, of which a few (sorts, top-k) are several.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from redraft.benchmarks.shape_target import random_weights
from redraft.benchmarks.shapes import TARGETS
from redraft.benchmarks.standin import Given
from redraft.drafts.base import Candidates, Drafter
from redraft.drafts.checkpoint import Checkpoint, read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels import chunk_attention, linear, matmul, paged_attention
from redraft.kernels.attention import block_attention
from redraft.kernels.attention_partial import tickets
from redraft.kernels.pack_tree import _rank as some_kernel
from redraft.kernels.triton_support import HAS_TRITON
from redraft.server.engine.round import Plan, run_round
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec

NODES = 15
"""Drafted by each of two drafters; a GPU's default."""
CONTEXT = 512
CPU = torch.device("cpu")
_FREE = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::_unsafe_view"}
_KEPT = ((matmul, "workspace"), (linear, "workspace"), (chunk_attention, "tickets"), (paged_attention, "tickets"))
"""Memory that kernels keep for good."""


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts ops by the module of ours that asked for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        schema = func._schema
        may_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        # an op like "to" or "reshape" returns a view where it can, and a copy where not
        is_view = may_view and (not isinstance(made, Tensor) or _lies_in(made, args))
        if not is_view and schema.name.partition(".")[0] not in _FREE and schema.name.startswith("aten::"):
            self.launched()
        return made

    def launched(self) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            module = str(frame.f_globals.get("__name__"))
            if module.startswith("redraft.") and module != __name__:
                break
        self.found[module.removeprefix("redraft.")] += 1


def _lies_in(made: Tensor, arguments: Iterable[object]) -> bool:
    """Whether ``made`` shares memory with a tensor of ``arguments``."""
    own = made.untyped_storage()._cdata
    return any(isinstance(one, Tensor) and one.untyped_storage()._cdata == own for one in arguments)


@contextmanager
def _as_on_a_gpu(count: _Count) -> Iterator[None]:
    """Fake tensors say that they are on one, and kernels are counted and not run."""

    def launch(self: object, *arguments: object, **options: object) -> None:
        count.launched()

    # what is made here has no contents; the real ones stay, whose addresses recorded rounds may hold
    apart = {
        "workspace": functools.cache(matmul.workspace.__wrapped__),
        "tickets": functools.cache(tickets.__wrapped__),
    }
    with (
        ExitStack() as stack,
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.inference_mode(),
        patch.object(FakeTensor, "is_cuda", PropertyMock(return_value=True)),
        patch.object(torch.backends.mkldnn, "is_available", return_value=False),
        patch.object(Checkpoint, "version", PropertyMock(return_value="")),
        patch.object(type(some_kernel), "run", launch),
    ):
        for module, name in _KEPT:
            stack.enter_context(patch.object(module, name, apart[name]))
        yield


def count_launches(
    spec: TargetSpec,
    draft: DFlashConfig | None = None,
    *,
    requests: int = 1,
    rows: int = 1,
    nodes: int = NODES,
    lookup: bool = True,
    context: int = CONTEXT,
    sampled: bool = False,
) -> Mapping[str, int]:
    """Launches of a round of ``requests`` texts by the module that asks for them.

    Args:
        spec: the target's shape.
        draft: of a DFlash draft, if there is one.
        requests: that decode.
        rows: verified of each; 1 is plain decoding, without any draft.
        nodes: that the draft proposes for each, and n-gram lookup as many.
        lookup: whether there is n-gram lookup; without it and ``draft`` the tree is a given one (standin.py).
        context: tokens of each text.
        sampled: whether at a temperature.

    Raises ``RuntimeError`` without Triton.
    """
    if not HAS_TRITON:
        raise RuntimeError("launches of Triton kernels are counted with Triton's own launcher: install triton")
    count = _Count()
    with _as_on_a_gpu(count):
        weights = random_weights(spec, CPU, torch.bfloat16)
        room = 2 * context
        target = Target(spec, weights, room)
        drafter: Drafter = NoDrafter()
        if rows > 1:
            drafter = _drafter(draft, weights.embedding, room, nodes) if draft else drafter
            ngram = NgramDrafter(requests, spec.vocab, CPU, nodes) if lookup else None
            if ngram is not None:
                drafter = MergedDrafter(drafter, ngram) if draft else ngram
            elif draft is None:
                drafter = Given(_tree(requests, rows))
        state = DeviceState(
            spec, CPU, torch.bfloat16, slots=requests, pages=8, max_model_len=room - rows,
            tree_rows=max(rows, 1 + drafter.max_nodes), context=drafter.context,
        )  # fmt: skip
        plan = Plan(row_bucket(requests * rows), context, requests, sampled, filtered=False, drafting=rows > 1)
        # the first one also makes what is kept
        run_round(state, target, drafter, plan, block_attention)
        count.found.clear()
        with count:
            run_round(state, target, drafter, plan, block_attention)
    return dict(count.found.most_common())


def count_op(make: Callable[[], Callable[[], object]]) -> int:
    """Launches of what ``make`` makes from tensors of a CPU, which have no contents meanwhile."""
    count = _Count()
    with _as_on_a_gpu(count):
        run = make()
        # the first one also makes what is kept
        run()
        count.found.clear()
        with count:
            run()
    return sum(count.found.values())


@functools.cache
def launches_of(
    spec: TargetSpec,
    draft: DFlashConfig | None = None,
    requests: int = 1,
    rows: int = 1,
    nodes: int = NODES,
    lookup: bool = True,
    context: int = CONTEXT,
) -> Mapping[str, int] | None:
    """``count_launches``, in a fraction of its time, since a layer launches what its like does.

    None where nothing can be counted: without Triton, or with versions of it or of torch that this does not know, and
    then a line says why.  What is predicted of launches is not known there; what is measured is.
    """
    if not HAS_TRITON:
        return None
    try:
        return _by_layers(spec, draft, requests, rows, nodes, lookup, context)
    except Exception as error:
        print(f"  launches cannot be counted: {type(error).__name__}: {error}"[:300], flush=True)
        return None


def _by_layers(
    spec: TargetSpec, draft: DFlashConfig | None, requests: int, rows: int, nodes: int, lookup: bool, context: int
) -> Mapping[str, int]:
    """``count_launches`` from two small numbers of layers."""
    # no fewer than the draft's taps, which are moved down to the first layers
    few = 2 if draft is None else max(len(draft.taps), 2)
    if draft is not None:
        draft = replace(draft, taps=tuple(range(len(draft.taps))), target_layers=few)
    sizes = {"requests": requests, "rows": rows, "nodes": nodes, "lookup": lookup, "context": context}
    base, more = (count_launches(replace(spec, layers=few + extra), draft, **sizes) for extra in (0, 1))  # type: ignore[arg-type]
    layers = spec.layers - few
    return {name: base.get(name, 0) + layers * (more[name] - base.get(name, 0)) for name in more}


def _tree(slots: int, width: int) -> Candidates:
    whole = torch.zeros(slots + 1, width, dtype=torch.int64)
    return Candidates(whole, whole.clone(), torch.zeros(slots + 1, width))


def _drafter(config: DFlashConfig, embedding: Tensor, room: int, nodes: int) -> Drafter:
    tensors = {
        name: torch.empty(shape, dtype=torch.int64 if name == "d2t" else torch.bfloat16)
        for name, shape in config.shapes.items()
    }
    return DFlashDrafter(Checkpoint(config, tensors, {}), embedding, embedding, room, nodes)


def default_draft() -> Checkpoint:
    """The draft that serves the default target."""
    root = Path(str(resources.files("redraft.drafts"))) / "checkpoints"
    return read_draft(root / "smollm2-135m-instruct" / "dflash-sft")


def main() -> None:
    """Entry point of ``python -m``."""
    parser = argparse.ArgumentParser(description="Count the kernels that a round launches on a GPU; needs none.")
    parser.add_argument("--sampled", action="store_true", help="at a temperature; else greedy")
    options = parser.parse_args()
    name, draft = "SmolLM2-135M", default_draft().config_as(DFlashConfig)
    for what, config, rows in (("plain step", None, 1), ("speculative round", draft, 1 + NODES)):
        found = count_launches(TARGETS[name], config, rows=rows, sampled=options.sampled)
        print(f"{name}, {what}: {sum(found.values())} launches")
        for module, launches in found.items():
            print(f"  {launches:4} {module}")


if __name__ == "__main__":
    main()
