"""How many drafted nodes a round verifies: as many as make the committed tokens per second the most.  Pure functions.

A round of N requests with B drafted nodes commits N + G(B) tokens, G(B) being the sum of the B greatest hit rates of
all requests (acceptance.py), and takes T(B) seconds (costs.py); B = 0 needs no draft.  The device then gives the B rows
to the best nodes of the whole batch, so a request for which the draft is no good gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redraft.server.engine.rows_plan import BUCKETS, pass_sizes

MARGIN = 0.02
"""Drafting must promise so much more than plain decoding to be chosen: it is never to be slower."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Drafted nodes of a round, and the tokens per second that are expected of it."""

    nodes: int
    tokens_per_second: float
    plain_seconds: float
    """What the step would take without any."""


def best_nodes(
    rates: Sequence[Sequence[float]],
    seconds: Callable[[int, bool], float],
    most_rows: int,
    prefill: int = 0,
    per_second: float | None = None,
    recorded: int = 0,
) -> Choice:
    """The number of nodes for a round of ``len(rates)`` requests.

    Args:
        rates: of every request the hit rates of its best nodes, not rising; empty where it may have none.
        seconds: what a step of so many rows, prefill's included, takes, with a draft or without.
        most_rows: bound of the rows of a step.
        prefill: rows of prefill in the same pass.
        per_second: what a second is worth in tokens, where it is known: with prefill the rate of rounds without, since
            a second that prefill is held up is a second lost to rounds.  None: tokens over seconds are made the most.
        recorded: as ``pass_sizes`` has it.
    """
    requests = len(rates)
    gains = sorted((rate for own in rates for rate in own), reverse=True)
    base = seconds(sum(pass_sizes(requests, prefill, recorded)), False)
    # nodes that fill a size: of the whole pass, or of the rows to verify where these are padded by themselves
    filled = 0 if recorded else prefill
    best, plain = Choice(0, requests / base, base), 0.0
    if per_second is not None:
        plain = requests - per_second * base
    bar, worth = requests / base * (1 + MARGIN), plain + MARGIN * requests
    for rows in BUCKETS:
        nodes = min(rows - requests - filled, len(gains))
        if nodes < 1 or rows + prefill - filled > most_rows:
            continue
        took = seconds(sum(pass_sizes(requests + nodes, prefill, recorded)), True)
        tokens = requests + sum(gains[:nodes])
        if per_second is None and tokens / took > bar:
            bar, best = tokens / took, Choice(nodes, tokens / took, base)
        if per_second is not None and tokens - per_second * took > worth:
            worth, best = tokens - per_second * took, Choice(nodes, tokens / took, base)
        if nodes == len(gains):
            break
    return best


def prefill_rows(seconds: Callable[[int], float], waiting: int, most: int, stall: float, least: int) -> int:
    """How many of ``waiting`` rows to prefill beside a round, so that the step takes at most ``stall`` times longer.

    ``seconds``: what the step takes with so many rows of prefill.  At least ``least`` rows go along, so that a prompt
    gets on, and at most ``most``.
    """
    allowed = stall * seconds(0)
    low, high = 0, min(waiting, most)
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(middle) <= allowed:
            low = middle
        else:
            high = middle - 1
    return min(max(low, least), waiting, most)
