"""Which drafts are trained for the comparison, from what, and for how many operations.

One *trunk* is trained by SFT at a constant rate.  From its weights, before any decay of the rate, go the arms that are
compared: the same warm-up, the same rate, the same decay, the same operations; they differ in what they learn from.
EAGLE-3 is another architecture and starts from nothing, with the operations of trunk and arm together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.opd_settings import ABLATIONS, OpdSettings, ablated
from redraft.drafts.training.settings import SftSettings
from redraft.server.train_start import Settings

TRUNK = "trunk"
TRUNK_FLOPS, ARM_FLOPS = 2e15, 1e15
"""Operations, where the command does not say."""
DECAY = 0.4
"""Share of an arm in which the rate falls."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One draft to train."""

    name: str
    settings: Settings
    start: str = ""
    """The arm whose draft it goes on from."""
    trunk: float = 0.0
    """Share of the trunk's operations that it may spend, besides ..."""
    share: float = 1.0
    """... this share of an arm's."""

    def budget(self, trunk: float, arm: float) -> float:
        """Operations."""
        return self.trunk * trunk + self.share * arm


@dataclass(frozen=True, slots=True)
class Choices:
    """What all arms share."""

    batch: int = 64
    micro_batch: int = 64
    """Of SFT; the others' passes hold more of a text: they take ..."""
    chain_batch: int = 16
    """... so many texts."""
    rate: float = 5e-3
    arm_rate: float = 4e-3
    eagle3_rate: float = 5e-3
    layers: int = 3
    block_size: int = 8
    vocab: int = 16384
    max_length: int = 768
    anchors: int = 96
    warmup: int = 20
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of the trunk: taps, causal ..."""


def arms(choices: Choices) -> list[Arm]:
    """All of them, the ones that others start from first."""
    common: dict[str, Any] = {name: getattr(choices, name) for name in ("batch", "max_length", "seed")}
    branch = (
        common
        | {"micro_batch": choices.chain_batch}
        | {"rate": choices.arm_rate, "warmup": choices.warmup, "decay_share": DECAY}
    )
    sft = SftSettings(
        layers=choices.layers,
        block_size=choices.block_size,
        vocab=choices.vocab,
        anchors=choices.anchors,
        rate=choices.rate,
        warmup=choices.warmup,
        decay_share=0.0,
        micro_batch=choices.micro_batch,
        **common,
        **choices.more,
    )
    paper = OpdSettings(suffix_teacher="draft", **branch)
    reached = replace(ablated(paper, "naive"), hard=0.5)
    eagle3 = Eagle3Settings(
        draft_vocab=choices.vocab,
        rate=choices.eagle3_rate,
        warmup=choices.warmup,
        decay_share=DECAY / 2,
        micro_batch=choices.chain_batch,
        **common,
    )

    def opd(name: str, settings: OpdSettings, share: float = 1.0) -> Arm:
        return Arm(name, settings, TRUNK, share=share)

    return [
        Arm(TRUNK, sft, trunk=1.0, share=0.0),
        Arm("dflash-sft", replace(sft, rate=choices.arm_rate, decay_share=DECAY), TRUNK),
        opd("draft-opd", paper),
        Arm("eagle3", eagle3, trunk=1.0),
        opd("opd-trajectory", replace(paper, suffix_teacher="trajectory")),
        opd("opd-no-suffix", replace(paper, suffix_teacher="none")),
        opd("opd-correction", replace(paper, correction=1.0)),
        opd("opd-pooled", replace(paper, aggregate="pooled", correction=1.0)),
        opd("opd-hard", replace(paper, suffix_teacher="trajectory", correction=1.0, hard=0.5)),
        opd(
            "opd-forward",
            replace(paper, suffix_teacher="trajectory", correction=1.0, hard=0.5, rejected_kl="forward"),
        ),
        # what wins where SFT has stopped (test_plateau.py), and the same at other anchors: which of the two is it?
        opd("opd-reached", reached),
        opd("opd-reached-random", replace(reached, anchors="random")),
        opd("opd-tv", replace(OpdSettings(loss="tv", **branch), suffix_teacher="trajectory")),
        opd(
            "opd-scalar",
            OpdSettings(loss="scalar", aggregate="pooled", correction=1.0, suffix_teacher="draft", **branch),
        ),
        *(opd(f"opd-{name}", ablated(paper, name)) for name in ABLATIONS),
    ]
