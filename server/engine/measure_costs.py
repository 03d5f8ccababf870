"""Measures a ``CostTable`` on the engine's own state, before it serves; what was measured is kept in the cache folder.

Takes a second or two for a small target; a large one's big passes are left out and extrapolated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import torch

from redraft.drafts.base import Bounds, Drafter
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.config import PAGE
from redraft.server.engine.costs import CostTable, read_table
from redraft.server.engine.prefill_rows import prefill_rows
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.recording import MakeRecorder, RecordingError, recorded
from redraft.server.engine.round import Plan, forward_rows, run_round
from redraft.server.engine.rows_plan import BUCKETS, row_bucket
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.cache import cache_root
from redraft.server.engine.target.decoder import Target

SECONDS = 3.0
"""After so long the larger passes are left to extrapolation."""
CONTEXT = 1024
"""Positions at which attention is measured, less where there is no room."""
SIZES = tuple(size for size in BUCKETS if size % 3 == 0 or size & (size - 1) == 0)
"""Of the passes that are timed; the others lie between."""
SHARED = 32
"""Rows of the pass in which many share the keys and values."""
AGREE, MOST_RUNS = 0.05, 6
"""Runs are repeated, up to so many, until the two fastest agree so far."""
OFF = 0.3
"""Kept costs whose proportions are off by more are measured anew."""
LENGTH = 64
"""Of the texts that drafts are measured on."""


def cost_table(measurement: Measurement, most_rows: int, identity: str) -> tuple[CostTable, str]:
    """The table of an engine and a line on where it is from.  ``identity`` names all that costs depend on."""
    drafter, slots = measurement.drafter, measurement.state.slots
    parts = (identity, drafter.name, drafter.version, slots, most_rows, measurement.verified)
    name = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    path = cache_root() / "costs" / f"{name[:16]}.json"
    begun = time.perf_counter()
    with contextlib.suppress(OSError, ValueError):
        table = read_table(json.loads(path.read_text()))
        if measurement.confirms(table):
            return table, "as kept"
    table = measurement.table(most_rows)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next start a second
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{id(table)}.part")
        part.write_text(json.dumps(asdict(table)))
        part.replace(path)
    return table, f"measured in {time.perf_counter() - begun:.1f} s"


def rising(seconds: Sequence[float]) -> list[float]:
    """``seconds`` of ever more of something, none above a later one: what is was other work on the machine."""
    return [min(seconds[number:]) for number in range(len(seconds))]


class Measurement:
    """Measures one engine's passes and drafts, while nothing else uses its state."""

    def __init__(
        self,
        state: DeviceState,
        target: Target,
        drafter: Drafter,
        make_attention: MakeAttention,
        make_recorder: MakeRecorder | None = None,
    ) -> None:
        """With ``make_recorder`` what is timed are recordings, as rounds will be."""
        self.state, self.target, self.drafter, self.make_attention = state, target, drafter, make_attention
        self.make_recorder = make_recorder
        self.pages = state.kv.shape[2] // PAGE - 1
        # no more than is measured: on a CPU the cache is mapped when it is touched, and what was borrowed is zeroed
        self.room = min(min(self.pages, state.page_table.shape[1]) * PAGE, state.positions, CONTEXT + PAGE)
        self.verified = row_bucket(state.slots * (1 + drafter.max_nodes))
        """Rows of the largest round; what a pass has beyond them is prefill, whose logits nobody needs."""

    def table(self, most_rows: int) -> CostTable:
        """Measured anew."""
        begun = time.perf_counter()
        sizes, passes = list[int](), list[float]()
        room = self.room
        with self._borrowed(1, room):
            for rows in SIZES:
                wanted = rows <= row_bucket(most_rows) and rows <= room
                if not wanted or (time.perf_counter() - begun > SECONDS and len(sizes) > 1):
                    break
                sizes.append(rows)
                passes.append(self._seconds(self._pass(0, rows)))
            passes = rising(passes)
            per_request, per_row = self._attention(min(CONTEXT, room - SHARED), sizes, passes)
        requests, drafts = list[int](), list[float]()
        count = 1
        while count <= self.state.slots and 2 * count <= self.pages:
            with self._borrowed(count, 2 * PAGE):
                requests.append(count)
                bounds = Bounds(LENGTH, count, sampled=False)
                drafts.append(self._seconds(partial(self.drafter.propose, self.state.draft, bounds)))
            count = min(2 * count, self.state.slots) if count < self.state.slots else count + 1
        return CostTable(
            tuple(sizes),
            tuple(passes),
            per_request,
            per_row,
            tuple(requests),
            tuple(rising(drafts)),
            self._rest(passes[0]),
        )

    def confirms(self, table: CostTable) -> bool:
        """Whether a few of its entries are still in proportion: it may have been measured while others were busy."""
        sizes = [table.rows[0], table.rows[len(table.rows) // 2], table.rows[-1]]
        with self._borrowed(1, self.room):
            now = [self._seconds(self._pass(0, rows)) / table.forward(rows) for rows in sizes if rows <= self.room]
        with self._borrowed(1, 2 * PAGE):
            draft = self._seconds(partial(self.drafter.propose, self.state.draft, Bounds(LENGTH, 1, sampled=False)))
        # what takes next to no time may vary
        now.append((draft + now[0] * table.passes[0] / 10) / (table.draft(1) + table.passes[0] / 10))
        return max(now) <= (1 + OFF) * min(now)

    def _attention(self, context: int, sizes: list[int], passes: list[float]) -> tuple[float, float]:
        """What keys and values cost that are read once a request, and what every row that sees them adds."""
        few, many = sizes[0], max((size for size in sizes if size <= SHARED), default=sizes[0])
        if context < PAGE or few == many:
            return 0.0, 0.0
        context = context // PAGE * PAGE
        first, second = (
            max(self._seconds(self._pass(context, rows)) - passes[sizes.index(rows)], 0.0) / context
            for rows in (few, many)
        )
        per_row = max(second - first, 0.0) / (many - few)
        return max(first - few * per_row, 0.0), per_row

    def _pass(self, start: int, count: int) -> Callable[[], object]:
        """A target's pass, to be run before another is made: it reads what is written here."""
        self.state.prefill.write([Chunk(0, start, count)], count)
        rows = prefill_rows(self.state, count)

        def run() -> object:
            hidden = forward_rows(self.state, self.target, self.drafter, rows, start + count, self.make_attention)
            return self.target.logits(hidden[: self.verified])

        return run

    def _rest(self, smallest: float) -> float:
        """Of a round beside the target's pass and the draft."""
        with self._borrowed(1, 2 * PAGE):
            plan = Plan(row_bucket(1), LENGTH + 16, 1, sampled=False, filtered=False, drafting=False)
            taken = self._seconds(lambda: run_round(self.state, self.target, self.drafter, plan, self.make_attention))
        return max(taken - smallest, 0.0)

    @contextlib.contextmanager
    def _borrowed(self, requests: int, room: int) -> Iterator[None]:
        """Slots 0 and up with ``LENGTH`` tokens each and pages for ``room`` positions; afterwards as before."""
        state, each = self.state, room // PAGE
        for slot in range(requests):
            state.page_table[slot, :each] = torch.arange(1 + slot * each, 1 + (slot + 1) * each)[
                : state.page_table.shape[1]
            ]
        state.length[:requests] = LENGTH
        state.limit[:requests] = state.positions
        state.active[:requests] = True
        try:
            yield
        finally:
            state.active[:] = False
            used = slice(PAGE, (1 + requests * each) * PAGE)
            for kv in (state.kv, state.draft_kv):
                kv[:, :, used] = 0
            for table in (state.page_table, state.length, state.limit, state.tokens):
                table.zero_()

    def _seconds(self, run: Callable[[], object]) -> float:
        """The best of some, after one that may compile or allocate: until the two best agree, for others use it too."""
        run()
        if self.make_recorder is not None:
            with contextlib.suppress(RecordingError):  # the first round will say so
                run = recorded(self.make_recorder(), run)
        times = list[float]()
        while len(times) < 2 or (len(times) < MOST_RUNS and times[1] > (1 + AGREE) * times[0]):
            self._wait()
            begun = time.perf_counter()
            run()
            self._wait()
            insort(times, time.perf_counter() - begun)
        return times[0]

    def _wait(self) -> None:
        if self.state.device.type == "cuda":
            torch.cuda.synchronize()
