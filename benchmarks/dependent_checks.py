"""Kernels launched before the one before has ended (dependent_launch.py): do they wait for what they read?

A pass through layers of a target's shape, recorded as a CUDA graph and replayed many times, must have the bytes that it
has launched op by op, one kernel after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from redraft.benchmarks.kernel_checks import Check, same_bytes
from redraft.benchmarks.shape_target import random_weights
from redraft.kernels.attention import block_attention
from redraft.kernels.dependent_launch import allow
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK
from redraft.server.engine.recording import Recorder, cuda_recorder
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec

LAYERS = 4
REPLAYS = 20


@contextmanager
def dependent() -> Iterator[None]:
    """Within it kernels are launched so."""
    allow(True)
    try:
        yield
    finally:
        allow(False)


def dependent_checks(targets: Mapping[str, TargetSpec], device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """One check per shape and row count: a row's products alone, by ticket, and in passes of many rows."""
    for name, spec in targets.items():
        target = Target(spec, random_weights(replace(spec, layers=LAYERS), device, dtype), 4 * CHUNK)
        for rows in (1, 16, 200):
            yield f"{name}, {rows} rows", partial(early_pass, target, rows, dtype, cuda_recorder())


@torch.inference_mode()
def early_pass(target: Target, count: int, dtype: torch.dtype, record: Recorder) -> str | None:
    """What is wrong with a pass of ``count`` rows launched early."""
    device, spec = target.device, target.spec
    number = torch.arange(count, device=device)
    zeros = torch.zeros_like(number)
    rows = Rows(number + 7, zeros, number, zeros, number, zeros, zeros.unsqueeze(1), zeros[:2], zeros[:2])
    pages = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]], device=device)
    kv = torch.zeros(len(target.weights.layers), 2, 5 * CHUNK, spec.kv_heads, spec.head_dim, device=device, dtype=dtype)
    attend = block_attention(rows, pages, count, spec.head_dim)

    def run() -> Tensor:
        return target.logits(target.forward(rows.token, number, CHUNK + number, kv, attend))

    wanted = run().clone()
    with dependent():
        # a kernel is compiled and loaded when it is first launched, which a recording does not allow
        run()
        replay = record(run)
        for turn in range(REPLAYS):
            if not same_bytes(replay(), wanted):
                return f"other bytes at replay {turn}"
    return None
