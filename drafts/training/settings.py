"""What a training run was asked for.  Everything that changes its numbers is here and is kept with its saves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.optimise import Schedule


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What every way of training has."""

    start: str = ""
    """Version of the draft that training goes on from; it settles the architecture.  Empty: the target's layers."""
    steps: int = 1400
    batch: int = 8
    """Texts a step."""
    micro_batch: int = 1
    """Texts a pass; on a GPU more, on a CPU one text fills the machine."""
    max_length: int = 1024
    optimiser: str = "muon"
    rate: float = 5e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 20
    decay_share: float = 0.25
    """Share of the steps in which the rate falls at the end."""
    gamma: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ``DraftError`` for what cannot be trained."""
        one_of("optimiser", self.optimiser, ("muon", "adamw"))
        at_least(self, {"steps": 1, "batch": 1, "micro_batch": 1})
        if not 0 <= self.decay_share <= 1:
            raise DraftError("decay_share must lie in 0 ... 1")
        if not (self.rate > 0 and self.gamma > 0 and self.clip > 0):
            raise DraftError("rate, gamma and clip must be above 0")

    @property
    def schedule(self) -> Schedule:
        """Of the learning rate; ``steps`` may be changed between two runs, which moves its end."""
        return Schedule(self.steps, min(self.warmup, self.steps), round(self.steps * self.decay_share))

    @property
    def asked(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def facts(self, texts: Sequence[Text], identity: str, products: torch.dtype) -> dict[str, Any]:
        """What must be the same for a run to go on from a save; ``products``: what it multiplies in."""
        kept = {name: value for name, value in self.asked.items() if name != "steps"}
        digest = hashlib.sha256(repr([(t.tokens, t.prompt) for t in texts]).encode()).hexdigest()[:16]
        return {"settings": kept, "texts": digest, "target": identity, "dtype": dtype_name(products)}


@dataclass(frozen=True, slots=True)
class SftSettings(RunSettings):
    """Supervised training of a DFlash draft; the defaults are what the shipped draft was trained with."""

    layers: int = 2
    block_size: int = 6
    taps: tuple[int, ...] = ()
    """Empty: ``tap_count`` layers by the published rule."""
    tap_count: int = 3
    causal: bool = False
    vocab: int = 8192
    """Tokens the draft can propose; 0 keeps the target's whole vocabulary."""
    mask_token_id: int = 16
    copied: tuple[int, ...] = ()
    """Target layers to start from; empty: the last ones."""
    output_scale: float = 0.3
    anchors: int = 96
    """Most anchors drawn from a text."""
    weights: str = "dpace"
    """``dpace``, ``decay`` (by ``gamma``) or ``uniform`` along the block."""
    alpha: float = 0.5
    soft: float = 0.5
    """Share of the KL to the target's distribution, the rest being hard labels."""

    def __post_init__(self) -> None:
        """Raise ``DraftError`` for what cannot be trained."""
        RunSettings.__post_init__(self)
        one_of("weights", self.weights, ("dpace", "decay", "uniform"))
        at_least(self, {"layers": 1, "block_size": 2, "anchors": 1, "tap_count": 1})
        if not 0 <= self.soft <= 1 or not 0 <= self.alpha <= 1:
            raise DraftError("soft and alpha must lie in 0 ... 1")


def dtype_name(dtype: torch.dtype) -> str:
    """As saves and cards have it, like ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse another ``value``."""
    if value not in allowed:
        raise DraftError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def at_least(settings: RunSettings, least: Mapping[str, int]) -> None:
    """Refuse what lies below."""
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise DraftError(f"{name} must be at least {low}, not {getattr(settings, name)}")


def require_same(saved: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Refuse to resume a run that was another run; ``DraftError`` names what differs."""
    differing = [name for name in ("texts", "target") if saved.get(name) != now[name]]
    # saves from before it was noted have no dtype: see ``run_state.saved_products``
    differing += ["dtype"] if saved.get("dtype", now["dtype"]) != now["dtype"] else []
    before = saved.get("settings", {})
    differing += [name for name, value in now["settings"].items() if before.get(name) != value]
    if differing:
        raise DraftError(
            f"{where} belongs to a run with other {', '.join(differing)}; give the same ones, or another --out"
        )
