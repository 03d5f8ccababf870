"""The GPU's attention, checked where it runs: against its twins, and each row byte for byte in any company.

tests/kernels/test_paged_attention.py checks the same in Triton's interpreter, whose products are not a GPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from redraft.benchmarks.attention_cases import PAGES, Case, Texts, chain, comb
from redraft.benchmarks.kernel_checks import Check, difference, same_bytes
from redraft.kernels.attention_items import attention_items, attention_items_twin
from redraft.kernels.attention_partial import tickets
from redraft.kernels.paged_attention import PagedAttention, PagedTwin
from redraft.kernels.tree_attention import CHUNK, TwinAttention


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a target."""

    heads: int
    kv_heads: int
    dim: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads} x {self.dim}"


SHAPES = (Shape(9, 3, 64), Shape(4, 4, 64), Shape(32, 8, 128), Shape(16, 2, 128))
QUICK_SHAPES = (Shape(2, 1, 16),)
EDGES = (CHUNK, 2 * CHUNK)
QUICK_EDGES = (CHUNK,)
"""Where rows are compared: at these positions, and two on either side."""
COUNTS = (2, 3, 7, 16, 17, 33, 64)
"""Rows together."""
QUICK_COUNTS = (3,)
REPEATS = 50
"""Of what would come out differently if a program read chunks back before all were written: now and then."""
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
"""Against the twin, of values around 1 to 3: a weight near a tie may be rounded the other way."""
COARSE = {torch.float32: 2e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}
"""Against ``TwinAttention``, which rounds neither queries nor weights."""


def attention_checks(device: torch.device, dtypes: tuple[torch.dtype, ...], quick: bool = False) -> Iterator[Check]:
    """Checks of the kernels for caches of ``dtypes``; ``quick``: small ones, for trying the checks themselves."""
    shapes, counts = (QUICK_SHAPES, QUICK_COUNTS) if quick else (SHAPES, COUNTS)
    yield "attention's items are the twin's", partial(_items, device)
    for dtype in dtypes:
        for shape in shapes:
            name = f"attention {shape} {str(dtype).removeprefix('torch.')}"
            yield f"{name} near its twins", partial(_twins, device, shape, dtype)
            yield f"{name} alone, in prefill, chains and trees", partial(_companies, device, shape, dtype, quick)
            yield f"{name} among neighbours", partial(_neighbours, device, shape, dtype, counts)
            yield f"{name} however work is dealt out", partial(_dealt, device, shape, dtype)
            yield f"{name} in one launch or two", partial(_launches, device, shape, dtype, quick)


def attend(case: Case, bound: int = 0, programs: int | None = None, one_launch: bool | None = None) -> Tensor:
    """The kernels' result in fp32, so that no difference is rounded away."""
    attention = PagedAttention(case.rows, case.pages, bound or case.bound, programs=programs, one_launch=one_launch)
    return attention(case.q, case.key, case.value, torch.float32)


def _texts(slots: int, shape: Shape, dtype: torch.dtype) -> Texts:
    return Texts(slots, shape.heads, shape.kv_heads, shape.dim, dtype)


