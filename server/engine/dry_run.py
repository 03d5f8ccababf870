"""What passes need of a GPU's memory beside weights, keys and values: the largest are run before there are the latter.

A bound from shapes alone would have to know what every op and the allocator keep, and prompts' log-probabilities, a
large vocabulary or many requests take gigabytes.  On a CPU nothing is measured: memory is mapped as it is touched, and
a fifth of it stays free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace

import torch
from torch import Tensor

from redraft.drafts.base import Drafter
from redraft.kernels.attention import MakeAttention
from redraft.kernels.rows import Rows
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan, run_prefill, run_round
from redraft.server.engine.rows_plan import RECORDED, row_bucket
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.types import MAX_LOGPROBS, RedraftError

PAGES = 8
"""Of the state that passes run on.  All slots share them: what is computed is thrown away."""
LENGTH = 2
"""Of the texts that rounds go on from."""
SPARE = 2**27
"""Bytes for what the driver keeps of compiled kernels, and for gaps between what is allocated."""

Taken = Callable[[Callable[[], None]], int]
"""Runs what it is given; bytes that the allocator holds more than before."""


def workspace(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    make_attention: MakeAttention,
    most_rows: int,
    *,
    recorded: int,
    taken: Taken,
) -> int:
    """Bytes that the largest passes of ``most_rows`` rows take; ``state``, of ``PAGES`` pages, is spoilt.

    ``recorded``: rounds are recorded too, and passes with prefill up to so many rows, with memory of their own; 0:
    nothing is.  Raises ``RedraftError`` if there is too little.
    """

    def run(plan: Plan, chunks: Many[Chunk]) -> None:
        _begin(state, plan.requests)
        state.prefill.write(chunks, plan.prefill)
        parts = state, target, drafter, plan, make_attention
        if plan.rows:
            run_round(*parts, Anything(), chunks)
        else:
            run_prefill(*parts, chunks)

    def everything() -> None:
        rows = row_bucket(most_rows)
        for plan in round_plans(state, drafter, most_rows, rows):
            run(plan, _chunks(state, plan.prefill, plan.requests))
        run(prefill_plan(state, rows), _chunks(state, most_rows, 0))

    def recordings() -> None:
        for plan in round_plans(state, drafter, most_rows, recorded):
            run(plan, ())
        # graphs share memory, but what was too small for a larger one remains: each size, the smallest first
        for rows in RECORDED:
            if rows <= recorded:
                run(prefill_plan(state, rows), ())

    try:
        return taken(everything) + (taken(recordings) if recorded else 0) + SPARE
    except torch.OutOfMemoryError as error:
        raise RedraftError(
            f"there is no memory for passes of {most_rows} rows beside the weights: {str(error).splitlines()[0]} "
            "Take less with --max-num-batched-tokens or --max-num-seqs, or a smaller target"
        ) from None


class Anything:
    """Grammars that allow every token (``parts.Allow``)."""

    def see(self, rows: Rows) -> None:
        """Look at nothing."""

    def write(self, allowed: Tensor, left_out: Tensor) -> None:
        """Leave it at that."""


def round_plans(state: DeviceState, drafter: Drafter, most_rows: int, beside: int) -> Iterator[Plan]:
    """The largest round, of all slots, and the largest beside prefill, of all but one; all ask for everything.

    ``most_rows`` of requests' trees; ``beside``: rows of the pass with prefill, if there is room for any in it.
    """
    forced, each = state.forced.shape[1], 1 + drafter.max_nodes
    for requests in {state.slots, max(state.slots - 1, 1)}:
        # what grammars force comes on top
        rows = row_bucket(min(requests * each, most_rows) + requests * forced)
        alone = Plan(
            rows,
            requests=requests,
            context_bound=state.positions - each - forced,
            sampled=True,
            filtered=True,
            stages=Stages(penalised=True, biased=True, minimum=True),
            scored=requests,
            tops=MAX_LOGPROBS,
            capped=True,
            forced=forced > 0,
            guided=True,
        )
        if requests == state.slots:
            yield alone
        elif beside > rows:
            yield replace(alone, prefill=beside - rows, prefill_bound=state.positions)


def prefill_plan(state: DeviceState, rows: int) -> Plan:
    """A pass of prompts of ``rows`` rows, the end of the longest text among them."""
    return Plan(
        0, 0, 0, sampled=False, filtered=False, drafting=False, prefill=rows, prefill_bound=state.positions
    )  # fmt: skip


def cuda_taken(run: Callable[[], None]) -> int:
    """``Taken`` on the current GPU, whose allocator gives nothing back by itself."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    run()
    torch.cuda.synchronize()
    return torch.cuda.memory_reserved() - before


def _begin(state: DeviceState, active: int) -> None:
    """So many slots with a short text, and pages that all slots share for whatever comes behind it."""
    pages = state.page_table
    pages.copy_(torch.arange(pages.numel(), device=state.device).view_as(pages) % PAGES)
    state.adjusting.reserve()
    state.masks.reserve()
    state.length[:-1], state.limit[:-1] = LENGTH, state.positions
    state.set_asked(range(active))
    state.active[:] = torch.arange(state.slots + 1, device=state.device) < active
    state.most_nodes.fill_(state.positions)
    state.sampling.temperature.fill_(1.0)
    state.sampling.top_p.fill_(0.9)


def _chunks(state: DeviceState, rows: int, first: int) -> tuple[Chunk, ...]:
    """``rows`` rows of prefill with scores: of slot ``first``, and of further ones if a text is shorter."""
    longest = state.positions - 1
    counts = [min(longest, rows - start) for start in range(0, rows, longest)][: state.slots - first]
    return tuple(Chunk(first + number, 0, count, MAX_LOGPROBS) for number, count in enumerate(counts))
