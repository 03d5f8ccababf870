"""What decoding one request at a time is predicted to reach, plain and speculative; what a peer cannot do without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from redraft.benchmarks.predict import Prediction, predicted_prefill, predicted_round, predicted_step
from redraft.benchmarks.traffic import LAUNCH_SECONDS
from redraft.drafts.dflash_config import DFlashConfig
from redraft.server.engine.target.spec import TargetSpec

PEER_LAUNCHES = 8
"""A layer's seven products, which transformers does not merge, and its attention."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What is decoded, on average; that an answer has so many tokens and a round so many is no matter of shapes."""

    prompt: int
    tokens: float
    tau: float | None
    """Tokens of a round."""

    @property
    def context(self) -> int:
        """In the middle of an answer."""
        return self.prompt + round(self.tokens / 2)


@dataclass(frozen=True, slots=True)
class Drafting:
    """How an engine drafts: with a DFlash draft, n-gram lookup, or both in one tree."""

    config: DFlashConfig | None
    lookup: bool
    nodes: int
    """That each of them proposes."""
    verified: int
    """That a round verifies."""


def expected_speed(
    spec: TargetSpec, drafting: Drafting | None, answers: Answers, itemsize: int, bytes_per_second: float
) -> dict[str, Any]:
    """Tokens per second by bytes alone (``floor``) and with launches (``predicted``), as an engine runs its rounds.

    ``drafting``: None for a draft whose launches are not counted, of which nothing is predicted.
    """
    prefill = predicted_prefill(spec, answers.prompt, itemsize)
    step = predicted_step(spec, 1, 1, answers.context, itemsize, read_back=True)
    found: dict[str, Any] = {
        "context": answers.context,
        "plain_step_bytes": step.traffic.total,
        "plain_step_milliseconds": {
            "floor": 1e3 * step.traffic.seconds(bytes_per_second),
            "predicted": _milliseconds(step, bytes_per_second),
        },
        "plain": _decoding(prefill, step, answers.tokens, answers.tokens, bytes_per_second),
    }
    if drafting is None or not answers.tau:
        return found | {"speculative": {"floor": None, "predicted": None}}
    round_ = predicted_round(
        spec, drafting.config, 1, 1 + drafting.verified, answers.context, itemsize, nodes=drafting.nodes,
        with_lookup=drafting.lookup, accepted=answers.tau - 1, read_back=True,
    )  # fmt: skip
    rounds = math.ceil(answers.tokens / answers.tau)
    return found | {
        "rows": 1 + drafting.verified,
        "round_milliseconds": _milliseconds(round_, bytes_per_second),
        "speculative": _decoding(prefill, round_, answers.tokens, rounds, bytes_per_second),
    }


def bound_of_peer(spec: TargetSpec, context: int, itemsize: int, bytes_per_second: float) -> float | None:
    """How many times as fast plain decoding is predicted to be, at least, as a peer that reads the same bytes.

    The peer has no fewer than ``PEER_LAUNCHES`` launches a layer and one for the head, in a graph, and a host that
    takes no time at all: what it has beside, and what its host takes, cannot be told without running it.
    """
    step = predicted_step(spec, 1, 1, context, itemsize, read_back=True)
    ours = step.seconds(bytes_per_second)
    theirs = step.traffic.seconds(bytes_per_second) + (PEER_LAUNCHES * spec.layers + 1) * LAUNCH_SECONDS
    return None if ours is None else theirs / ours


def _decoding(
    prefill: Prediction, step: Prediction, tokens: float, steps: float, bandwidth: float
) -> dict[str, float | None]:
    """Tokens per second of answers of ``tokens`` tokens in ``steps`` steps."""
    moved = prefill.traffic.seconds(bandwidth) + steps * step.traffic.seconds(bandwidth)
    before, each = prefill.seconds(bandwidth), step.seconds(bandwidth)
    predicted = None if before is None or each is None else tokens / (before + steps * each)
    return {"floor": tokens / moved, "predicted": predicted}


def _milliseconds(one: Prediction, bandwidth: float) -> float | None:
    seconds = one.seconds(bandwidth)
    return None if seconds is None else 1e3 * seconds
