"""The seam between the engine's round and a drafting method: what a drafter sees, and the trees it answers with.

A drafter works on the device's tensors only: every shape is known before the round, nothing is read back, so that a
round can be captured as a CUDA graph and runs under FakeTensorMode.  What it drafts never changes the output, only the
speed: the target alone decides (docs/structure.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from redraft.kernels.sample import SamplingTable


@dataclass(frozen=True, slots=True)
class DraftState:
    """What the engine knows of its slots; row S is the trash slot of padding rows.  Drafters write to ``kv`` alone."""

    tokens: Tensor
    """[S+1, T] int64, prompt and generated tokens; only the first ``length`` are text."""
    length: Tensor
    """[S+1] int64, committed tokens; the newest, at ``length`` - 1, is the anchor."""
    active: Tensor
    """[S+1] bool; False for free slots and for the trash slot."""
    page_table: Tensor
    """[S+1, P] int64 page ids, shared with the target's KV."""
    kv: Tensor
    """[D, 2, cells, HKV, HD] the draft's own keys and values, in the target's pages; ``D`` is 0 without."""
    sampling: SamplingTable

    @property
    def anchor(self) -> Tensor:
        """[S+1, 1] int64, the newest committed token; whatever lies first in a slot without text."""
        return self.tokens.gather(1, (self.length - 1).clamp_(min=0).unsqueeze(1))


@dataclass(frozen=True, slots=True)
class Candidates:
    """A tree of W nodes for every slot, of which ``pack_tree`` keeps the best of the whole batch.

    Node 0 is the root and carries the anchor.  In a chain node i has depth i.
    """

    token: Tensor
    """[S+1, W] int64."""
    parent: Tensor
    """[S+1, W] int64, number of the parent, lower than the node's own, also where a node is absent; 0 for the root."""
    score: Tensor
    """[S+1, W] fp32, estimated probability that the node is accepted, at most its parent's; -inf for absent nodes.

    A root's is 1 in active slots and -inf in others.
    """


@dataclass(frozen=True, slots=True)
class Context:
    """What a draft keeps of the text, for the engine to make room for and to fill."""

    taps: tuple[int, ...] = ()
    """Target layers, from 0, whose outputs the draft reads."""
    layers: int = 0
    kv_heads: int = 1
    head_dim: int = 1
    reach: int = 0
    """Cells behind the committed ones that a proposal may write."""
    weights: int = 0
    """Parameters of the draft's own."""


NO_CONTEXT = Context()


@dataclass(frozen=True, slots=True)
class Passed:
    """R rows the target has passed over, before it is known which of them will be committed."""

    taps: Tensor
    """[R, n, H] outputs of the layers that ``Context.taps`` names."""
    token: Tensor
    """[R] int64."""
    position: Tensor
    """[R] int64."""
    cell: Tensor
    """[R] int64, where what the draft keeps of the row goes; the trash page's for padding."""
    before: Tensor
    """[R] int64, cell of the token before the row's, which may be of this pass; at position 0 the row's own."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the host knows before a round; it bounds a drafter's work and never changes the answer."""

    context: int
    """No active slot is longer."""
    requests: int
    """No more slots are active."""
    sampled: bool = True
    """False where no slot has a temperature above 0."""


class Drafter(Protocol):
    """A drafting method, made for one engine (its slots, vocabulary and device)."""

    @property
    def name(self) -> str:
        """As chosen with ``--draft``."""

    @property
    def version(self) -> str:
        """Changes whenever the same text may get other candidates."""

    @property
    def max_nodes(self) -> int:
        """W - 1: drafted nodes per slot and round; 0 drafts nothing."""

    @property
    def context(self) -> Context:
        """What it keeps; ``NO_CONTEXT`` for a method that reads only tokens."""

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """Draft for every active slot."""

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """Keep of ``passed`` in ``kv`` what drafting needs.  Not called where ``context`` has no taps."""


class TokensOnly:
    """Of drafters that read nothing but tokens."""

    context = NO_CONTEXT

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """Nothing is kept."""
