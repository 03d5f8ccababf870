"""The round: draft, verify, accept, commit, as one function over preallocated tensors.

No value on the host depends on a token of the round, so on a GPU it can be captured as a graph; tests run it under
FakeTensorMode, where an op that looks at data fails.  Only grammars look at the tree on the host, between the parts of
their rounds.  Plain decoding is the same function with empty trees, and rows of prefill go along in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import NamedTuple

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
from redraft.server.engine.parts import Allow, Parts, complete
from redraft.server.engine.prefill_rows import join, prefill_rows
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.scores import RoundScores, prompt_scores, round_scores
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target

PLAIN = NoDrafter()


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
    scored: int = 0
    """Log-probabilities are told of the first so many slots of ``state.asked``."""
    tops: int = 0
    """They name so many of the likeliest tokens, at most."""
    drafting: bool = True
    """False leaves the draft out: every tree is its root."""
    capped: bool = False
    """Some request may have fewer nodes than a draft proposes."""
    forced: bool = False
    """A grammar leaves some request no choice for a while (``state.forced``)."""
    guided: bool = False
    """Some request has a grammar, which the host asks halfway (``state.masks``)."""
    by_op: bool = False
    """Launched op by op: its shapes are a prompt's, or it is too large to be padded to few sizes."""
    prefill: int = 0
    """Rows of prefill in the same pass, padding included; ``DeviceState.prefill`` says which they are."""
    prefill_bound: int = 0
    """All of them lie before this position."""

    @property
    def parts(self) -> int:
        """A guided round is cut where the host looks at the tree, and where what its grammars say of it is needed."""
        return 3 if self.guided else 1


class Ran(NamedTuple):
    """What came of a round."""

    committed: Committed
    tree: Candidates
    """What was proposed."""
    scores: RoundScores | None = None
    """For those who asked."""
    prompts: Many[Logprobs | None] = ()
    """By chunk that the round was told of, of the token behind each of its rows; None where nobody asked."""


def round_parts(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    plan: Plan,
    make_attention: MakeAttention,
    chunks: Many[Chunk] = (),
) -> Parts[Ran]:
    """One round for all active slots, whole or in ``plan.parts``; ``state`` is advanced in place.

    ``chunks``: what is prefilled, where some of it is to be scored.
    """
    bounds = Bounds(plan.context_bound, plan.requests, plan.sampled)
    tree = (drafter if plan.drafting else PLAIN).propose(state.draft, bounds)
    if plan.forced:
        tree = with_forced(tree, state.forced)
    if not plan.prefill:
        make_attention = of_requests(make_attention, plan.requests)
    score = _weighed(state, tree, plan)
    rows = pack_tree(tree.token, tree.parent, score, state.active, state.length, plan.rows)
    if plan.guided:
        yield lambda allow: allow.see(rows)

    every, bound = rows, plan.context_bound + tree.token.shape[1]
    if plan.prefill:
        every = join(rows, prefill_rows(state, plan.prefill))
        bound = max(bound, plan.prefill_bound)
    hidden = forward_rows(state, target, drafter, every, bound, make_attention)
    logits = target.logits(hidden[: plan.rows])
    if plan.guided:
        yield lambda allow: state.masks.write(plan.rows, allow.write)

    allowed, verified = None, rows
    if plan.guided:
        allowed, left_out = state.masks.read(plan.rows)
        # those have a token that is nobody's choice
        verified = replace(rows, token=rows.token.masked_fill(left_out != 0, -1))
    adjusting = state.adjusting
    z = adjusting.adjusted(logits, rows, plan.stages, allowed)
    choice = sample(z, rows.slot, rows.position, state.sampling, sampled=plan.sampled, filtered=plan.filtered)
    ends = adjusting.ends[:, : plan.stages.ends]
    committed = accept(verified, choice, state.tokens, state.length, state.limit, state.active, ends)
    adjusting.committed(committed, plan.stages)
    for kv in (state.kv, state.draft_kv):
        if kv.shape[0] and tree.token.shape[1] > 1:
            compact_kv(kv, state.page_table, rows, committed, PAGE)
    scores = round_scores(logits, choice, committed, state.asked[: plan.scored], plan.tops) if plan.scored else None
    return Ran(committed, tree, scores, prompt_scores(state, target, hidden[plan.rows :], chunks))


def run_round(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    plan: Plan,
    make_attention: MakeAttention,
    allow: Allow | None = None,
    chunks: Many[Chunk] = (),
) -> Ran:
    """``round_parts``, op by op to the end; ``allow``: of a guided round."""
    return complete(round_parts(state, target, drafter, plan, make_attention, chunks), allow)


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
