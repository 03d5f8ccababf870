"""How often drafted nodes turn out right, by request and rank.  Torch-free.

A node's *rank* is its place among its request's nodes by the draft's own score, from 1; in a chain it is the depth.
The k best of a tree gain the sum of the first k hit rates, so these are what rows are budgeted by (budget.py).
Whether a node was right is known, verified or not, where its parent was verified or is the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MEMORY = 0.95
"""Share of what was seen that counts in the next round: a request is judged by its last 20 rounds or so."""
POOL_MEMORY = 0.995
"""The same for all requests together."""
PRIOR = 3.0
"""Rounds that the experience with all requests is worth for a new one."""
FIRST = (0.6, 0.3, 0.2, 0.12, 0.08)
"""Hit rates that are assumed before anything was seen, and for how many rounds; then halved from rank to rank."""
FIRST_ROUNDS = 20.0
MAX_TRUST = 1.5
MIN_TRUST = 0.02


@dataclass(frozen=True, slots=True)
class Proposal:
    """One request's candidates and what became of them; node 0 is the root, parents come before children."""

    token: Sequence[int]
    parent: Sequence[int]
    score: Sequence[float]
    """Estimated probability of acceptance; -inf (or NaN) where there is no node."""
    committed: Sequence[int]
    verified: int
    """How many of the nodes had rows: the best ones."""


def outcomes(proposal: Proposal) -> list[tuple[float, bool | None]]:
    """Score of every node, best first, and whether it was right; None where that cannot be known.

    What is known must not depend on what came out, or rates would be of some outcomes only.  So of a node whose parent
    had no row nothing is known, also if its parent was wrong.
    """
    token, parent, score, committed = proposal.token, proposal.parent, proposal.score, proposal.committed
    ranked = sorted((n for n in range(1, len(token)) if score[n] > 0), key=lambda n: -score[n])
    had_row = {0, *ranked[: proposal.verified]}
    depth, right = [0] * len(token), [True] * len(token)
    for node in range(1, len(token)):
        depth[node] = depth[parent[node]] + 1
        reached = right[parent[node]] and depth[node] <= len(committed)
        right[node] = reached and token[node] == committed[depth[node] - 1]
    return [(score[node], right[node] if parent[node] in had_row else None) for node in ranked]


@dataclass(slots=True)
class Rates:
    """Decayed counts of rounds and of hits by rank, and of hits against what the draft's scores promised."""

    memory: float
    rounds: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    promised: float = 0.0
    kept: float = 0.0

    def add(self, seen: Sequence[tuple[float, bool | None]]) -> None:
        """A round's ``outcomes``."""
        missing = len(seen) - len(self.rounds)
        self.rounds += [0.0] * missing
        self.hits += [0.0] * missing
        for rank in range(len(self.rounds)):
            # a rank that the draft did not fill is one without a hit: its row would have been empty
            hit = seen[rank][1] if rank < len(seen) else False
            if hit is not None:
                self.rounds[rank] = self.rounds[rank] * self.memory + 1
                self.hits[rank] = self.hits[rank] * self.memory + hit
        scores = [(min(score, 1.0), hit) for score, hit in seen if hit is not None]
        self.promised = self.promised * self.memory + sum(score for score, _ in scores)
        self.kept = self.kept * self.memory + sum(hit for _, hit in scores)


class Acceptance:
    """Hit rates of every running request, from its own rounds and from those of all."""

    def __init__(self, width: int) -> None:
        """``width``: most nodes that a request may have proposed."""
        self.width = width
        first = [*FIRST, *(FIRST[-1] / 2**n for n in range(1, width))][:width]
        self._pool = Rates(POOL_MEMORY, [FIRST_ROUNDS] * width, [FIRST_ROUNDS * p for p in first])
        self._pool.promised = self._pool.kept = sum(self._pool.hits)
        self._requests: dict[str, Rates] = {}
        self._known: dict[str, list[float]] = {}
        """``rates`` since the last observation: rounds without a draft, of many requests at that, change nothing."""

    def observe(self, request_id: str, proposal: Proposal) -> None:
        """A round for which there was a proposal."""
        seen = outcomes(proposal)[: self.width]
        self._requests.setdefault(request_id, Rates(MEMORY)).add(seen)
        self._pool.add(seen)
        self._known.clear()

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._requests.pop(request_id, None)
        self._known.pop(request_id, None)

    def is_new(self, request_id: str) -> bool:
        """Whether nothing was proposed for the request yet."""
        return request_id not in self._requests

    def rates(self, request_id: str) -> list[float]:
        """Expected hits of the first, second ... best node, never rising; not to be changed."""
        if request_id not in self._known:
            self._known[request_id] = self._rates(request_id)
        return self._known[request_id]

    def _rates(self, request_id: str) -> list[float]:
        pool, own = self._pool, self._requests.get(request_id)
        found, least = [], 1.0
        for rank in range(self.width):
            prior = pool.hits[rank] / pool.rounds[rank]
            hits, rounds = PRIOR * prior, PRIOR
            if own is not None and rank < len(own.rounds):
                hits, rounds = hits + own.hits[rank], rounds + own.rounds[rank]
            least = min(least, hits / rounds)
            found.append(least)
        return found

    def trust(self, request_id: str) -> float:
        """What the draft's scores are to be multiplied with for this request, so that requests can be compared."""
        own, pool = self._requests.get(request_id), self._pool
        kept, promised = PRIOR * pool.kept / max(pool.promised, 1e-9), PRIOR
        if own is not None:
            kept, promised = kept + own.kept, promised + own.promised
        return min(max(kept / promised, MIN_TRUST), MAX_TRUST)
