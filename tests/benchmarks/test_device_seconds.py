"""What is timed on a device, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redraft.benchmarks.device_seconds import DeviceClock, captured, device_seconds

CPU = torch.device("cpu")


def test_on_a_cpu_it_is_the_clocks_time() -> None:
    runs = []
    assert device_seconds(lambda: runs.append(1), CPU, passes=3) > 0
    assert len(runs) == 4, "one more, which compiles"
    assert captured(runs.clear, CPU) == runs.clear


def test_the_device_has_something_to_do_while_the_host_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of what a GPU is asked for: it is idle, copies, and only then the first event is recorded."""
    log = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 2.5

    class Ahead:
        def __getitem__(self, number: int) -> Any:
            return self

        def copy_(self, other: Any) -> None:
            log.append("copy")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))
    clock = DeviceClock(CPU)
    clock.ahead = Ahead()  # type: ignore[assignment]
    assert clock.seconds(lambda: log.append("run")) == 0.0025
    assert log == ["idle", "copy", "record", "run", "record", "wait"]
