"""What happened to one choice, by the server's clock: for Prometheus, for ``usage`` and for the reply's ``metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

from redraft.server.engine.types import FinishReason, RoundOutput
from redraft.server.metrics import Recorder
from redraft.server.replies import ReplyMetrics, SpeculationMetrics


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one choice; together from its submission to its last token."""

    queue: float
    """Until it was admitted."""
    prefill: float
    """From there to the first token."""
    decode: float
    """From there to the last one."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the rounds of one choice, or of several."""

    rounds: int = 0
    committed: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class ChoiceRecord:
    """Counts and times of one choice; begins when the choice is submitted."""

    def __init__(
        self,
        recorder: Recorder,
        prompt_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
        max_tokens: int | None = None,
    ) -> None:
        """``max_tokens``: how many it may have."""
        self._recorder = recorder
        self._clock = clock
        self.prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self.submitted = self._first = self._last = clock()
        self._queue_seconds = 0.0
        self._first_tokens = 0
        self.tokens = 0
        """Tokens up to the finish, the end-of-turn token included: ``usage.completion_tokens``."""
        self.reused = 0
        """Prompt tokens whose KV was there already."""
        self._drafted = 0
        self._most_drafted = 0
        """In one round."""
        self._accepted = 0
        self._accepted_counts: dict[int, int] = {}
        """Rounds by how many drafted tokens they accepted."""
        self._committed = 0
        """Tokens of all rounds, those behind a stop string too."""
        self.finish: FinishReason | None = None
        """None until it has ended."""

    def arrived(self, output: RoundOutput) -> None:
        """A round's output reached the server."""
        if not output.tokens:
            return
        now = self._clock()
        self._recorder.round(output)
        if not self._accepted_counts:
            self._first = now
            self._first_tokens = len(output.tokens)
            self.reused = output.reused
            self._queue_seconds = output.queue_seconds
            self._recorder.first_event(self.prompt_tokens, self.reused, now - self.submitted)
        else:
            self._recorder.later_event(len(output.tokens), now - self._last)
        self._last = now
        self._committed += len(output.tokens)
        self._drafted += output.drafted
        self._most_drafted = max(self._most_drafted, output.drafted)
        self._accepted += output.accepted
        self._accepted_counts[output.accepted] = self._accepted_counts.get(output.accepted, 0) + 1

    @property
    def seconds(self) -> float:
        """From submission to the newest round."""
        return self._last - self.submitted

    def took(self, tokens: int) -> None:
        """``tokens`` of the newest output belong to the reply; those behind a stop string do not."""
        self.tokens += tokens
        self._recorder.generation(tokens)

    def finished(self, reason: FinishReason) -> None:
        """The choice ended."""
        self.finish = reason
        self._recorder.finished(reason.value, self._clock() - self.submitted)
        times, observe = self.times, self._recorder.observe
        if times is None:
            return
        observe("request_acceptance_length", self._committed / self.rounds)
        observe("request_prompt_tokens", self.prompt_tokens)
        observe("request_generation_tokens", self.tokens)
        if self._max_tokens is not None:
            observe("request_params_max_tokens", self._max_tokens)
        observe("request_prefill_kv_computed_tokens", self.prompt_tokens - self.reused)
        observe("request_queue_seconds", times.queue)
        observe("request_prefill_seconds", times.prefill)
        observe("request_decode_seconds", times.decode)
        observe("request_inference_seconds", times.prefill + times.decode)
        if self._committed > self._first_tokens:
            later = self._committed - self._first_tokens
            observe("request_time_per_output_token_seconds", times.decode / later)

    @property
    def rounds(self) -> int:
        """Rounds that brought tokens."""
        return sum(self._accepted_counts.values())

    @property
    def times(self) -> Times | None:
        """Where its time went, as far as it got; None before its first token."""
        if not self.rounds:
            return None
        first = self._first - self.submitted
        queue = min(self._queue_seconds, first)
        return Times(queue=queue, prefill=first - queue, decode=self._last - self._first)

    @property
    def counts(self) -> Counts:
        """Of all its rounds so far."""
        return Counts(self.rounds, self._committed, self._drafted, self._accepted)

    def metrics(self, max_nodes: int) -> ReplyMetrics:
        """The reply's ``metrics``; ``max_nodes`` is what the draft proposes for a round."""
        times = self.times or Times(0.0, 0.0, 0.0)
        first, later = times.queue + times.prefill, self.tokens - self._first_tokens
        total = first + times.decode
        return ReplyMetrics(
            speculative_decoding=self._speculation(max_nodes),
            time_to_first_token_ms=first * 1e3,
            generation_time_ms=times.decode * 1e3,
            queue_time_ms=times.queue * 1e3,
            mean_itl_ms=times.decode / later * 1e3 if later > 0 else 0.0,
            tokens_per_second=self.tokens / total if total > 0 else 0.0,
        )

    def _speculation(self, max_nodes: int) -> SpeculationMetrics:
        rounds = self.rounds
        # clients hold the histogram's length against num_spec_tokens, and leave out what does not fit
        most = max(max_nodes, self._most_drafted)
        return SpeculationMetrics(
            mean_acceptance_length=1 + self._accepted / rounds if rounds else 1.0,
            draft_acceptance_rate=self._accepted / self._drafted if self._drafted else 0.0,
            acceptance_histogram=[self._accepted_counts.get(accepted, 0) for accepted in range(most + 1)],
            num_spec_steps=rounds,
            num_accepted_draft_tokens=self._accepted,
            num_draft_tokens=self._drafted,
            num_spec_tokens=most,
        )
