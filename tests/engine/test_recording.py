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

from redraft.server.engine.recording import RecordingError, recorded


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
