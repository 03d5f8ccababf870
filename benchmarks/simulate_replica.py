"""One simulated engine: ``Engine.step`` with the real scheduler and pacer, on a clock instead of a device.

Step for step as server/engine/engine.py; that both do the same is tested (tests/benchmarks/test_simulate_real.py).
Torch-free.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass

from redraft.benchmarks.simulate_device import Commit, Slot, run_round, seconds
from redraft.benchmarks.simulate_script import Job
from redraft.benchmarks.simulate_trace import proposal
from redraft.server.engine.costs import Costs, CostTable, Work
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.rows_plan import MIN_ROWS, row_bucket
from redraft.server.engine.scheduler import PrefillChunk, Scheduler
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.types import FinishReason, RedraftError, Request, RoundOutput, SamplingParams


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is like, apart from its costs."""

    slots: int
    pages: int
    max_model_len: int
    tree_rows: int
    """Cells beyond the committed ones that a round may write for one request."""
    most_rows: int
    most_nodes: int
    """Nodes that a request may have proposed in a round."""
    speculation: str = "auto"
    lag: int = 0
    """Rounds that the host is behind: 0 on a CPU, 1 on a GPU, whose passes hide what the host does."""
    host_seconds: float = 0.0
    """Of a step, outside of the pass."""
    adaptive: bool = True
    """Whether the pacer knows what passes cost."""


@dataclass(slots=True)
class Counts:
    """What a replica did."""

    rounds: int = 0
    """Passes in which requests decoded."""
    drafting: int = 0
    """Of these, with a draft."""
    prefill_only: int = 0
    requests: int = 0
    """Of all rounds."""
    nodes: int = 0
    """Verified, of all rounds."""
    rows: int = 0
    """Of all passes, padding included."""
    busy: float = 0.0
    """Seconds of passes."""
    policy: float = 0.0
    """Real seconds that scheduler and pacer took on this machine; not in the simulated time."""


@dataclass(frozen=True, slots=True)
class _Pending:
    work: Work
    seconds: float
    ends: float
    commits: list[Commit]


