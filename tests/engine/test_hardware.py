"""What training multiplies in."""

import pytest
import torch

from redraft.server.engine import hardware
from redraft.server.engine.hardware import choose_training_dtype
from redraft.server.engine.types import RedraftError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("ratio", "dtype"), [(4.5, torch.bfloat16), (1.1, torch.float32), (0.5, torch.float32)])
def test_a_cpu_trains_in_bf16_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: torch.dtype
) -> None:
    seconds = {torch.float32: ratio, torch.bfloat16: 1.0}
    monkeypatch.setattr(hardware, "_product_seconds", seconds.__getitem__)
    chosen, why = choose_training_dtype("auto", CPU)
    assert chosen == dtype
    assert f"{ratio} times as fast" in why


def test_what_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hardware, "_product_seconds")
    assert choose_training_dtype("fp32", CPU) == (torch.float32, "dtype: fp32, as asked")
    assert choose_training_dtype("auto", torch.device("cuda")) == (torch.bfloat16, "dtype: bf16")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("saved", "name"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")])
def test_a_run_goes_on_in_what_it_began_with(
    monkeypatch: pytest.MonkeyPatch, device: str, saved: torch.dtype, name: str
) -> None:
    monkeypatch.delattr(hardware, "_product_seconds")
    found = choose_training_dtype("auto", torch.device(device), saved)
    assert found == (saved, f"dtype: {name}, in which the run goes on")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_asked_for_is_taken_on_every_device(device: str) -> None:
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for saved in (None, torch.bfloat16, torch.float32):
            assert choose_training_dtype(name, torch.device(device), saved) == (dtype, f"dtype: {name}, as asked")
    with pytest.raises(RedraftError, match="fp16 is not for training"):
        choose_training_dtype("fp16", torch.device(device))


def test_products_are_timed() -> None:
    assert all(0 < hardware._product_seconds(dtype) < 60 for dtype in (torch.float32, torch.bfloat16))
