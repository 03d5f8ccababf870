"""``redraft bench cost``: from the JSON of a load, measured or simulated, to a table of what its tokens cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft.benchmarks.cost import SECONDS_PER_HOUR, LevelCost, Side, level_cost, training_cost
from redraft.benchmarks.cost_table import table
from redraft.benchmarks.cost_training import training
from redraft.benchmarks.report import Figures
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.types import RedraftError

BENCHMARKS = ("load", "simulate")


@dataclass(frozen=True, slots=True)
class Prices:
    """What is paid, and what is drawn."""

    per_hour: float
    """Of one replica's machine."""
    currency: str = "USD"
    training_per_hour: float | None = None
    """Of the machine that trains; None for the same."""
    watts: float | None = None
    """Of one replica's machine under load; None takes what was measured, if anything was."""


def read_load(path: Path) -> dict[str, Any]:
    """The last report in ``path``; ``RedraftError`` where it is none of a load."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = json.loads(lines[-1]) if lines else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RedraftError(f"cannot read {path} ({reason})") from error
    except ValueError as error:
        raise RedraftError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict) or found.get("benchmark") not in BENCHMARKS:
        raise RedraftError(f"{path} must hold what 'redraft bench load --json' or 'bench simulate --json' wrote")
    levels = found.get("levels")
    if not isinstance(levels, list) or not levels or not all(isinstance(level, dict) for level in levels):
        raise RedraftError(f"{path} holds no measured level")
    return found


def costs(found: Mapping[str, Any], path: Path, prices: Prices, draft: Path | None) -> Figures:
    """The report: what everything costs at each of its levels, and what that rests on.

    Raises ``RedraftError`` for levels without speeds and a draft whose card does not tell.
    """
    settings, facts = found.get("settings"), found.get("engine", found.get("inputs"))
    replicas = settings.get("replicas", 1) if isinstance(settings, dict) else 1
    if not isinstance(replicas, int) or replicas < 1:
        raise RedraftError(f"{path}: {replicas!r} replicas cannot be")
    trained = training(draft, facts if isinstance(facts, dict) else {})
    rate = prices.per_hour if prices.training_per_hour is None else prices.training_per_hour
    spent = None if trained.seconds is None else training_cost(trained.seconds, rate)
    rows, sources = list[Figures](), set[str]()
    for level in found["levels"]:
        sides = {name: _side(level.get(name), prices, replicas, f"{path}: {name}") for name in ("plain", "speculative")}
        sources |= {source for _, source in sides.values() if source is not None}
        plain, speculative = (side for side, _ in sides.values())
        one = level_cost(plain, speculative, prices.per_hour * replicas, spent)
        name = {key: level[key] for key in ("concurrency", "rate") if level.get(key) is not None}
        rows.append(name | _row(one, plain, speculative))
    return {
        "source": {"file": str(path), **{key: found.get(key) for key in ("benchmark", "complete", "date", "command")}}
        | {"machine": found.get("machine"), "engine": facts},
        "currency": prices.currency,
        "price_per_hour": prices.per_hour,
        "replicas": replicas,
        "power": " and ".join(sorted(sources)) or "unknown",
        "training": {**asdict(trained), "price_per_hour": rate, "cost": spent},
        "levels": rows,
    }


def _side(raw: Any, prices: Prices, replicas: int, place: str) -> tuple[Side | None, str | None]:
    """One way of a level, and where its power is from."""
    if raw is None:
        return None, None
    speed = _number(raw.get("tokens_per_second") if isinstance(raw, dict) else None)
    if speed is None:
        raise RedraftError(f"{place}: no tokens_per_second above 0 in a level")
    if prices.watts is not None:
        return Side(speed, prices.watts * replicas), "given"
    measured = _number(raw.get("watts"))
    return Side(speed, measured), "unknown" if measured is None else "measured"


def _number(value: Any) -> float | None:
    """A finite number above 0, else None."""
    plausible = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plausible and math.isfinite(value) and value > 0 else None


def _row(one: LevelCost, plain: Side | None, speculative: Side | None) -> Figures:
    found: Figures = {}
    for name, cost, side in (("plain", one.plain, plain), ("speculative", one.speculative, speculative)):
        found[name] = (
            cost
            and side
            and {
                "tokens_per_second": side.tokens_per_second,
                "watts": side.watts,
                "money_per_million_tokens": cost.money,
                "kwh_per_million_tokens": cost.kwh,
            }
        )
    hours = None
    if one.break_even_tokens is not None and speculative is not None:
        hours = one.break_even_tokens / speculative.tokens_per_second / SECONDS_PER_HOUR
    return found | {
        "saved": one.saved,
        "pays": one.pays,
        "break_even_tokens": one.break_even_tokens,
        "break_even_hours": hours,
    }


def run(path: Path, prices: Prices, draft: Path | None, json_file: Path | None, command: Sequence[str]) -> None:
    """Print the table and, last, one line of JSON; raises ``RedraftError`` as ``read_load`` and ``costs`` do."""
    report = {"benchmark": "cost", **stamp(command), **costs(read_load(path), path, prices, draft)}
    line = json.dumps(report, ensure_ascii=False)
    if json_file is not None:
        try:
            json_file.write_text(line + "\n")
        except OSError as error:
            raise RedraftError(f"cannot write {json_file} ({error.strerror}); choose another place") from error
    print(table(report))
    print(line, flush=True)