class Replica:
    """One engine; the caller keeps the clock."""

    def __init__(self, setup: Setup, table: CostTable) -> None:
        self.setup, self.table = setup, table
        # prompts have nothing in common here, so there is nothing to reuse
        self.scheduler = Scheduler(setup.slots, setup.pages, setup.max_model_len, setup.tree_rows, reuse=False)
        costs = Costs(table) if setup.adaptive else None
        self.pacer = Pacer(setup.most_rows, setup.most_nodes, setup.speculation, costs)
        self.counts = Counts()
        self._pending: deque[_Pending] = deque()
        self._jobs: dict[str, Job] = {}
        self._device: dict[str, Slot] = {}
        self._free_at = self._now = 0.0

    @property
    def busy(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._pending)

    def submit(self, job: Job) -> str:
        """Queue ``job``; returns its id, ``RedraftError`` if it can never run."""
        request = Request(str(job.number), (0,) * job.prompt_tokens, SamplingParams(job.output_tokens), reuse=False)
        if refusal := self.scheduler.refusal(request):
            raise RedraftError(refusal)
        self._jobs[request.request_id] = job
        self.scheduler.add(request)
        return request.request_id

    def step(self, now: float) -> tuple[float, list[RoundOutput]]:
        """One step from ``now`` on: when it returns, and what it brings."""
        begun = time.perf_counter()
        self._now = now + self.setup.host_seconds
        outputs = self._make_room()
        for sequence in self.scheduler.admit():
            self._admit(sequence)
        decoding = self.scheduler.decoding()
        pace = self.pacer.step(decoding, self.scheduler.prefilling())
        chunks = self.scheduler.prefill(pace.prefill)
        if decoding:
            self._pending.append(self._launch(decoding, pace, chunks))
        elif chunks:
            self.counts.prefill_only += 1
            self._run(self._work((), row_bucket(pace.prefill), pace, chunks))
            if not self.setup.lag:
                self._now = self._free_at
        for chunk in chunks:
            chunk.sequence.prefilled(chunk.count)
        while len(self._pending) > (self.setup.lag if self.scheduler.decoding() else 0):
            outputs += self._collect(self._pending.popleft())
        if not self.busy:
            self.scheduler.check_integrity()
        self.counts.policy += time.perf_counter() - begun
        return self._now, outputs

    def _make_room(self) -> list[RoundOutput]:
        outputs: list[RoundOutput] = []
        while self._pending and self.scheduler.is_short(len(self._pending) + 1):
            outputs += self._collect(self._pending.popleft())
        self.scheduler.grow(len(self._pending) + 1)
        return outputs

    def _admit(self, sequence: Sequence) -> None:
        name = sequence.request.request_id
        said = len(sequence.tokens) - len(sequence.request.prompt)
        total = sequence.limit - len(sequence.request.prompt)
        self._device[name] = Slot(sequence, self._jobs[name].script, said, total, self.pacer.allowed(sequence))

    def _launch(self, decoding: Many[Sequence], pace: Pace, chunks: Many[PrefillChunk]) -> _Pending:
        prefill = sum(chunk.count for chunk in chunks)
        rows = max(len(decoding) + pace.nodes, MIN_ROWS)
        total = row_bucket(rows + prefill)
        trust = None
        if len(decoding) > 1 and pace.drafting:
            trust = {s.running_slot: self.pacer.acceptance.trust(s.request.request_id) for s in decoding}
        slots = [self._device[sequence.request.request_id] for sequence in decoding]
        # beside prefill, padding is prefill's; else it verifies more nodes
        commits = run_round(slots, rows if chunks else total, trust, drafting=pace.drafting)
        self.counts.rounds += 1
        self.counts.drafting += pace.drafting
        self.counts.requests += len(commits)
        self.counts.nodes += sum(commit.drafted for commit in commits)
        work = self._work(decoding, total, pace, chunks)
        took = self._run(work)
        return _Pending(work, took, self._free_at, commits)

    def _work(self, decoding: Many[Sequence], rows: int, pace: Pace, chunks: Many[PrefillChunk]) -> Work:
        prefill, start = sum(chunk.count for chunk in chunks), chunks[0].start if chunks else 0
        return self.pacer.work(decoding, rows, pace.drafting, prefill, start)

    def _run(self, work: Work) -> float:
        """The device takes up ``work`` as soon as it is told and free."""
        took = seconds(self.table, work)
        self._free_at = max(self._free_at, self._now) + took
        self.counts.busy += took
        self.counts.rows += work.rows
        return took

    def _collect(self, pending: _Pending) -> list[RoundOutput]:
        self._now = max(self._now, pending.ends)
        commits = [commit for commit in pending.commits if commit.sequence.slot is not None]
        self.pacer.took(pending.work, pending.seconds)
        if pending.work.drafting:
            sequences = [commit.sequence for commit in commits]
            self.pacer.gained(sequences, sum(c.drafted for c in commits), sum(c.accepted for c in commits))
            for commit in commits:
                seen = proposal(commit.tree, commit.tokens, commit.drafted)
                self.pacer.proposed(commit.sequence.request.request_id, seen)
        return [self._output(commit) for commit in commits]

    def _output(self, commit: Commit) -> RoundOutput:
        sequence, name = commit.sequence, commit.sequence.request.request_id
        sequence.committed([0] * commit.tokens)
        if commit.finished:
            self.scheduler.release(name)
            self.pacer.forget(name)
            del self._device[name], self._jobs[name]
        return RoundOutput(
            name,
            (0,) * commit.tokens,
            accepted=commit.accepted,
            drafted=commit.drafted,
            finish_reason=FinishReason.LENGTH if commit.finished else None,
        )
