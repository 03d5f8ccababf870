"""Fixtures that every test may use."""

import importlib.util
import os
from pathlib import Path

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
