"""The round: draft, verify, accept, commit, as one function over preallocated tensors.

No value on the host depends on a token of the round, so on a GPU it can be captured as a graph; tests run it under
FakeTensorMode, where an op that looks at data fails.  Plain decoding is the same function with empty trees, and rows of
prefill go along in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from redraft.drafts.base import Bounds, Candidates, Drafter, Passed
from redraft.drafts.forced import with_forced
from redraft.drafts.none import NoDrafter
from redraft.kernels.accept import Committed, accept
from redraft.kernels.attention import MakeAttention, of_requests
from redraft.kernels.compact_kv import compact_kv
from redraft.kernels.logprobs import Logprobs
from redraft.kernels.pack_tree import pack_tree
from redraft.kernels.place_rows import place_rows
from redraft.kernels.rows import Rows
from redraft.kernels.sample import sample
from redraft.server.engine.adjusting import NOTHING, Stages
from redraft.server.engine.config import PAGE
from redraft.server.engine.prefill_rows import join, prefill_rows
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.scores import NOBODY, Asked, RoundScores, prompt_scores, round_scores
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target

PLAIN = NoDrafter()


class Allow(Protocol):
    """What grammars allow in a round; may read the rows' tokens, and must depend on each row's path alone."""

    def see(self, rows: Rows) -> None:
        """The round's R rows are these; called before the target's pass is launched."""

    def masks(self) -> Tensor:
        """[R, ceil(V / 32)] int32 on the rows' device (kernels/adjust.py); called after the pass was launched."""

    def left_out(self) -> Tensor | None:
        """[R] bool, nodes that must not be accepted; called after ``masks``.  None for none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the host decides of a step, from what it knew before it; and the name of its graph (graphs.py)."""

    rows: int
    """Rows to verify, roots included; the drafts' best nodes fill what the roots leave.  0: nobody decodes."""
    context_bound: int
    """No request is longer than this before the round."""
    requests: int
    """How many decode, at most."""
    sampled: bool
    """Some request has a temperature above 0."""
    filtered: bool
    """Some request uses top_k, top_p or min_p."""
    stages: Stages = NOTHING
    """What is asked of the logits before temperature, and of the end."""
    asked: Asked = NOBODY
    """Who wants log-probabilities."""
    drafting: bool = True
    """False leaves the draft out: every tree is its root."""
    capped: bool = False
    """Some request may have fewer nodes than a draft proposes."""
    forced: bool = False
    """A grammar leaves some request no choice for a while (``state.forced``)."""
    prefill: int = 0
    """Rows of prefill in the same pass, padding included; ``DeviceState.prefill`` says which they are."""
    prefill_bound: int = 0
    """All of them lie before this position."""


class Ran(NamedTuple):
    """What came of a round."""

    committed: Committed
    tree: Candidates
    """What was proposed."""
    scores: RoundScores | None = None
    """For those who asked."""
    prompts: Many[Logprobs | None] = ()
    """By chunk that ``run_round`` was told of, of the token behind each of its rows; None where nobody asked."""


def run_round(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    plan: Plan,
    make_attention: MakeAttention,
    allow: Allow | None = None,
    chunks: Many[Chunk] = (),
) -> Ran:
    """Run one round for all active slots; ``state`` is advanced in place.

    ``allow``: given where some request has a grammar.  ``chunks``: what is prefilled, where some of it is to be scored.
    """
    bounds = Bounds(plan.context_bound, plan.requests, plan.sampled)
    tree = (drafter if plan.drafting else PLAIN).propose(state.draft, bounds)
    if plan.forced:
        tree = with_forced(tree, state.forced)
    if not plan.prefill:
        make_attention = of_requests(make_attention, plan.requests)
    score = _weighed(state, tree, plan)
    rows = pack_tree(tree.token, tree.parent, score, state.active, state.length, plan.rows)
    every, bound = rows, plan.context_bound + tree.token.shape[1]
    if plan.prefill:
        every = join(rows, prefill_rows(state, plan.prefill))
        bound = max(bound, plan.prefill_bound)
    if allow is not None:
        allow.see(rows)
    hidden = forward_rows(state, target, drafter, every, bound, make_attention)
    logits, adjusting = target.logits(hidden[: plan.rows]), state.adjusting
    z = adjusting.adjusted(logits, rows, plan.stages, None if allow is None else allow.masks())
    choice = sample(z, rows.slot, rows.position, state.sampling, sampled=plan.sampled, filtered=plan.filtered)
    ends = adjusting.ends[:, : plan.stages.ends]
    verified = rows if allow is None else _without(rows, allow.left_out())
    committed = accept(verified, choice, state.tokens, state.length, state.limit, state.active, ends)
    adjusting.committed(committed, plan.stages)
    for kv in (state.kv, state.draft_kv):
        if kv.shape[0] and tree.token.shape[1] > 1:
            compact_kv(kv, state.page_table, rows, committed, PAGE)
    scores = round_scores(logits, choice, committed, plan.asked) if plan.asked.slots else None
    return Ran(committed, tree, scores, prompt_scores(state, target, hidden[plan.rows :], chunks))


def _without(rows: Rows, left_out: Tensor | None) -> Rows:
    """``rows`` of which those ``left_out`` have a token that is nobody's choice."""
    return rows if left_out is None else replace(rows, token=rows.token.masked_fill(left_out, -1))


def run_prefill(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    plan: Plan,
    make_attention: MakeAttention,
    chunks: Many[Chunk] = (),
) -> list[Logprobs | None]:
    """A pass of prefill alone; returns what ``Ran.prompts`` is, of ``chunks`` as ``run_round`` has them."""
    rows = prefill_rows(state, plan.prefill)
    hidden = forward_rows(state, target, drafter, rows, plan.prefill_bound, make_attention)
    return prompt_scores(state, target, hidden, chunks)


def _weighed(state: DeviceState, tree: Candidates, plan: Plan) -> Tensor:
    """[S+1, W] the draft's scores as they compare between requests; -inf for nodes beyond what a request may have."""
    score = tree.score
    if tree.token.shape[1] == 1:
        return score
    if plan.capped:
        # a parent scores no less than its child and comes first, so it ranks before it
        rank = score[:, 1:].argsort(stable=True, dim=1, descending=True).argsort(1)
        beyond = rank >= state.most_nodes.unsqueeze(1)
        score = torch.cat((score[:, :1], score[:, 1:].masked_fill(beyond, float("-inf"))), 1)
    return score * state.trust.unsqueeze(1) if plan.requests > 1 else score


def forward_rows(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    rows: Rows,
    position_bound: int,
    make_attention: MakeAttention,
) -> Tensor:
    """Run the target over ``rows``, writing their KV, and the draft's, behind the committed cells; returns [R, H]."""
    cell, before = place_rows(rows, state.page_table, PAGE)
    attend = make_attention(rows, state.page_table, position_bound, target.spec.head_dim)
    layers = drafter.context.taps
    if not layers:
        return target.forward(rows.token, rows.position, cell, state.kv, attend)
    hidden, taps = target.forward_tapped(rows.token, rows.position, cell, state.kv, attend, layers)
    drafter.absorb(Passed(taps, rows.token, rows.position, cell, before), state.draft_kv)
    return hidden
