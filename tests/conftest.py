"""Fixtures that every test may use."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog

# pytest takes in what goes through logging and shows it where a test fails; printed, a line that a server's thread
# writes between two tests would get past it
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
)

if importlib.util.find_spec("torch") is not None:
    import torch

    if not torch.cuda.is_available():
        # before anything imports triton: kernels are interpreted where there is no gpu to run them
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests lie in."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of processes that run as a user's: this one's without what tests set for kernels."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded target, fetched and converted where it is absent; skips where it cannot be had."""
    from redraft.server.engine.target.embedded import embedded_folder
    from redraft.server.engine.types import RedraftError

    try:
        return embedded_folder()
    except RedraftError as error:
        pytest.skip(f"the embedded target cannot be had: {error}")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads only wait for one another in models this small; on a busy machine that takes 50 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def poisoned() -> Callable[..., AbstractContextManager[Any]]:
    """A context in which fresh memory holds NaN, or ``whole`` where it is of integers, so nobody can rely on it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    fresh = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided"}

    class Poisoned(TorchDispatchMode):
        """Fills what the ops that promise nothing return."""

        def __init__(self, real: float = float("nan"), whole: int = -7_777_777) -> None:
            super().__init__()
            self.real, self.whole = real, whole

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func._schema.name in fresh:
                whole = (
                    self.whole % 2
                    if made.dtype == torch.bool
                    else self.whole % 128
                    if made.dtype.itemsize == 1
                    else self.whole
                )
                made.fill_(self.real if made.is_floating_point() else whole)
            return made

    return Poisoned


@pytest.fixture
def own_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton interprets, matrix products whose elements are made of their own row and column alone.

    That is what tensor cores have and the CPU's library has not: there a row's bits follow its place in the tile.  bf16
    is kept as bits by the interpreter and rounded by cutting off, so it is to be compared with itself alone.
    """
    if torch.cuda.is_available():
        return
    interpreter: Any = pytest.importorskip("triton.runtime.interpreter")
    import numpy as np

    from redraft.kernels import chunk_attention, sum_chunks

    def real(x: Any) -> Any:
        bits = x.dtype.scalar.name == "bf16"
        return (x.data.astype(np.uint32) << 16).view(np.float32) if bits else x.data.astype(np.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        left, right, total = real(a), real(b), d.data.copy()
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[k]
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    # steps without a chunk take as long as others here
    monkeypatch.setattr(sum_chunks, "STEP", 2)
    monkeypatch.setattr(chunk_attention, "MERGE_STEP", 2)
