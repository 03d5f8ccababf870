"""Training in several processes: ``accelerate launch`` starts them, and each finds the others here.

Without a launcher there is one process, and accelerate is not imported.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.together import ALONE, Together
from redraft.server.engine.progress import hush
from redraft.server.engine.types import RedraftError

PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which measures and fits temperatures; the launcher ends those that wait
for one that is gone."""
GRACE = 10.0
"""Seconds in which the main process tells of an error and ends, and with it the launcher all others."""


class Accelerated(Together):
    """One of several processes, each on a device of its own."""

    def __init__(self, cpu: bool) -> None:
        """Wait for the others; on GPUs, that of this process becomes torch's current one."""
        devices = torch.cuda.device_count()
        if not cpu and int(os.environ["LOCAL_RANK"]) >= devices:
            raise RedraftError(f"there are more processes than the {devices} GPUs that torch sees; launch {devices}")
        try:
            from accelerate import PartialState
            from accelerate.utils import reduce
        except ImportError:
            raise RedraftError(
                "training in several processes needs accelerate; install it with: pip install 'redraft[distributed]'"
            ) from None
        # Its default arguments are the group that exists when it is imported, which the optimizer does; they would keep
        # that group's threads beyond its end and into that of the interpreter, which they do not survive.
        importlib.import_module("torch.distributed.nn.functional")
        self.state, self.reduce = PartialState(cpu=cpu, timeout=PATIENCE), reduce
        self.rank, self.size = self.state.process_index, self.state.num_processes
        self.device = torch.device("cpu") if cpu else self.state.device

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Each of them over its way, the device's."""
        for tensor in tensors:
            tensor.copy_(self.reduce(tensor.to(self.device).contiguous(), "sum"))


@contextmanager
def gathered(device: str) -> Iterator[Together]:
    """The processes of this run; ``device`` is what was asked for.

    Only the main process tells what is going on.  An error that the user can mend comes up in all of them, and is the
    main one's to tell.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    together = Accelerated(cpu=device == "cpu" or not torch.cuda.is_available())
    if together.rank > 0:
        hush()
    try:
        yield together
    except (DraftError, RedraftError):
        if together.rank > 0:
            time.sleep(GRACE)  # if this process still lives then, the error is its own
        raise
    together.state.destroy_process_group()