def _mixed(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    trees = (comb(0, CHUNK - 2, 4), chain(1, 2 * CHUNK - 2, 5), chain(2, 0, 1), comb(3, 5, 3))
    return _texts(4, shape, dtype).tree(*trees, padding=3).to(device)


def _items(device: torch.device) -> str | None:
    case = _mixed(QUICK_SHAPES[0], torch.float32, device)
    for lanes, run, slab in ((128, 16, 16), (64, 16, 48), (32, 64, 64)):
        sizes = {"lanes": lanes, "run": run, "slab": slab}
        chunks = -(-case.bound // lanes) + 1
        made = attention_items(case.rows, case.pages, chunks, **sizes)
        twin = attention_items_twin(case.rows, case.pages, chunks, **sizes)
        if problem := difference((made.total, made.row), (twin.total, twin.row), f"items of {lanes} lanes"):
            return problem
        for slab_number, count in enumerate(twin.total.tolist()):
            listed = made.table[:, slab_number, :count], twin.table[:, slab_number, :count]
            if problem := difference(*listed, f"list of {lanes} lanes"):
                return problem
    return None


def _twins(device: torch.device, shape: Shape, dtype: torch.dtype) -> str | None:
    case = _mixed(shape, dtype, device)
    out = attend(case)
    if out[-3:].any():
        return "rows of padding are not zero"
    for twin, limits in ((PagedTwin, TOLERANCE), (TwinAttention, COARSE)):
        clean = case.without_nan()
        wanted = twin(clean.rows, clean.pages, clean.bound)(clean.q, clean.key, clean.value, torch.float32)
        far = float((out - wanted)[:-3].abs().max())
        # not the other way round: NaN compares false
        if not far <= limits[dtype]:
            return f"{far:.2e} from {twin.__name__}, of {limits[dtype]:.2e} allowed"
    return None


def _companies(device: torch.device, shape: Shape, dtype: torch.dtype, quick: bool) -> str | None:
    texts = _texts(1, shape, dtype)

    def bits(case: Case, bound: int = 0) -> dict[int, Tensor]:
        out = attend(case.to(device), bound)
        return {at[1]: row for at, row in zip(case.place, out, strict=True) if at is not None}

    edges = QUICK_EDGES if quick else EDGES
    positions = [edge + offset for edge in edges for offset in range(-2, 3)]
    alone = {position: bits(texts.tree(chain(0, position, 1)))[position] for position in positions}
    passes = {}
    if not quick:
        passes["prefill of the whole"] = bits(texts.prefill((0, 0, 2 * CHUNK + 10), padding=2), bound=PAGES * CHUNK)
    for edge in edges:
        passes[f"prefill from before {edge}"] = bits(texts.prefill((0, edge - 3, 7), padding=2), bound=PAGES * CHUNK)
        passes[f"a chain before {edge}"] = bits(texts.tree(chain(0, edge - 5, 9)))
        passes[f"a tree before {edge}"] = bits(texts.tree(comb(0, edge - 3, 6), padding=1), bound=PAGES * CHUNK)
    for name, found in passes.items():
        met = [position for position in alone if position in found]
        wrong = [position for position in met if not same_bytes(found[position], alone[position])]
        if wrong or not met:
            return f"{name}: other bits than alone at positions {wrong} of {met}"
    return None


def _neighbours(device: torch.device, shape: Shape, dtype: torch.dtype, counts: tuple[int, ...]) -> str | None:
    slots = 6
    texts = _texts(slots, shape, dtype)
    wrong = []
    for count in counts:
        each = [count // slots + (slot < count % slots) for slot in range(slots)]
        together = texts.tree(*(chain(slot, 40 * slot, n) for slot, n in enumerate(each) if n))
        out = attend(together.to(device))
        for place in {0, count // 2, count - 1}:
            at = together.place[place]
            assert at is not None
            if not same_bytes(attend(texts.tree(chain(*at, 1)).to(device))[0], out[place]):
                wrong.append((count, place))
    return f"other bits than alone among (rows, place) {wrong}" if wrong else None


def _dealt(device: torch.device, shape: Shape, dtype: torch.dtype) -> str | None:
    case = _mixed(shape, dtype, device)
    out = attend(case)
    for programs in (1, 50):
        if not same_bytes(attend(case, programs=programs), out):
            return f"other bits by {programs} programs"
    return None if same_bytes(attend(case, bound=5_000), out) else "other bits where the context is padded"


def _launches(device: torch.device, shape: Shape, dtype: torch.dtype, quick: bool) -> str | None:
    trees = _mixed(shape, dtype, device)
    chains = _texts(6, shape, dtype).tree(*(chain(slot, 40 * slot, 10) for slot in range(6))).to(device)
    for case in (trees,) if quick else (trees, chains):
        apart = attend(case, one_launch=False)
        for programs in (3,) if quick else (1, 50, None):
            attention = PagedAttention(case.rows, case.pages, case.bound, programs=programs, one_launch=True)
            for _ in range(2 if quick else REPEATS):
                if not same_bytes(attention(case.q, case.key, case.value, torch.float32), apart):
                    return f"other bits in one launch of {programs or 'all'} programs"
                # what is read too early shows: it is not what the same chunk left the last time
                for tensor in (attention.partial.highest, attention.partial.weight, attention.partial.total):
                    tensor.fill_(torch.nan)
            if tickets(case.q.device).any():
                return f"a ticket was left behind by {programs or 'all'} programs"
    return None
