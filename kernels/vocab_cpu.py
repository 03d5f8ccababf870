"""Rows of logits in compiled C: choice, noise, log-probabilities, penalties and masks, a draft's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.rows import Rows

MOST = 64
"""Columns kept of a row at most, as vocab_cpu.c has it."""
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def is_compiled_for(logits: Tensor) -> bool:
    """Whether the functions here take ``logits``: plain CPU memory, fp32 or bf16, and a library."""
    plain = type(logits) is Tensor and logits.device.type == "cpu" and logits.dtype in _DTYPES
    return plain and logits.numel() > 0 and load_fused() is not None


def greedy(logits: Tensor) -> Tensor:
    """``sample_cpu.greedy_rows`` of ``logits`` [R, V] -> [R] int64."""
    library, logits = load_fused(), logits.contiguous()
    assert library is not None
    choice = torch.empty(logits.shape[0], dtype=torch.int64)
    library.greedy(logits.data_ptr(), choice.data_ptr(), *logits.shape, _DTYPES[logits.dtype])
    return choice


def sampled_rows(
    logits: Tensor,
    row_slot: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    top_k: Tensor,
    seed: Tensor,
    filtered: bool,
) -> Tensor:
    """``sample.sample`` with the table's tensors spelled out (sample_cpu.c): choice [R] int64."""
    library, logits = load_fused(), logits.contiguous()
    assert library is not None
    choice = torch.empty(logits.shape[0], dtype=torch.int64)
    # all of them, or OpenMP would end those that a round has no row for, and the next product begin them again
    threads = torch.get_num_threads()
    scratch = torch.empty(threads, logits.shape[1], dtype=torch.int64) if filtered else None
    table = (row_slot, row_position, temperature, top_p, min_p, top_k, seed)
    columns = [tensor.contiguous() for tensor in table]
    library.sample_rows(
        logits.data_ptr(),
        *(column.data_ptr() for column in columns),
        None if scratch is None else scratch.data_ptr(),
        choice.data_ptr(),
        *logits.shape,
        threads,
        _DTYPES[logits.dtype],
    )
    return choice


def best_of_rows(logits: Tensor, scale: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``kept`` (at most ``MOST``) largest of every row of ``logits`` [N, D, C] divided by ``scale`` [D] fp32.

    Returns the numbers [N, D, kept] fp32, best first, their columns int64, equals in order, and the log-sum-exp of the
    whole row [N, D, 1].  A NaN counts as -inf, and +inf as fp32's largest.
    """
    library, logits, scale = load_fused(), logits.contiguous(), scale.contiguous()
    assert library is not None
    N, D, C = logits.shape
    z, column = torch.empty(N, D, kept), torch.empty(N, D, kept, dtype=torch.int64)
    total = torch.empty(N, D, 1)
    addresses = (tensor.data_ptr() for tensor in (logits, scale, z, column, total))
    library.best_of_rows(*addresses, N * D, D, C, kept, _DTYPES[logits.dtype])
    return z, column, total


def noise_of_ids(seed: Tensor, t: Tensor, ids: Tensor) -> Tensor | None:
    """``noise.gumbel`` of a few tokens: [R, N] fp32; None where it is not compiled, or not for these tensors."""
    plain = type(ids) is Tensor and ids.device.type == "cpu" and ids.dim() == 2
    known = plain and all(t.dtype == torch.int64 for t in (seed, t, ids)) and seed.shape == t.shape == ids.shape[:1]
    library = load_fused() if known else None
    if library is None:
        return None
    out, given = torch.empty(ids.shape), [tensor.contiguous() for tensor in (seed, t, ids)]
    library.gumbel_ids(*(tensor.data_ptr() for tensor in given), out.data_ptr(), *ids.shape)
    return out


def scores_of_rows(logits: Tensor, choice: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``logprobs.logprobs`` with ``top`` of at most ``MOST``: chosen, rank, token and value."""
    library, logits, choice = load_fused(), logits.contiguous(), choice.contiguous()
    assert library is not None
    R, V = logits.shape
    chosen, rank = torch.empty(R), torch.empty(R, dtype=torch.int64)
    token, value = torch.empty(R, top, dtype=torch.int64), torch.empty(R, top)
    addresses = (tensor.data_ptr() for tensor in (logits, choice, chosen, rank, token, value))
    library.log_probabilities(*addresses, R, V, top, _DTYPES[logits.dtype])
    return chosen, rank, token, value


def adjusted_rows(logits: Tensor, rows: Rows, penalties: Sequence[Tensor] | None, allowed: Tensor | None) -> Tensor:
    """``adjust.adjust`` of penalties (repetition, frequency, presence and count) and mask: [R, V] fp32."""
    library, logits = load_fused(), logits.contiguous()
    assert library is not None
    (R, V), z = logits.shape, torch.empty(logits.shape)
    tables: Sequence[Tensor | None] = (None,) * 4 if penalties is None else penalties
    given = (logits, rows.slot, rows.path, rows.token, rows.first_row, *tables, allowed)
    columns = [None if tensor is None else tensor.contiguous() for tensor in given]
    addresses = (None if column is None else column.data_ptr() for column in columns)
    library.adjust_rows(*addresses, z.data_ptr(), R, V, rows.path.shape[1], _DTYPES[logits.dtype])
    return z
