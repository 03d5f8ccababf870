"""Power of the GPUs, by NVML's energy counter (package nvidia-ml-py); unknown where there is none, never guessed."""

from __future__ import annotations

import importlib
import time
from typing import Any


class EnergyMeter:
    """Mean power since it was made, of GPUs with an energy counter (Volta and later)."""

    def __init__(self, gpus: tuple[int, ...] = (0,)) -> None:
        """``gpus`` as NVML numbers them, which is without ``CUDA_VISIBLE_DEVICES``."""
        self._nvml = _nvml()
        self._gpus = gpus
        self._begun, self._joules = time.perf_counter(), self._read()

    def watts(self) -> float | None:
        """Mean power in watts, all GPUs together; None where it cannot be known."""
        now, joules = time.perf_counter(), self._read()
        if joules is None or self._joules is None or now <= self._begun:
            return None
        return (joules - self._joules) / (now - self._begun)

    def _read(self) -> float | None:
        if self._nvml is None:
            return None
        try:
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in self._gpus]
            # millijoules since the driver was loaded
            return sum(float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles) / 1e3
        except self._nvml.NVMLError:
            return None


def _nvml() -> Any:
    """The module, ready to be asked; None without the package, the driver or a GPU."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
