"""Which failures of a recording are its own, and which are the device's or its memory's.

Recordings are stand-ins that fail as a GPU's do: ``torch.cuda.graph`` ends the recording in any case, and that it
cannot hides why it was broken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from redraft.server.engine.parts import Parts, complete
from redraft.server.engine.recording import RecordingError, cuda_recorder, recorded, recorded_parts


def fault(code: int, text: str = "CUDA error: something\nCompile with TORCH_USE_CUDA_DSA") -> torch.AcceleratorError:
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


SHORT = torch.OutOfMemoryError("CUDA out of memory.")
UNSUPPORTED, INVALIDATED = 900, 901
ILLEGAL_ADDRESS, NO_MEMORY, NOT_SUPPORTED = 700, 2, 801


def recorder(error: Exception, ending: Exception | None = None) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """What it runs fails with ``error``, and then its end with ``ending``."""

    @contextmanager
    def recording() -> Iterator[None]:
        try:
            yield
        finally:
            if ending is not None:
                raise ending

    def record(run: Callable[[], Any]) -> Callable[[], Any]:
        with recording():
            raise error

    return record


@pytest.mark.parametrize("ending", [None, fault(INVALIDATED)], ids=["ended", "not to be ended"])
@pytest.mark.parametrize(
    "error",
    [fault(UNSUPPORTED), fault(NOT_SUPPORTED), RuntimeError("Triton Error [CUDA]: not permitted")],
    ids=["not while recording", "not supported", "not the accelerator's"],
)
def test_what_cannot_be_recorded(error: Exception, ending: Exception | None) -> None:
    with pytest.raises(RecordingError) as raised:
        recorded(recorder(error, ending), lambda: 1)
    assert str(raised.value) == str(ending or error).partition("\n")[0]


@pytest.mark.parametrize("ending", [None, fault(INVALIDATED)], ids=["ended", "not to be ended"])
@pytest.mark.parametrize("error", [SHORT, fault(ILLEGAL_ADDRESS), torch.AcceleratorError("?")], ids=["oom", "700", "?"])
def test_what_is_wrong_with_the_device_is_raised(error: Exception, ending: Exception | None) -> None:
    with pytest.raises(type(error)) as raised:
        recorded(recorder(error, ending), lambda: 1)
    assert raised.value is error


def test_a_graph_for_which_there_is_no_memory() -> None:
    """Making one tells it in another way than allocating a tensor does."""
    with pytest.raises(torch.OutOfMemoryError, match="something"):
        recorded(recorder(fault(NO_MEMORY)), lambda: 1)


def test_what_can_be_recorded() -> None:
    assert recorded(lambda run: run, lambda: 3)() == 3


class Cuda:
    """Of ``torch.cuda`` what a recorder uses: where a recording cannot be ended, its stream stays the current one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.pools, self.graphs = "default", 0, 0
        self.used, self.did = list[int](), list[str]()
        """Pools of recordings, and everything that was done, in order."""
        for name in ("graph_pool_handle", "current_stream", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def current_stream(self) -> str:
        return self.current

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Graph, *, pool: int, capture_error_mode: str) -> Iterator[None]:
        # other threads may do as they like
        assert capture_error_mode == "thread_local"
        self.current = "recording"
        self.used.append(pool)
        self.did.append(f"begin {graph.number}")
        yield
        self.did.append(f"end {graph.number}")
        self.current = "default"


class Graph:
    """A graph of ``Cuda``'s."""

    def __init__(self, cuda: Cuda) -> None:
        cuda.graphs += 1
        self.cuda, self.number = cuda, cuda.graphs

    def replay(self) -> None:
        assert self.cuda.current == "default"
        self.cuda.did.append(f"replay {self.number}")


def test_a_graph_gives_what_its_recording_made(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, streams = Cuda(monkeypatch), list[str]()
    record = cuda_recorder()
    launch = record(lambda: streams.append(cuda.current) or [7])
    assert (streams, cuda.current) == (["recording"], "default")
    assert cuda.did == ["begin 1", "end 1"], "nothing is launched by recording it"
    assert launch() is launch() == [7]
    assert (len(streams), cuda.did[2:]) == (1, ["replay 1", "replay 1"])
    record(list)
    launch()
    cuda_recorder()(list)
    assert cuda.did[4:] == ["begin 2", "end 2", "replay 1", "begin 3", "end 3"]
    assert cuda.used == [1, 1, 2], "one pool for all graphs of a recorder"


def test_parts_are_graphs_of_one_pool_with_the_hosts_work_between_their_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)

    def begin() -> Parts[list[int]]:
        for part in (1, 2, 3):
            cuda.did.append(f"part {part}")
            if part < 3:
                yield lambda allow, part=part: allow.append(f"host {part}")  # type: ignore[misc,attr-defined]
        return [7]

    parts = recorded_parts(cuda_recorder(), begin, 3)
    assert cuda.did == [did.format(n) for n in (1, 2, 3) for did in ("begin {}", "part {}", "end {}")]
    for _ in range(2):
        cuda.did.clear()
        assert complete(parts(), cuda.did) == [7]  # type: ignore[arg-type]
        assert cuda.did == ["replay 1", "host 1", "replay 2", "host 2", "replay 3"]
    assert cuda.used == [1, 1, 1]


def test_a_part_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, left = Cuda(monkeypatch), list[str]()

    def begin() -> Parts[int]:
        try:
            yield lambda allow: None
            raise fault(UNSUPPORTED)
        finally:
            left.append(cuda.current)

    with pytest.raises(RecordingError):
        recorded_parts(cuda_recorder(), begin, 3)
    assert (left, cuda.current) == (["recording"], "default")
    assert cuda.did == ["begin 1", "end 1", "begin 2"]


def test_after_a_recording_that_failed_work_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)

    def failing() -> None:
        raise fault(UNSUPPORTED)

    with pytest.raises(RecordingError):
        recorded(cuda_recorder(), failing)
    assert cuda.current == "default"
