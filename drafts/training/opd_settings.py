"""What a Draft-OPD run was asked for (arXiv 2605.29343), and the paper's ablations of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.settings import RunSettings, at_least, one_of


@dataclass(frozen=True, slots=True)
class OpdSettings(RunSettings):
    """On-policy distillation of a finished draft; the defaults are the paper's objective."""

    rate: float = 3e-3
    steps: int = 400
    decay_share: float = 0.5
    gamma: float = 0.8
    """Weight of a rejected row is gamma ** (k - 1), k its number in the block."""
    anchors: str = "rounds"
    """``rounds``: where decoding would have drafted; ``random``: as many, drawn at random."""
    tree_nodes: int = 0
    """Drafted nodes of the tree that decides what a round accepts; 0: the chain."""
    loss: str = "kl"
    """``kl`` over the vocabulary; ``scalar``: the released code's, of one token a row; ``tv``: expected acceptance."""
    aggregate: str = "means"
    """``means`` of the two streams (paper) or ``pooled`` rows (released code)."""
    accepted_kl: str = "forward"
    rejected_kl: str = "reverse"
    accepted_weight: float = 1.0
    rejected_weight: float = 1.0
    correction: float = 0.0
    """Weight, in the accepted stream, of the row whose token the target corrects (released code: 1)."""
    suffix_teacher: str = "trajectory"
    """Of rows behind a round's first wrong token: the target after the drafted tokens (``draft``, the paper's), after
    the text (``trajectory``), or ``none``: they are left out."""
    hard: float = 0.0
    """Share of cross entropy with the text in the accepted stream of answers at temperature 0."""

    def __post_init__(self) -> None:
        """Raise ``DraftError`` for what cannot be trained."""
        RunSettings.__post_init__(self)
        one_of("anchors", self.anchors, ("rounds", "random"))
        one_of("loss", self.loss, ("kl", "scalar", "tv"))
        one_of("aggregate", self.aggregate, ("means", "pooled"))
        one_of("accepted_kl", self.accepted_kl, ("forward", "reverse"))
        one_of("rejected_kl", self.rejected_kl, ("forward", "reverse"))
        one_of("suffix_teacher", self.suffix_teacher, ("draft", "trajectory", "none"))
        at_least(self, {"tree_nodes": 0, "accepted_weight": 0, "rejected_weight": 0, "correction": 0})
        if not self.gamma <= 1 or not 0 <= self.hard <= 1 or self.tree_nodes > 63:
            raise DraftError("gamma may be at most 1, hard must lie in 0 ... 1 and tree_nodes in 0 ... 63")
        if self.accepted_weight + self.rejected_weight <= 0:
            raise DraftError("accepted_weight and rejected_weight cannot both be 0")
        if self.hard and (self.loss != "kl" or self.accepted_kl != "forward"):
            raise DraftError("hard labels belong to the forward KL of accepted rows")
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse what the chosen loss would ignore."""
        unused = {
            "kl": (),
            "scalar": ("accepted_kl", "rejected_kl"),
            "tv": (
                "gamma",
                "aggregate",
                "accepted_kl",
                "rejected_kl",
                "accepted_weight",
                "rejected_weight",
                "correction",
            ),
        }[self.loss]
        plain = {field.name: field.default for field in fields(self)}
        given = [name for name in unused if getattr(self, name) != plain[name]]
        if given:
            raise DraftError(f"loss {self.loss} does not use {', '.join(given)}; leave it as it is")


ABLATIONS = ("no-decay", "all-forward", "all-reverse", "random-anchors", "naive")


def ablated(settings: OpdSettings, name: str) -> OpdSettings:
    """One change of the paper's Table 3; ``naive`` trains on the verified text alone (its Figure 2)."""
    match name:
        case "no-decay":
            return replace(settings, gamma=1.0)
        case "all-forward":
            return replace(settings, rejected_kl="forward")
        case "all-reverse":
            return replace(settings, accepted_kl="reverse", hard=0.0)
        case "random-anchors":
            return replace(settings, anchors="random")
        case "naive":
            return replace(settings, rejected_weight=0.0, correction=1.0)
    raise DraftError(f"no ablation {name!r}; there are {', '.join(ABLATIONS)}")
