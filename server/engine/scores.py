"""Log-probabilities in the round: of committed tokens, from the verify pass, and of prompts, from prefill."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.kernels.accept import Committed
from redraft.kernels.logprobs import CHUNK, Logprobs, logprobs
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.types import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants log-probabilities of a round's tokens, known on the host."""

    slots: tuple[int, ...] = ()
    tops: tuple[int, ...] = ()
    """By slot of ``slots``, how many of the likeliest beside the chosen token."""

    @classmethod
    def by(cls, decoding: Many[Sequence]) -> Asked:
        """What ``decoding`` want."""
        asked = {s.running_slot: s.request.params.logprobs for s in decoding}
        tops = {slot: top for slot, top in asked.items() if top is not None}
        return cls(tuple(tops), tuple(tops.values()))


NOBODY = Asked()


@dataclass(frozen=True, slots=True)
class RoundScores:
    """Scores of what a round committed for the slots that asked, on the device or copied to the host."""

    scores: Logprobs
    """Of N rows."""
    index: Tensor
    """[A, W] which of the N rows the committed token j of each slot came from; anything beyond its count.  Those that
    asked come first, in order."""

    def copied(self) -> RoundScores:
        """To the host, without waiting."""
        return RoundScores(_on_host(self.scores), self.index.to("cpu", non_blocking=True))

    def read(self, asked: Asked) -> dict[int, list[TokenLogprobs]]:
        """By slot, token by token; beyond a slot's count anything.  ``asked``: of this round."""
        columns = [part.tolist() for part in _parts(self.scores)]
        each = zip(asked.slots, asked.tops, self.index[: len(asked.slots)].tolist(), strict=True)
        return {slot: [_entry(columns, row, top) for row in rows] for slot, top, rows in each}


class PromptScores:
    """Scores of prompts that were not told yet, by request."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, Logprobs]] = {}
        """By the position of the row that the first of them came from."""

    def found(self, request_id: str, start: int, scores: Logprobs) -> None:
        """Those of the tokens behind the rows from ``start`` on; copied to the host without waiting."""
        self._found.setdefault(request_id, {})[start] = _on_host(scores)

    def forget(self, request_id: str) -> None:
        """It left; harmless if there are none."""
        self._found.pop(request_id, None)

    def told(self, request_id: str) -> tuple[TokenLogprobs, ...]:
        """All of a request's, in order; forgotten from now on.

        Called when a round of the request's is back, which was launched after the last of its prompt.
        """
        entries: dict[int, TokenLogprobs] = {}
        for start, scores in self._found.pop(request_id, {}).items():
            columns = [part.tolist() for part in _parts(scores)]
            # a preemption in the middle of a prompt gives some of it, the same bits, twice
            entries.update((start + row, _entry(columns, row)) for row in range(len(columns[0])))
        return tuple(entries[position] for position in sorted(entries))


def round_scores(logits: Tensor, choice: Tensor, committed: Committed, slots: Tensor, top: int) -> RoundScores:
    """Scores of the rows along the accepted paths of ``slots`` [A], or of all ``[R, V]`` rows where these are fewer.

    Each names the ``top`` likeliest tokens.  The rows' values are the same either way and whatever ``top``, and what is
    computed has a shape that the host knows.  ``slots`` were written before the round: to make a tensor of them now
    would be to wait for all that was launched (staging.py).
    """
    path = committed.path_row[slots].clamp_(min=0)
    top = min(top, logits.shape[1])
    if path.numel() > logits.shape[0]:
        return RoundScores(logprobs(logits, choice, top), path)
    row = path.flatten()
    index = torch.arange(row.shape[0], device=logits.device).view(path.shape)
    return RoundScores(logprobs(logits[row], choice[row], top), index)


def prompt_scores(state: DeviceState, target: Target, hidden: Tensor, chunks: Many[Chunk]) -> list[Logprobs | None]:
    """Scores of the token behind each row of those of ``chunks`` that ask for them; ``hidden`` are their rows.

    Logits are made of some rows at a time, so that a long prompt needs no more memory than a round.
    """
    found = list[Logprobs | None]()
    first = 0
    for chunk in chunks:
        found.append(None if chunk.scored is None else _of_chunk(state, target, hidden, first, chunk, chunk.scored))
        first += chunk.count
    return found


def _of_chunk(state: DeviceState, target: Target, hidden: Tensor, first: int, chunk: Chunk, top: int) -> Logprobs:
    parts = []
    for start in range(0, chunk.count, CHUNK):
        count = min(CHUNK, chunk.count - start)
        # sizes that passes have, or a row's bits could be others
        row = torch.arange(row_bucket(count), device=hidden.device).clamp_(max=count - 1)
        logits = target.logits(hidden[row + (first + start)])[:count]
        token = state.tokens[chunk.slot, chunk.start + start + 1 : chunk.start + start + count + 1]
        parts.append(_parts(logprobs(logits, token, min(top, logits.shape[1]))))
    return Logprobs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _entry(columns: Many[list[Any]], row: int, top: int | None = None) -> TokenLogprobs:
    chosen, rank, token, value = (column[row] for column in columns)
    return TokenLogprobs(chosen, rank, tuple(zip(token[:top], value[:top], strict=True)))


def _on_host(scores: Logprobs) -> Logprobs:
    """On its way there: from a GPU into pinned memory, there when what was launched behind it is."""
    return Logprobs(*(part.to("cpu", non_blocking=True) for part in _parts(scores)))


def _parts(scores: Logprobs) -> tuple[Tensor, ...]:
    return scores.chosen, scores.rank, scores.token, scores.value


def scored_prompt(sequence: Sequence) -> int | None:
    """How many of the likeliest tokens to name for those of its prompt, if it asked and was not told."""
    is_new = len(sequence.tokens) == len(sequence.request.prompt)
    return sequence.request.params.prompt_logprobs if is_new else None
