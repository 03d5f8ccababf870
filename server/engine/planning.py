"""From what the scheduler and the pacer decide of a step to the ``Plan`` of its pass."""

from __future__ import annotations

from collections.abc import Sequence as Many

from redraft.server.engine.adjusting import Stages
from redraft.server.engine.guiding import is_guided
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan
from redraft.server.engine.rows_plan import MIN_ROWS, pass_sizes
from redraft.server.engine.scores import Asked
from redraft.server.engine.sequence import Sequence


def make_plan(
    pacer: Pacer,
    decoding: Many[Sequence],
    pace: Pace,
    chunks: Many[Chunk],
    *,
    proposed: int,
    eos: tuple[int, ...],
    unread: int,
    forced: int,
) -> Plan:
    """The plan of a pass for ``decoding`` and ``chunks``.

    ``proposed``: nodes that the draft proposes for each; ``eos``: the target's own end tokens; ``unread``: tokens that
    each may have got without the host having heard of them; ``forced``: nodes that grammars draft, together.
    """
    params = [sequence.request.params for sequence in decoding]
    asked = Asked.by(decoding)
    # what is launched op by op need not be of few kinds
    recorded = 0 if is_scored(chunks) else pacer.recorded
    rows, prefill = pass_sizes(
        max(len(decoding) + pace.nodes + forced, MIN_ROWS) if decoding else 0,
        sum(chunk.count for chunk in chunks),
        recorded,
    )
    return Plan(
        rows=rows,
        requests=len(decoding),
        context_bound=max((len(sequence.tokens) + unread for sequence in decoding), default=0),
        sampled=any(p.temperature > 0 for p in params),
        filtered=any(p.temperature > 0 and (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params),
        stages=Stages.of(decoding, eos),
        scored=len(asked.slots),
        tops=max(asked.tops, default=0),
        drafting=pace.drafting,
        capped=any(pacer.allowed(sequence) < proposed for sequence in decoding),
        forced=forced > 0,
        guided=is_guided(decoding),
        by_op=bool(chunks) and rows + prefill > recorded,
        prefill=prefill,
        prefill_bound=max((chunk.start + chunk.count for chunk in chunks), default=0),
    )


def is_scored(chunks: Many[Chunk]) -> bool:
    """Whether somebody wants log-probabilities of what is prefilled."""
    return any(chunk.scored is not None for chunk in chunks)
