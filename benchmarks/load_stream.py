"""What a server's stream tells: which events brought text, and how many tokens each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from redraft.benchmarks.load_clients import Answer, Event
from redraft.server.engine.types import RedraftError


@dataclass(slots=True)
class Transcript:
    """What a stream held."""

    moments: list[tuple[float, int | None]] = field(default_factory=list)
    """When text or tokens came, and how many tokens there were by then where the server says so."""
    text: str = ""
    ended: float | None = None
    """When the stream said why it ends."""
    usage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def take(self, event: dict[str, Any], at: float) -> None:
        """Note one event that arrived at ``at`` seconds."""
        choices = event.get("choices") or []
        usage = event.get("usage") or {}
        text = "".join(_text(choice) for choice in choices)
        running = usage.get("completion_tokens") if choices else None
        if text or self._grows(running):
            self.text += text
            self.moments.append((at, running))
        if any(choice.get("finish_reason") for choice in choices):
            self.ended = at
        self.usage = usage or self.usage
        self.metrics = event.get("metrics") or self.metrics

    def _grows(self, running: int | None) -> bool:
        """Whether an event without text brought tokens; a total that comes only with the end says nothing of events."""
        before = self.moments[-1][1] if self.moments else 0
        return running is not None and before is not None and running > before


def answer_of(transcript: Transcript) -> Answer:
    """The answer that a transcript tells of; raises ``RedraftError`` where tokens cannot be counted."""
    total = transcript.usage.get("completion_tokens")
    if total is None:
        raise RedraftError("the server sends no usage with stream_options.include_usage; tokens cannot be counted")
    # an end of turn shows no text
    moments = transcript.moments or ([(transcript.ended, None)] if transcript.ended is not None else [])
    if not moments or total < 1:
        raise RedraftError("the server answered without a token")
    counts = _told([running for _, running in moments], total)
    told = counts is not None
    counts = counts or _spread(len(moments), total, transcript.metrics)
    speculation = transcript.metrics.get("speculative_decoding") or {}
    # the histogram counts accepted tokens from 0 up; a round commits one more
    rounds = speculation.get("acceptance_histogram")
    return Answer(
        tuple(Event(at, tokens) for (at, _), tokens in zip(moments, counts, strict=True) if tokens),
        total,
        (transcript.text,),
        tuple(rounds) if rounds else None,
        speculation.get("num_draft_tokens"),
        counted=told,
    )


def _told(running: Sequence[int | None], total: int) -> list[float] | None:
    """Tokens of each event where the server told totals all along; the last event gets what none of them showed."""
    totals = [0, *(tokens for tokens in running if tokens is not None)]
    if len(totals) <= len(running):
        return None
    totals[-1] = total
    counts = [float(after - before) for before, after in pairwise(totals)]
    return counts if min(counts) >= 0 else None


def _spread(events: int, total: int, metrics: dict[str, Any]) -> list[float]:
    """``total`` tokens evenly over the events; the first one's apart where metrics tell how many came after it."""
    mean, generating = metrics.get("mean_itl_ms"), metrics.get("generation_time_ms")
    later = round(generating / mean) if mean and generating and events > 1 else 0
    if 0 < later < total:
        return [float(total - later), *[later / (events - 1)] * (events - 1)]
    return [total / events] * events


def _text(choice: dict[str, Any]) -> str:
    """Text that a chunk adds; some servers send what a model thinks to itself apart from what it says."""
    delta = choice.get("delta") or {}
    return "".join(delta.get(name) or "" for name in ("reasoning", "reasoning_content", "content"))
