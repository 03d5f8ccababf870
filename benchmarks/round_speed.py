"""Whole speculative rounds on weights of a known shape: the draft, the round, what is neither product nor attention.

A draft of the published shape does all of its work; whether what it drafts is accepted is made up (standin.py), since
it was never trained: each node of a path is right with probability ``RATE`` if the one before it is, as with a draft
whose rounds commit some six tokens.  What is committed, and so tokens per second, is read from the round itself.

The *rest* of a round, all that is neither a matrix product nor attention, the copy of what was committed to the host
included, is measured as what the round takes longer than its products and attention alone, in a graph of their own, in
the same order, over the same rows.  So it holds everything that the rest costs: its kernels, the gaps around them, what
they drive out of the caches.  Timing the rest's kernels in a graph of their own would miss the gaps between them and
the products; a profiler's durations would, too, and slow down what it looks at.  The two are replayed in turn, so drift
of the clock hits both alike.  A difference of two medians near one another is uncertain by as much as they are, which
``spread`` tells: half the distance between the quartiles of either, together, as a share of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

from redraft.benchmarks.device_seconds import DeviceClock, captured, device_seconds
from redraft.benchmarks.predict import predicted_round
from redraft.benchmarks.shape_cases import by_case
from redraft.benchmarks.shape_draft import WITH_LOOKUP, products_and_attention, random_draft
from redraft.benchmarks.shape_target import ANCHOR, BOUND, LENGTH, Case, ShapeTarget, begin
from redraft.benchmarks.shapes import draft_shape
from redraft.benchmarks.standin import Given, MadeTrees, simulated
from redraft.benchmarks.suite_clock import always
from redraft.benchmarks.traffic import draft_pass
from redraft.drafts.base import Bounds
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.none import NoDrafter
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.readback import copied
from redraft.server.engine.target.spec import TargetSpec

RATE = 0.88
"""With spines of ten nodes some 6.3 tokens a round."""
STEPS = 24
DRAFT_PASSES = 10
CASE_SECONDS = 4.0
"""A case is not begun with less of the suite's time left."""
CASES = (
    *(Case(1, rows) for rows in (16, 8, 32, 64)),
    *(Case(4, rows) for rows in (8, 16)),
    Case(16, 8),
    Case(16, 16),
    Case(64, 8),
)
"""The first is what one request has on a GPU."""


class Rounds:
    """Rounds of one shape and case."""

    def __init__(self, shape: ShapeTarget, config: DFlashConfig, case: Case, rate: float = RATE) -> None:
        self.shape, self.case, self.rate = shape, case, rate
        self.draft, self.drafter = random_draft(shape, config, case)
        self.state = shape.state(case, self.drafter.max_nodes, self.drafter.context)
        nodes, kept = self.drafter.max_nodes, case.rows - 1
        self.trees = MadeTrees(case.requests, nodes, kept, ANCHOR, shape.device, deepest=config.drafted)
        self.texts = self._texts()
        """[S, K] what the target says behind the anchor."""

    def _texts(self) -> torch.Tensor:
        """By plain decoding."""
        run = self.shape.rounds(self.state, NoDrafter())
        begin(self.state)
        for _ in range(self.trees.spine):
            run(Case(self.case.requests, 1).plan)
        return self.state.tokens[: self.case.requests, LENGTH : LENGTH + self.trees.spine].clone()

    def draft_seconds(self) -> float:
        """Of a proposal alone, n-gram lookup included."""
        begin(self.state)
        propose = partial(self.drafter.propose, self.state.draft, Bounds(BOUND, self.case.requests, sampled=False))
        return device_seconds(propose, self.shape.device, DRAFT_PASSES)

    def measure(self, steps: int = STEPS) -> dict[str, float]:
        """Seconds of rounds and of their products and attention, replayed in turn, and tokens per round."""
        state, case, device = self.state, self.case, self.shape.device
        begin(state)
        right = simulated(self.rate, self.trees.spine, steps, case.requests).to(device)
        self.trees.write(self.texts, right[0], self.shape.spec.vocab)
        run = self.shape.rounds(state, Given(self.trees.tree, self.drafter))
        for _ in range(3):
            begin(state)
            run(case.plan)
        begin(state)
        parts = captured(products_and_attention(self.shape, self.draft, state, self.trees.tree, case), device)
        clock, whole, alone, tokens = DeviceClock(device), list[float](), list[float](), 0

        def round_() -> None:
            committed, tree, *_ = run(case.plan)[0]
            # as an engine does behind every round
            told = committed.tokens, committed.count, committed.accepted, committed.drafted, committed.finish
            copied((*told, tree.token, tree.parent, tree.score))

        for step in range(steps):
            begin(state)
            self.trees.write(self.texts, right[step], self.shape.spec.vocab)
            whole.append(clock.seconds(round_))
            tokens += int((state.length[: case.requests] - LENGTH).sum())
            begin(state)
            alone.append(clock.seconds(parts))
        spread = sum((b - a) / 2 for a, _, b in (quantiles(times, n=4) for times in (whole, alone)))
        return {
            "seconds": median(whole),
            "products_and_attention_seconds": median(alone),
            "rest_share": 1 - median(alone) / median(whole),
            "spread": spread / median(whole),
            "tokens_per_round": tokens / steps / case.requests,
            "tokens_per_second": tokens / sum(whole),
        }


def round_speed(
    shapes: Mapping[str, TargetSpec],
    cases: Sequence[Case],
    device: torch.device,
    dtype: torch.dtype,
    make_attention: MakeAttention,
    bandwidth: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """One entry per shape and case (``by_case``), with what was predicted; ``bandwidth`` as ``step_speed`` has it."""

    def measure(shape: ShapeTarget, case: Case, before: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
        made = measured(shape, case, bandwidth)
        return made, (
            f"{1e3 * made['seconds']:.3f} ms, draft {1e3 * made['draft_seconds']:.3f} ms, "
            f"rest {made['rest_share']:.1%}, {made['tokens_per_round']:.2f} tokens a round"
        )

    return by_case(shapes, cases, device, dtype, make_attention, measure, CASE_SECONDS, fits)


def measured(shape: ShapeTarget, case: Case, bandwidth: float) -> dict[str, Any]:
    """Of one case, beside what was predicted of it."""
    config, itemsize, nodes = draft_shape(shape.spec), shape.dtype.itemsize, case.rows - 1
    rounds = Rounds(shape, config, case)
    found: dict[str, Any] = {"draft_seconds": rounds.draft_seconds(), **rounds.measure()}
    prediction = predicted_round(
        shape.spec, config, case.requests, case.rows, LENGTH, itemsize, nodes=nodes, bound=BOUND,
        with_lookup=nodes <= WITH_LOOKUP, accepted=found["tokens_per_round"] - 1, read_back=True,
    )  # fmt: skip
    seconds, rest = prediction.seconds(bandwidth), prediction.rest_seconds(bandwidth)
    # rows of the target's pass are absorbed then, not when a draft is made
    draft_bytes = draft_pass(config, 0, [LENGTH] * case.requests, itemsize)
    return found | {
        "memory_seconds": prediction.traffic.seconds(bandwidth),
        "memory_rest_share": prediction.traffic.rest / prediction.traffic.total,
        "draft_memory_seconds": draft_bytes.seconds(bandwidth),
        "launches": prediction.launches,
        "predicted_seconds": seconds,
        "predicted_rest_share": rest / seconds if rest is not None and seconds else None,
    }
