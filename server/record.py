"""What happened to one choice, by the server's clock: for Prometheus, for ``usage`` and for the reply's ``metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable

from redraft.server.engine.types import FinishReason, RoundOutput
from redraft.server.metrics import Recorder
from redraft.server.replies import ReplyMetrics, SpeculationMetrics


class ChoiceRecord:
    """Counts and times of one choice; begins when the choice is submitted."""

    def __init__(self, recorder: Recorder, prompt_tokens: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._recorder = recorder
        self._clock = clock
        self._prompt_tokens = prompt_tokens
        self._submitted = self._first = self._last = clock()
        self._prefill_seconds = 0.0
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

    def arrived(self, output: RoundOutput) -> None:
        """A round's output reached the server."""
        if output.prompt_seconds is not None:
            self._prefill_seconds = output.prompt_seconds
        if not output.tokens:
            return
        now = self._clock()
        self._recorder.round(output)
        if not self._accepted_counts:
            self._first = now
            self._first_tokens = len(output.tokens)
            self.reused = output.reused
            self._recorder.first_event(self._prompt_tokens, now - self._submitted)
        else:
            self._recorder.later_event(len(output.tokens), now - self._last)
        self._last = now
        self._drafted += output.drafted
        self._most_drafted = max(self._most_drafted, output.drafted)
        self._accepted += output.accepted
        self._accepted_counts[output.accepted] = self._accepted_counts.get(output.accepted, 0) + 1

    @property
    def seconds(self) -> float:
        """From submission to the newest round."""
        return self._last - self._submitted

    def took(self, tokens: int) -> None:
        """``tokens`` of the newest output belong to the reply; those behind a stop string do not."""
        self.tokens += tokens
        self._recorder.generation(tokens)

    def finished(self, reason: FinishReason) -> None:
        """The choice ended."""
        self._recorder.finished(reason.value, self._clock() - self._submitted)

    def metrics(self, max_nodes: int) -> ReplyMetrics:
        """The reply's ``metrics``; the histogram goes up to ``max_nodes`` in any case."""
        first = self._first - self._submitted
        generation = self._last - self._first
        later = self.tokens - self._first_tokens
        total = first + generation
        return ReplyMetrics(
            speculative_decoding=self._speculation(max_nodes),
            time_to_first_token_ms=first * 1e3,
            generation_time_ms=generation * 1e3,
            queue_time_ms=max(0.0, first - self._prefill_seconds) * 1e3,
            mean_itl_ms=generation / later * 1e3 if later > 0 else 0.0,
            tokens_per_second=self.tokens / total if total > 0 else 0.0,
        )

    def _speculation(self, max_nodes: int) -> SpeculationMetrics:
        rounds = sum(self._accepted_counts.values())
        longest = max(max_nodes, *self._accepted_counts, 0)
        return SpeculationMetrics(
            mean_acceptance_length=1 + self._accepted / rounds if rounds else 1.0,
            draft_acceptance_rate=self._accepted / self._drafted if self._drafted else 0.0,
            acceptance_histogram=[self._accepted_counts.get(accepted, 0) for accepted in range(longest + 1)],
            num_spec_steps=rounds,
            num_accepted_draft_tokens=self._accepted,
            num_draft_tokens=self._drafted,
            num_spec_tokens=self._most_drafted,
        )
