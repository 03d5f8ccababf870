"""The ops over trees in compiled C (ngram_cpu.c, trees_cpu.c), for CPUs: a call each in place of tens of torch's.

Each takes what its op takes and returns what its twin returns; None, and nothing is done, where there is no library,
where a tensor is not a plain one of the CPU of the dtype and the shape that the code assumes, and where a number in it
would lead outside the others.  The twin then takes it, and its errors say what is wrong.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.rows import Rows

_Triple = tuple[Tensor, Tensor, Tensor]
_IDS, _REAL, _FLAG = torch.int64, torch.float32, torch.bool


def _library(*needs: tuple[Tensor, torch.dtype, tuple[int, ...]]) -> ctypes.CDLL | None:
    """The compiled code, where it may be given the addresses of these tensors."""
    for tensor, dtype, shape in needs:
        if not (_is_plain(tensor, dtype, shape) and tensor.is_contiguous()):
            return None
    return load_fused()


def _is_plain(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    # fake tensors and other subclasses have no memory, or want to see what is done with them
    known = type(tensor) is Tensor and tensor.is_cpu and not tensor.requires_grad
    return known and tensor.dtype is dtype and tensor.shape == shape


class NgramRule(ctypes.Structure):
    """``Rule`` of ngram_cpu.c: numbers of ``ngram.py``, columns to search, depth of the spine, drafted nodes."""

    _fields_ = [
        ("weights", ctypes.POINTER(ctypes.c_int64)),
        *((n, ctypes.c_int64) for n in ("recent", "recent_weight", "escape", "columns", "depths", "nodes")),
    ]


def ngram_compiled(tokens: Tensor, length: Tensor, active: Tensor, newest: Tensor, rule: NgramRule) -> _Triple | None:
    """``ngram``; in inactive slots all tokens and parents are 0."""
    slots, T = tokens.shape
    V, width = newest.shape[1], rule.nodes + 1
    library = _library(
        (tokens, _IDS, (slots, T)),
        (length, _IDS, (slots,)),
        (active, _FLAG, (slots,)),
        (newest, torch.int32, (slots, V)),
    )
    if library is None:
        return None
    token, parent = torch.empty(slots, width, dtype=_IDS), torch.empty(slots, width, dtype=_IDS)
    score = torch.empty(slots, width)
    refused = library.ngram(
        tokens.data_ptr(),
        length.data_ptr(),
        active.data_ptr(),
        newest.data_ptr(),
        ctypes.byref(rule),
        slots,
        T,
        V,
        token.data_ptr(),
        parent.data_ptr(),
        score.data_ptr(),
    )
    return None if refused else (token, parent, score)


def block_tree_compiled(anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int) -> _Triple | None:
    """``block_tree``, of arguments whose shapes fit; absent nodes' tokens are 0."""
    N, D, K = top_token.shape
    paired = top_logprob.dim() == 4
    library = _library(
        (anchor, _IDS, (N,)),
        (top_token, _IDS, (N, D, K)),
        (top_logprob, _REAL, (N, D, K, K) if paired else (N, D, K)),
    )
    if library is None:
        return None
    token, parent = torch.empty(N, nodes + 1, dtype=_IDS), torch.empty(N, nodes + 1, dtype=_IDS)
    score = torch.empty(N, nodes + 1)
    refused = library.block_tree(
        anchor.data_ptr(),
        top_token.data_ptr(),
        top_logprob.data_ptr(),
        N,
        D,
        K,
        paired,
        nodes,
        token.data_ptr(),
        parent.data_ptr(),
        score.data_ptr(),
    )
    return None if refused else (token, parent, score)


def accept_compiled(
    rows: Rows, choice: Tensor, tokens: Tensor, length: Tensor, limit: Tensor, active: Tensor, ends: Tensor
) -> tuple[Tensor, ...] | None:
    """``accept``; returns the fields of ``Committed`` in their order."""
    (R, W), (slots, T), E = rows.path.shape, tokens.shape, ends.shape[1]
    library = _library(
        *((tensor, _IDS, (R,)) for tensor in (rows.token, rows.parent, choice)),
        *((tensor, _IDS, (slots,)) for tensor in (rows.first_row, rows.row_count, length, limit)),
        (tokens, _IDS, (slots, T)),
        (active, _FLAG, (slots,)),
    )
    # of a wider table a round hands over the columns that its requests use
    together = E < 2 or ends.stride(1) == 1
    if library is None or not (_is_plain(ends, _IDS, (slots, E)) and together):
        return None
    out, number = torch.empty(2, slots, W, dtype=_IDS), torch.empty(4, slots, dtype=_IDS)
    refused = library.accept_rows(
        rows.token.data_ptr(),
        rows.parent.data_ptr(),
        rows.first_row.data_ptr(),
        rows.row_count.data_ptr(),
        choice.data_ptr(),
        tokens.data_ptr(),
        length.data_ptr(),
        limit.data_ptr(),
        active.data_ptr(),
        ends.data_ptr(),
        out.data_ptr(),
        number.data_ptr(),
        slots,
        T,
        R,
        W,
        E,
        ends.stride(0),
    )
    if refused:
        return None
    produced, path_row = out.unbind()
    return produced, *number.unbind(), path_row


def pack_tree_compiled(
    cand_token: Tensor, cand_parent: Tensor, cand_score: Tensor, active: Tensor, length: Tensor, R: int
) -> Rows | None:
    """``pack_tree``."""
    slots, W = cand_token.shape
    library = _library(
        (cand_token, _IDS, (slots, W)),
        (cand_parent, _IDS, (slots, W)),
        (cand_score, _REAL, (slots, W)),
        (active, _FLAG, (slots,)),
        (length, _IDS, (slots,)),
    )
    if library is None:
        return None
    row, path = torch.empty(6, R, dtype=_IDS), torch.empty(R, W, dtype=_IDS)
    of_slot, scratch = torch.empty(2, slots, dtype=_IDS), torch.empty(slots, W, dtype=_IDS)
    refused = library.pack_tree(
        cand_token.data_ptr(),
        cand_parent.data_ptr(),
        cand_score.data_ptr(),
        active.data_ptr(),
        length.data_ptr(),
        slots - 1,
        W,
        R,
        row.data_ptr(),
        path.data_ptr(),
        of_slot.data_ptr(),
        scratch.data_ptr(),
    )
    if refused:
        return None
    token, slot, position, depth, parent, index = row.unbind()
    first_row, row_count = of_slot.unbind()
    return Rows(token, slot, position, depth, parent, index, path, first_row, row_count)


def merge_trees_compiled(first: _Triple, second: _Triple) -> _Triple | None:
    """``merge_trees``."""
    (N, A), B = first[0].shape, second[0].shape[1]
    library = _library(
        *((tensor, dtype, (N, A)) for tensor, dtype in zip(first, (_IDS, _IDS, _REAL), strict=True)),
        *((tensor, dtype, (N, B)) for tensor, dtype in zip(second, (_IDS, _IDS, _REAL), strict=True)),
    )
    if library is None:
        return None
    width = A + B - 1
    token, parent = torch.empty(N, width, dtype=_IDS), torch.empty(N, width, dtype=_IDS)
    score = torch.empty(N, width)
    refused = library.merge_trees(
        *(tensor.data_ptr() for tensor in (*first, *second)),
        token.data_ptr(),
        parent.data_ptr(),
        score.data_ptr(),
        N,
        A,
        B,
    )
    return None if refused else (token, parent, score)
