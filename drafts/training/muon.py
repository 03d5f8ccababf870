"""Muon (Jordan et al. 2024) with matrices of one shape orthogonalised together.

torch's own takes them one by one: some 900 small kernels a step for a draft of 3 layers, 26 of a step's 107 ms on an
H100, and always in bf16, which some CPUs multiply slower than fp32 (docs/log.md).  State and settings are torch's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """Same update as ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``."""

    products = torch.float32
    """What Newton-Schulz multiplies in; the result is a direction, for which bf16 is exact enough."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        if closure is not None:
            raise ValueError("gradients are made before the step")
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                self._update(group, parameters, 0.2 * max(shape) ** 0.5)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], ratio: float) -> None:
        """Of parameters of one shape; ``ratio`` makes the update's root mean square 0.2 times the rate."""
        rate, momentum = group["lr"], group["momentum"]
        gradients: list[Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        kept = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, kept, momentum) if group["nesterov"] else kept
        stacked = torch.stack(ahead).to(self.products)
        made = orthogonal(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, list(made.to(parameters[0].dtype).unbind()), alpha=-rate * ratio)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """[n, rows, columns] with all singular values brought near 1, by Newton-Schulz."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
