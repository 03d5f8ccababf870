"""From replies to figures, and from figures to a table.  Definitions: docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean, median
from typing import Any

from redraft.benchmarks.loops import looping
from redraft.benchmarks.measure import FileRun, Pair, Reply

Figures = dict[str, Any]

COLUMNS = {
    "file": "file",
    "requests": "requests",
    "tokens": "tokens",
    "plain_tokens_per_second": "plain tok/s",
    "tokens_per_second": "tok/s",
    "speedup": "speed-up",
    "tau": "τ",
    "tau_per_request": "τ per request",
    "parity": "parity",
    "looping_share": "looping",
    "p50_seconds": "p50 s",
}


def figures(run: FileRun) -> Figures | None:
    """The figures of one prompt file, None if nothing of it was measured.

    Speeds are medians over passes, ``speedup`` the median of the passes' own ratios; everything else is pooled over all
    passes.
    """
    measured = [pairs for pairs in run.passes if pairs]
    # a pass that was cut short says little beside whole ones
    passes = [pairs for pairs in measured if len(pairs) == len(run.prompts.conversations)] or measured
    if not passes:
        return None
    pairs = [pair for one in passes for pair in one]
    replies = [reply for pair in pairs for reply in pair.speculative]
    plain = [reply for pair in pairs for reply in pair.plain]
    speeds = [_speed([reply for pair in one for reply in pair.speculative]) for one in passes]
    plain_speeds = [_speed([reply for pair in one for reply in pair.plain]) for one in passes] if plain else []
    histogram = _histogram(replies)
    return {
        "file": run.prompts.name,
        "requests": len(replies),
        "tokens": sum(reply.tokens for reply in replies),
        "passes": len(passes),
        "plain_tokens_per_second": median(plain_speeds) if plain else None,
        "tokens_per_second": median(speeds),
        "speedup": median(s / p for s, p in zip(speeds, plain_speeds, strict=True)) if plain else None,
        "tau": tau(histogram),
        "tau_per_request": _tau_per_request(replies),
        "histogram": histogram,
        "parity": _parity(pairs) if plain else None,
        "looping_share": sum(looping(r.units) for r in replies) / max(1, sum(len(r.units) for r in replies)),
        "p50_seconds": median(reply.seconds for reply in replies),
        "plain_p50_seconds": median(reply.seconds for reply in plain) if plain else None,
    }


def tau(histogram: Sequence[int] | None) -> float | None:
    """Tokens committed per round, the bonus token included, from how many rounds committed 1, 2, 3 ... tokens."""
    if not histogram or not sum(histogram):
        return None
    return sum(count * committed for committed, count in enumerate(histogram, start=1)) / sum(histogram)


def _speed(replies: Sequence[Reply]) -> float:
    return sum(reply.tokens for reply in replies) / sum(reply.seconds for reply in replies)


def _histogram(replies: Sequence[Reply]) -> list[int] | None:
    known = [reply.rounds for reply in replies if reply.rounds is not None]
    if not known:
        return None
    counts = [sum(column) for column in zip_longest(*known, fillvalue=0)]
    # servers list every length that could have been
    while counts and not counts[-1]:
        counts.pop()
    return counts


def _tau_per_request(replies: Sequence[Reply]) -> float | None:
    means = [mean for reply in replies if (mean := tau(reply.rounds)) is not None]
    return fmean(means) if means else None


def _parity(pairs: Sequence[Pair]) -> float:
    same = [a.units == b.units for pair in pairs for a, b in zip(pair.plain, pair.speculative, strict=True)]
    return sum(same) / len(same)


def table(files: Sequence[Figures]) -> str:
    """Aligned columns, then one line per file that shows how many tokens its rounds committed."""
    rows = [list(COLUMNS.values()), *([_cell(name, one[name]) for name in COLUMNS] for one in files)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        name, *numbers = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([name.strip().ljust(widths[0]), *numbers]).rstrip())
    lines += [f"{one['file']}: {_shares(one['histogram'])}" for one in files if one["histogram"]]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name in ("parity", "looping_share") else f"{value:.2f}"
    return str(value)


def _shares(histogram: Sequence[int]) -> str:
    total = sum(histogram)
    shares = (f"{committed}: {100 * count / total:.1f} %" for committed, count in enumerate(histogram, start=1))
    return "rounds by tokens committed  " + "  ".join(shares)
