"""The power meter, with a stand-in for NVML: none of the machines that run this need have a GPU."""

from __future__ import annotations

import sys
import time
import types

import pytest

from redraft.benchmarks.cost_energy import EnergyMeter


class NVMLError(Exception):
    pass


def stand_in(millijoules: dict[int, list[float]]) -> types.SimpleNamespace:
    """A module whose GPUs' counters give these values in turn."""
    counters = {gpu: iter(values) for gpu, values in millijoules.items()}

    def handle(gpu: int) -> int:
        if gpu not in counters:
            raise NVMLError
        return gpu

    def total(gpu: int) -> float:
        for value in counters[gpu]:
            return value
        raise NVMLError

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter's clock is read at 10 s and at 14 s."""
    clock = iter((10.0, 14.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))


@pytest.mark.usefixtures("seconds")
def test_mean_power_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in({0: [1_000.0, 401_000.0], 1: [0.0, 800_000.0]}))
    # 400 J and 800 J in 4 s
    assert EnergyMeter((0, 1)).watts() == pytest.approx(300.0)


@pytest.mark.parametrize("gpus", [(0,), (3,)], ids=["a counter that stops", "no such GPU"])
@pytest.mark.usefixtures("seconds")
def test_what_cannot_be_read_is_unknown(monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in({0: [1_000.0]}))
    assert EnergyMeter(gpus).watts() is None


def test_without_the_package_or_a_driver_power_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter().watts() is None

    def broken() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=broken))
    assert EnergyMeter().watts() is None
