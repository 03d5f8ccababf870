"""The engine: admits requests, runs steps, reads back what they committed.

It knows token ids, not text.  One thread owns it; ``step`` runs one pass of the target at most, prefill and round
together, so that callers can deliver tokens and take in requests between two passes.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many

import torch

from redraft.drafts.base import Drafter
from redraft.kernels.attention import MakeAttention
from redraft.kernels.logprobs import Logprobs
from redraft.server.engine.grammar import Grammars
from redraft.server.engine.graphs import Graphs
from redraft.server.engine.guiding import TreeMasks, force, is_guided, obeyed
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.parts import Parts, complete
from redraft.server.engine.planning import make_plan
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.progress import say
from redraft.server.engine.readback import Outcome, PendingRound, Stopwatch, read_back
from redraft.server.engine.recording import MakeRecorder
from redraft.server.engine.round import Plan, Ran, round_parts, run_prefill
from redraft.server.engine.scheduler import PrefillChunk, Scheduler
from redraft.server.engine.scores import Asked, PromptScores, scored_prompt
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.types import EngineInfo, FinishReason, RedraftError, Request, RoundOutput, StepOutput
from redraft.server.engine.verified import verified_nodes


class Engine:
    """One target, one drafter, many requests; built by ``load.build_engine``."""

    def __init__(
        self,
        info: EngineInfo,
        target: Target,
        drafter: Drafter,
        state: DeviceState,
        scheduler: Scheduler,
        make_attention: MakeAttention,
        pacer: Pacer,
        grammars: Grammars,
        make_recorder: MakeRecorder | None = None,
    ) -> None:
        """``make_recorder`` is for graphs of passes; without it every pass is launched op by op."""
        self.info = info
        self.target = target
        self.state = state
        self.scheduler = scheduler
        self.make_attention = make_attention
        self.pacer = pacer
        self.grammars = grammars
        # a GPU's results are read one round behind, so that launching never waits for them
        self.lag = 1 if state.device.type == "cuda" else 0
        self.pending: deque[PendingRound] = deque()
        self.graphs = Graphs(self._run, make_recorder, state.slots, state.positions)
        self.prompt_scores = PromptScores()
        self.drafter = drafter

    @property
    def drafter(self) -> Drafter:
        """What proposes; exchanged only while the engine is idle."""
        return self._drafter

    @drafter.setter
    def drafter(self, drafter: Drafter) -> None:
        if self.busy:
            raise RuntimeError("the drafter is exchanged only while the engine is idle")
        self._drafter = drafter
        self.pacer.proposed_nodes = drafter.max_nodes
        # pages with another draft's keys and values, or without any, would make this one draft badly
        self.scheduler.version = drafter.version if drafter.context.layers else ""
        self.graphs.drafter = drafter

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or self.pending)

    def submit(self, request: Request) -> None:
        """Queue ``request``; raises ``RedraftError`` if it can never run."""
        if refusal := self.scheduler.refusal(request) or request.params.refusal(self.info.vocab_size):
            raise RedraftError(refusal)
        if request.params.prompt_logprobs is not None and request.reuse:
            raise RedraftError("prompt_logprobs needs every row of the prompt computed: reuse must be False")
        if not all(0 <= token < self.info.vocab_size for token in request.prompt):
            raise RedraftError(f"token ids must lie in 0 ... {self.info.vocab_size - 1}")
        self.scheduler.add(request, self.grammars.matcher(request.grammar) if request.grammar else None)

    @torch.inference_mode()
    def cancel(self, request_id: str) -> None:
        """Forget a request; its slot and pages are free at once.  Unknown ids are ignored."""
        self._release(request_id)

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """Make room, admit what fits, run one pass, read back what is due."""
        outputs = self._make_room()
        prefilled, short = 0, None
        try:
            for sequence in self.scheduler.admit():
                outputs += self._admit(sequence)
            prefilled = self._pass()
            self.scheduler.relief.passed()
        except torch.OutOfMemoryError as error:
            short = str(error)
        if short is not None:  # not before the error is gone, which holds what the pass had made
            outputs += self._relieve(short)
        while len(self.pending) > self._behind():
            outputs += self._collect(self.pending.popleft())
        if not self.busy:
            self.scheduler.check_integrity()
        self.scheduler.tally.passed(prefilled + sum(len(output.tokens) for output in outputs))
        return StepOutput(tuple(outputs), self.scheduler.stats())

    def _pass(self) -> int:
        """One pass for everybody who runs; returns how many tokens it prefilled."""
        decoding = self.scheduler.decoding()
        pace = self.pacer.step(decoding, self.scheduler.prefilling())
        chunks = self.scheduler.prefill(pace.prefill)
        scored = self._launch(decoding, pace, chunks) if decoding or chunks else ()
        for chunk, scores in zip(chunks, scored or [None] * len(chunks), strict=True):
            if scores is not None:
                self.prompt_scores.found(chunk.sequence.request.request_id, chunk.start, scores)
            chunk.sequence.prefilled(chunk.count)
            self.scheduler.publish(chunk.sequence)
            self._begin_decoding(chunk.sequence)
        return sum(chunk.count for chunk in chunks)

    def _admit(self, sequence: Sequence) -> list[RoundOutput]:
        """Bring a request onto the device; what is wrong with one alone ends that one."""
        try:
            self.state.admit(sequence, self.pacer.allowed(sequence))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # for relief, or the device itself has failed
        except Exception as error:
            traceback.print_exc()
            return [self._fail(sequence, f"the request could not be begun ({type(error).__name__})")]
        self._begin_decoding(sequence)
        return []

    def _relieve(self, short: str) -> list[RoundOutput]:
        """After a pass without enough memory: rounds before it count, and everybody else tries again (relief.py)."""
        outputs, ran = list[RoundOutput](), len(self.scheduler.running)
        say(f"out of device memory in a pass for {ran} requests: {short.partition('.')[0]}")
        # some may turn out to have ended before; who is left of several was not alone in the pass
        while self.pending:
            outputs += self._collect(self.pending.popleft())
        alone = not self.graphs.forget() and ran == 1
        self.scheduler.relief.failed(ran, alone=alone)
        if alone:
            reason = "the device has not enough memory for this request, even alone"
            outputs += [self._fail(sequence, reason) for sequence in list(self.scheduler.running.values())]
        for slot in self.scheduler.vacate_all():
            self.state.release(slot)
        torch.cuda.empty_cache()
        return outputs

    def _fail(self, sequence: Sequence, reason: str) -> RoundOutput:
        self._release(sequence.request.request_id)
        return RoundOutput(sequence.request.request_id, finish_reason=FinishReason.ERROR, error=reason)

    def _behind(self) -> int:
        """Rounds that need not be read yet."""
        decoding = self.scheduler.decoding()
        return self.lag if decoding and not is_guided(decoding) else 0

    def _make_room(self) -> list[RoundOutput]:
        """Pages for what decodes; who must give up its place is first heard to the end."""
        outputs: list[RoundOutput] = []
        while self.pending and self.scheduler.is_short(len(self.pending) + 1):
            outputs += self._collect(self.pending.popleft())
        grown, vacated = self.scheduler.grow(len(self.pending) + 1)
        for slot in vacated:
            self.state.release(slot)
        for sequence, fresh in grown:
            self.state.give_pages(sequence, fresh)
        return outputs

    def _begin_decoding(self, sequence: Sequence) -> None:
        if sequence.decoding:
            self.state.activate(sequence.running_slot)
            if sequence.prompt_seconds is None and sequence.begun is not None:
                sequence.prompt_seconds = time.perf_counter() - sequence.begun

    def _launch(self, decoding: Many[Sequence], pace: Pace, prefill: Many[PrefillChunk]) -> Many[Logprobs | None]:
        """Start a pass; returns scores of what it prefills, by chunk, or nothing where nobody asked."""
        guided = is_guided(decoding)
        forced = force(self.state, decoding, self.pacer.allowed, self.drafter.max_nodes) if guided else 0
        chunks = [Chunk(c.sequence.running_slot, c.start, c.count, scored_prompt(c.sequence)) for c in prefill]
        unread = len(self.pending) * self.scheduler.tree_rows
        drafted, eos = self.drafter.max_nodes, self.state.eos
        plan = make_plan(self.pacer, decoding, pace, chunks, proposed=drafted, eos=eos, unread=unread, forced=forced)
        if chunks:
            self.state.prefill.write(chunks, plan.prefill)
        if len(decoding) > 1 and pace.drafting:
            acceptance = self.pacer.acceptance
            self.state.set_trust({s.running_slot: acceptance.trust(s.request.request_id) for s in decoding})
        if plan.scored:
            self.state.set_asked(Asked.by(decoding).slots)
        count, start = sum(chunk.count for chunk in chunks), chunks[0].start if chunks else 0
        work = self.pacer.work(decoding, plan.rows + plan.prefill, pace.drafting, count, start)
        watch = Stopwatch(self.state.device)
        masks = TreeMasks(decoding) if guided else None
        passed = (complete(self._run(plan, chunks), masks), True) if plan.by_op else self.graphs(plan, masks)
        (ran, scores), usual = passed
        watch.stop()
        if ran is not None:
            self.pending.append(read_back(decoding, work, watch if usual else None, ran, masks, pace.plain))
        return scores

    def _run(self, plan: Plan, chunks: Many[Chunk] = ()) -> Parts[tuple[Ran | None, Many[Logprobs | None]]]:
        """A pass, op by op: what came of the round, if anybody decodes, and scores of ``chunks``."""
        parts = self.state, self.target, self.drafter, plan, self.make_attention
        if not plan.rows:
            return None, run_prefill(*parts, chunks)
        ran = yield from round_parts(*parts, chunks)
        return ran, ran.prompts

    def _collect(self, pending: PendingRound) -> list[RoundOutput]:
        outcomes = pending.outcomes(list(self.scheduler.running.values()))
        if pending.watch is not None:
            self.pacer.took(pending.work, pending.watch.seconds)
        self.scheduler.tally.round(pending, outcomes)
        if pending.work.drafting:
            self._learn(outcomes)
        return [output for outcome in outcomes for output in self._outputs(outcome, pending.failures)]

    def _learn(self, outcomes: Many[Outcome]) -> None:
        # what a grammar forces says nothing of the draft
        outcomes = [outcome for outcome in outcomes if not outcome.sequence.forced]
        sequences = [outcome.sequence for outcome in outcomes]
        drafted, accepted = sum(o.drafted for o in outcomes), sum(o.accepted for o in outcomes)
        self.pacer.gained(sequences, drafted, accepted)
        for outcome in outcomes:
            if outcome.proposal is not None:
                self.pacer.proposed(outcome.sequence.request.request_id, outcome.proposal)

    def _outputs(self, outcome: Outcome, failures: Mapping[int, str]) -> list[RoundOutput]:
        taken, error = obeyed(outcome.sequence, outcome.tokens, failures)
        if error is None:
            return [self._output(outcome)]
        # token by token, what came before would have been told
        before = [self._output(outcome.cut(taken))] if taken else []
        return [*before, self._fail(outcome.sequence, error)]

    def _output(self, outcome: Outcome) -> RoundOutput:
        sequence = outcome.sequence
        first = len(sequence.tokens) == len(sequence.request.prompt)
        shown = outcome.proposal if sequence.request.show_tree else None
        sequence.committed(outcome.tokens)
        self.scheduler.publish(sequence)
        output = RoundOutput(
            request_id=sequence.request.request_id,
            tokens=tuple(outcome.tokens),
            accepted=outcome.accepted,
            drafted=outcome.drafted,
            finish_reason=outcome.finish,
            prompt_seconds=sequence.prompt_seconds if first else None,
            reused=sequence.reused if first else 0,
            queue_seconds=sequence.queue_seconds if first else 0.0,
            logprobs=outcome.logprobs,
            prompt_logprobs=self.prompt_scores.told(sequence.request.request_id) if first else (),
            tree=() if shown is None else verified_nodes(shown, outcome.accepted),
        )
        if outcome.finish is not None:
            self._release(sequence.request.request_id)
        return output

    def _release(self, request_id: str) -> None:
        slot = self.scheduler.release(request_id)
        self.pacer.forget(request_id)
        self.prompt_scores.forget(request_id)
        if slot is not None:
            self.state.release(slot)
