"""Which device, which dtype, and how much memory there is; each answer with its reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from redraft.server.engine.types import RedraftError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CLEARLY = 1.2
"""So many times as fast bf16 has to be for training in it on a CPU; near 1 the choice would change from run to run."""


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """``auto``, ``cpu`` or ``cuda`` -> the device and a line that says why; ``cuda`` without one is an error."""
    if wanted == "cpu":
        return torch.device("cpu"), "device: cpu, as asked"
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        built = torch.version.cuda or "no CUDA"
        raise RedraftError(
            f"--device cuda: torch {torch.__version__} (built for {built}) sees no CUDA device; "
            "check the driver with nvidia-smi, or use --device cpu"
        )
    if found:
        return torch.device("cuda"), f"device: cuda ({torch.cuda.get_device_name()}), " + (
            "as asked" if wanted == "cuda" else "because torch sees it"
        )
    return torch.device("cpu"), "device: cpu, because torch sees no CUDA device"


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    lines = (line for line in info.read_text().splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())


def choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """``auto`` is bf16 on a GPU and on CPUs that multiply it, fp32 elsewhere."""
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise RedraftError("--dtype fp16 is for GPUs; on a CPU use bf16 or fp32")
        return DTYPES[wanted], f"dtype: {wanted}, as asked"
    if device.type == "cuda":
        return torch.bfloat16, "dtype: bf16"
    fast = cpu_flags() & {"avx512_bf16", "amx_bf16", "amx_tile"}
    if fast:
        return torch.bfloat16, f"dtype: bf16, because the CPU has {', '.join(sorted(fast))}"
    return torch.float32, "dtype: fp32, because the CPU has neither AVX512-BF16 nor AMX"


def choose_training_dtype(
    wanted: str, device: torch.device, saved: torch.dtype | None = None
) -> tuple[torch.dtype, str]:
    """As ``choose_dtype``, but ``auto`` on a CPU is bf16 only where that multiplies many rows clearly faster.

    Which is measured: with AVX512-BF16, bf16 has been found to take twice as long as fp32 on one CPU and a quarter of
    it on another (docs/log.md).  A run that goes on keeps what it began with, ``saved``: a measurement may come out
    otherwise.  fp16 is a ``RedraftError``: its range is too small for gradients that nothing scales.
    """
    if wanted == "fp16":
        raise RedraftError("--dtype fp16 is not for training; use bf16 or fp32")
    if wanted == "auto" and saved is not None:
        name = next(name for name, dtype in DTYPES.items() if dtype == saved)
        return saved, f"dtype: {name}, in which the run goes on"
    if wanted != "auto" or device.type != "cpu":
        return choose_dtype(wanted, device)
    ratio = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    if ratio > CLEARLY:
        return torch.bfloat16, f"dtype: bf16, {ratio:.1f} times as fast as fp32 here"
    return torch.float32, f"dtype: fp32, since bf16 is {ratio:.1f} times as fast here"


def _product_seconds(dtype: torch.dtype) -> float:
    """Of a product as training has them; the best of some."""
    rows, weight = torch.ones(1024, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        rows @ weight.T
        best = min(best, time.perf_counter() - begun)
    return best


def available_bytes(device: torch.device, share: float) -> int:
    """Memory the engine may take: ``share`` of a GPU's total less what others hold, or 80 % of what a host has free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, free - int(total * (1 - share)))
    return int(_host_free() * 0.8)


def _host_free() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        # the kernel gives file pages back when it must
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free = min(free, int(text) - int(used.read_text()) + int(stat.get("inactive_file", 0)))
    return max(free, 0)


def architecture(device: torch.device) -> str:
    """Names the kind of hardware for the fingerprint."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return f"{torch.backends.cpu.get_cpu_capability()}-{torch.get_num_threads()}"


def machine(device: torch.device) -> str:
    """Names the very machine, by what its speed depends on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model} {torch.get_num_threads()} threads"
