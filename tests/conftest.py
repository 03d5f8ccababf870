"""Fixtures that every test may use."""

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

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
def smollm2() -> Path:
    """Folder of the embedded target, fetched and converted where it is absent; skips where it cannot be had."""
    from redraft.server.engine.target.embedded import embedded_folder
    from redraft.server.engine.types import RedraftError

    try:
        return embedded_folder()
    except RedraftError as error:
        pytest.skip(f"the embedded target cannot be had: {error}")


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
