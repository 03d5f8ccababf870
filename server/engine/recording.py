"""Recording work on the device, to launch it as one; and what it means that this failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch

from redraft.server.engine.parts import Between, Parts

T = TypeVar("T")

NO_MEMORY = 2
"""cudaErrorMemoryAllocation; the allocator tells it as ``OutOfMemoryError``, making a graph does not."""
ABOUT_RECORDING = {800, 801, *range(900, 910)}
"""cudaErrorNotPermitted, cudaErrorNotSupported and cudaErrorStreamCapture...: the device is well."""


class RecordingError(Exception):
    """Something cannot be recorded; it can be run as it is."""


class Recorder(Protocol):
    """Makes recordings that share memory, since they never run at once."""

    def __call__(self, run: Callable[[], T]) -> Callable[[], T]:
        """Runs nothing: what it returns does, each time it is called, and gives the same tensors anew."""


MakeRecorder = Callable[[], Recorder]
"""Each has memory of its own."""


def cuda_recorder() -> Recorder:
    """Records on the current GPU, as CUDA graphs in one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], T]) -> Callable[[], T]:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # a recording that cannot be ended leaves its own stream behind as the current one
        with torch.cuda.stream(here), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()

        def replay() -> T:
            graph.replay()
            return made

        return replay

    return record


def recorded(record: Recorder, run: Callable[[], T]) -> Callable[[], T]:
    """``run``, recorded; ``RecordingError`` says why it cannot be.  What is wrong with the device itself is raised."""
    try:
        return record(run)
    except RuntimeError as error:
        for one in _chain(error):
            if isinstance(one, torch.OutOfMemoryError):
                raise one from None
            if isinstance(one, torch.AcceleratorError):
                code = getattr(one, "error_code", None)
                if code == NO_MEMORY:
                    raise torch.OutOfMemoryError(str(one)) from None
                if code not in ABOUT_RECORDING:
                    raise one from None
        raise RecordingError(str(error).partition("\n")[0]) from error


def recorded_parts(record: Recorder, begin: Callable[[], Parts[T]], count: int) -> Callable[[], Parts[T]]:
    """The ``count`` parts of what ``begin`` begins, each recorded by itself; raises what ``recorded`` raises.

    What a part leaves to a later one stays where it is only until another recording is launched: whoever begins what
    this returns goes through with it first.
    """
    running: Parts[T]

    def part(number: int) -> Between | T:
        nonlocal running
        if number == 0:
            running = begin()
        try:
            return next(running)
        except StopIteration as end:
            return cast(T, end.value)

    launches: list[Callable[[], Any]] = [recorded(record, partial(part, number)) for number in range(count)]

    def replay() -> Parts[T]:
        for launch in launches[:-1]:
            yield launch()
        return cast(T, launches[-1]())

    return replay


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what came before it: that a recording could not be ended hides why it was broken off."""
    here: BaseException | None = error
    while here is not None:
        yield here
        here = here.__context__
