"""Programmatic dependent launch: a kernel's programs take their places while the kernel before still runs.

Between two kernels of a graph lie a microsecond or two in which a GPU does nothing.  Launched so, the next kernel is
there already and only waits (``wait_device``) for what the one before has written.  It reads nothing before that but
weights, which nobody writes, and those it may ask for meanwhile (``prefetch_device``).  Each kernel waits for the one
before to have ended altogether, so whatever is older has ended, too.

sm_90 and newer.  Off unless ``allow`` turns it on: what it gains has not been measured yet (gpu_suite can).
CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from redraft.kernels.triton_support import jit, tl

LEAST_CAPABILITY = 9
LINE = 128
"""Bytes that a prefetch brings."""
_allowed = False


def allow(on: bool) -> None:
    """From now on launch kernels so, where the device can.  Graphs keep what they were recorded with."""
    global _allowed
    _allowed = on


def launch_options(device: torch.device) -> dict[str, Any]:
    """Options for a kernel that has a constexpr ``DEPENDENT`` and waits where it is true."""
    if _allowed and device.type == "cuda" and _can(device):
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@cache
def _can(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= LEAST_CAPABILITY


@jit
def wait_device(DEPENDENT: tl.constexpr):
    """Let the next kernel in; then wait until the one before has ended and all that it wrote can be read."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@jit
def prefetch_device(p_lines):
    """Ask for the lines that ``p_lines``, a tile of pointers, point into, as far as the second cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [p_lines.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )
