"""Optimisers of the draft's weights, and the warm-up–stable–decay schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redraft.drafts.training.muon import StackedMuon


@dataclass(frozen=True, slots=True)
class Schedule:
    """Share of the peak learning rate at every step: linear up, constant, then 1 - sqrt down to ``floor``.

    Warm-up–stable–decay (MiniCPM, arXiv 2404.06395); the form of the decay from arXiv 2405.18392.
    """

    steps: int
    warmup: int
    decay: int
    """Steps of the decay at the end."""
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """For the step that is about to be made, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        into = step - (self.steps - self.decay)
        if into < 0:
            return 1.0
        return max(self.floor, 1.0 - math.sqrt((into + 1) / (self.decay + 1)))


class Optimiser:
    """Muon for the matrices and AdamW for the norms, or AdamW for all, behind one step."""

    def __init__(
        self,
        module: nn.Module,
        kind: str,
        rate: float,
        weight_decay: float,
        products: torch.dtype = torch.float32,
    ) -> None:
        """``kind`` is ``muon`` or ``adamw``; ``rate`` is the peak, on AdamW's scale for both.

        ``products``: what Muon multiplies in.
        """
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.names = {id(parameter): name for name, parameter in named.items()}
        matrices = [p for p in named.values() if p.dim() == 2]
        rest = [p for p in named.values() if p.dim() != 2]
        self.parts: list[torch.optim.Optimizer] = []
        if kind == "muon":
            muon = StackedMuon(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            muon.products = products
            self.parts.append(muon)
            self.parts.append(torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), foreach=False))
        else:
            groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
            self.parts.append(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), foreach=False))
        self.rate = rate

    def step(self, share: float) -> None:
        """Update with ``share`` of the peak rate and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """State by ``<parameter>/<key>``, for safetensors."""
        found = {}
        for parameter, state in self._states():
            for key, value in state.items():
                found[f"{self.names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what ``tensors`` gave."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    prefix = self.names[id(parameter)] + "/"
                    for name, value in tensors.items():
                        if name.startswith(prefix):
                            kept = value.clone() if name.endswith("/step") else value.to(parameter.device).clone()
                            part.state[parameter][name[len(prefix) :]] = kept

    def _states(self) -> Iterable[tuple[Tensor, dict[str, Tensor]]]:
        for part in self.parts:
            yield from part.state.items()
