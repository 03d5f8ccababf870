"""Schedule and optimisers."""

import math

import pytest
import torch
from torch import nn

from redraft.drafts.training.optimise import Optimiser, Schedule
from redraft.drafts.training.settings import SftSettings


def test_the_schedule_rises_stays_and_falls() -> None:
    schedule = Schedule(steps=20, warmup=4, decay=5)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [schedule(step) for step in range(4, 15)] == [1.0] * 11
    # 1 - sqrt(i / 6) for the i-th of 5 steps: never 0 while there is a step to make
    assert [schedule(step) for step in range(15, 20)] == pytest.approx([1 - math.sqrt(i / 6) for i in range(1, 6)])
    assert schedule(19) > 0


def test_a_schedule_without_ends_and_one_with_a_floor() -> None:
    assert [Schedule(5, 0, 0)(step) for step in range(5)] == [1.0] * 5
    assert Schedule(10, 0, 10, floor=0.3)(9) == 0.3


def test_settings_give_the_schedule_its_ends() -> None:
    assert SftSettings(steps=50, warmup=5, decay_share=0.2).schedule == Schedule(50, 5, 10)
    assert SftSettings(steps=3, warmup=20, decay_share=0.0).schedule == Schedule(3, 3, 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({f"layers_{i}": nn.Sequential(nn.Linear(6, 6, bias=False), nn.LayerNorm(6)) for i in (1, 10)})


def advance(module: nn.Module, optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        for layer in module.values():
            x = layer(x)
        (x * torch.arange(6)).tanh().sum().backward()
        optimiser.step(1.0 / (step + 1))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_restored_state_goes_on_bit_for_bit(kind: str) -> None:
    whole, cut = network(), network()
    first = Optimiser(whole, kind, 1e-2, 0.1)
    advance(whole, first, range(3))
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    cut.load_state_dict(whole.state_dict())
    second = Optimiser(cut, kind, 1e-2, 0.1)
    second.restore(saved)
    advance(whole, first, range(3, 6))
    advance(cut, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_lies_by_parameter_and_restoring_takes_copies(kind: str) -> None:
    module = network()
    optimiser = Optimiser(module, kind, 1e-2, 0.0)
    advance(module, optimiser, range(1))
    names = {name for name, _ in module.named_parameters()}
    tensors = optimiser.tensors()
    assert {key.rpartition("/")[0] for key in tensors} == names
    keys = {key.rpartition("/")[2] for key in tensors if key.startswith("layers_1.0.weight/")}
    assert keys == ({"momentum_buffer"} if kind == "muon" else {"step", "exp_avg", "exp_avg_sq"})
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    other = network()
    Optimiser(other, kind, 1e-2, 0.0).restore(kept)
    restored = Optimiser(other, kind, 1e-2, 0.0)
    restored.restore(kept)
    advance(other, restored, range(1, 2))
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())


def test_norms_do_not_decay() -> None:
    for kind in ("muon", "adamw"):
        module = network()
        optimiser = Optimiser(module, kind, 1e-2, 0.5)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimiser.step(1.0)
        moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name, p in before.items() if p.dim() == 2}
        assert all(p.grad is None for p in module.parameters())
