"""What passes need of a GPU's memory beside weights, keys and values: the largest are run before there are the latter.

A bound from shapes alone would have to know what every op and the allocator keep, and prompts' log-probabilities, a
large vocabulary or many requests take gigabytes.  On a CPU nothing is measured: memory is mapped as it is touched, and
a fifth of it stays free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from redraft.drafts.base import Drafter
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.adjusting import Stages
from redraft.server.engine.prefill_rows import Chunk
from redraft.server.engine.round import Plan, run_prefill, run_round
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.scores import Asked
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
    graphs: bool,
    taken: Taken,
) -> int:
    """Bytes that the largest passes of ``most_rows`` rows take; ``state``, of ``PAGES`` pages, is spoilt.

    ``graphs``: rounds are recorded too, with memory of their own.  Raises ``RedraftError`` if there is too little.
    """

    def rounds() -> None:
        for plan in round_plans(state, drafter, most_rows):
            _begin(state, plan.requests)
            run_round(state, target, drafter, plan, make_attention)

    def everything() -> None:
        rounds()
        _begin(state, 0)
        run_prefill(state, target, drafter, prefill_plan(state, most_rows), make_attention)

    try:
        return taken(everything) + (taken(rounds) if graphs else 0) + SPARE
    except torch.OutOfMemoryError as error:
        raise RedraftError(
            f"there is no memory for passes of {most_rows} rows beside the weights: {str(error).splitlines()[0]} "
            "Take less with --max-num-batched-tokens or --max-num-seqs, or a smaller target"
        ) from None


def round_plans(state: DeviceState, drafter: Drafter, most_rows: int) -> Iterator[Plan]:
    """The largest round, of all slots, and the largest beside prefill, of all but one; all ask for everything."""
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
            asked=Asked(tuple(range(requests)), (MAX_LOGPROBS,) * requests),
            capped=True,
            forced=forced > 0,
        )
        rest = row_bucket(most_rows) - rows
        if requests == state.slots:
            yield alone
        elif rest > 0:
            yield replace(alone, chunks=_chunks(state, rest, requests), prefill=rest)


def prefill_plan(state: DeviceState, most_rows: int) -> Plan:
    """The largest pass of prompts, with log-probabilities of all their tokens."""
    chunks = _chunks(state, most_rows, 0)
    return Plan(
        0, 0, 0, sampled=False, filtered=False, drafting=False, chunks=chunks, prefill=row_bucket(most_rows)
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
    state.length[:-1], state.limit[:-1] = LENGTH, state.positions
    state.active[:] = torch.arange(state.slots + 1, device=state.device) < active
    state.most_nodes.fill_(state.positions)
    state.sampling.temperature.fill_(1.0)
    state.sampling.top_p.fill_(0.9)


def _chunks(state: DeviceState, rows: int, first: int) -> tuple[Chunk, ...]:
    """``rows`` rows of prefill with scores: of slot ``first``, and of further ones if a text is shorter."""
    longest = state.positions - 1
    counts = [min(longest, rows - start) for start in range(0, rows, longest)][: state.slots - first]
    return tuple(Chunk(first + number, 0, count, MAX_LOGPROBS) for number, count in enumerate(counts))
