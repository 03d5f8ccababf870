"""Grammars in rounds: what they allow after each row, what they force, and what they make of a commit.

Masks are computed on the host while the device runs the target.  That is the only wait of a round for the device: its
tree has to be known, which it is long before the target is through.  And a grammar has to have heard of the last round
before the next one is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from redraft.kernels.rows import Rows
from redraft.server.engine.grammar import Matcher
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.state import DeviceState
from redraft.server.engine.types import RedraftError

MASK_SECONDS = 0.05
"""Of a round's walks over trees, shared evenly by its requests; what was not reached by then is not accepted.

A node takes 20 to 50 microseconds; an ambiguous grammar may need 150 milliseconds before llguidance refuses it: 2,000
items a row, of which an object takes 4 for each optional property, so fewer would refuse ordinary ones.  A root's mask
is waited for, as without a draft.
"""


def is_guided(sequences: Many[Sequence]) -> bool:
    """Whether any of ``sequences`` has a grammar."""
    return any(sequence.matcher is not None for sequence in sequences)


def force(state: DeviceState, decoding: Many[Sequence], allowed: Callable[[Sequence], int], proposed: int) -> int:
    """Enter what grammars force into ``state.forced``; returns how many tokens that is in all.

    ``allowed``: most nodes that a request may have verified in a round; where that is what the draft proposes,
    ``proposed``, what is forced comes on top.
    """
    table, width = dict[int, list[int]](), state.forced.shape[1]
    for sequence in decoding:
        matcher, most = sequence.matcher, allowed(sequence)
        most = width if most == proposed > 0 else min(width, most)
        tokens = [] if matcher is None else matcher.forced(most)
        sequence.forced = len(tokens)
        table[sequence.running_slot] = tokens
    count = sum(sequence.forced for sequence in decoding)
    if count:
        state.set_forced(table)
    return count


class TreeMasks:
    """The masks of one round (``parts.Allow``)."""

    def __init__(self, decoding: Many[Sequence]) -> None:
        self.matchers: Mapping[int, Matcher] = {s.running_slot: s.matcher for s in decoding if s.matcher is not None}
        self.failures: dict[int, str] = {}
        """By slot, why a request cannot go on; its rows get any tokens."""

    def see(self, rows: Rows) -> None:
        """Start copying the rows to the host."""
        self.copies = [tensor.to("cpu", non_blocking=True) for tensor in (rows.token, rows.slot, rows.parent)]
        self.ready = None
        if rows.token.is_cuda:
            self.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.ready.record()

    def write(self, allowed: Tensor, left_out: Tensor) -> None:
        """Wait for the copies and walk every request's tree; what rows without a grammar allow stays as it is."""
        if self.ready is not None:
            self.ready.synchronize()
        token, slot, parent = (copy.tolist() for copy in self.copies)
        masks, not_accepted = allowed.numpy(), left_out.numpy()
        of_slot: dict[int, list[int]] = {number: [] for number in self.matchers}
        for row, number in enumerate(slot):
            if number in of_slot:
                of_slot[number].append(row)
        share = MASK_SECONDS / max(len(of_slot), 1)
        for number, rows in of_slot.items():
            if rows:
                # a slot's rows are contiguous and parents come first
                own = slice(rows[0], rows[-1] + 1)
                nodes = [above - rows[0] for above in parent[own]]
                try:
                    missed = self.matchers[number].masks(token[own], nodes, masks[own], share)
                    not_accepted[[rows[node] for node in missed]] = 1
                except RedraftError as error:
                    self.failures[number] = str(error)


def obeyed(sequence: Sequence, tokens: Many[int], failures: Mapping[int, str]) -> tuple[int, str | None]:
    """Tell a sequence's grammar what was committed; how much of it stands, and why it ends there, if it does.

    ``failures``: of the round, by slot.
    """
    if sequence.matcher is None:
        return len(tokens), None
    if error := failures.get(sequence.running_slot):
        return 0, error
    for taken, token in enumerate(tokens):
        try:
            sequence.matcher.commit(token)
        except RedraftError as refused:
            return taken, str(refused)
    return len(tokens), None
