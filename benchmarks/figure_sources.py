"""Where the GPU suite's figures are found in what its stages returned; what is not there says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from redraft.benchmarks.peers import KEPT, STATIC, compiled_late, fastest_compiled
from redraft.benchmarks.suite_cases import ERROR, FAILED

Stages = Mapping[str, Mapping[str, Any]]


class Missing(Exception):
    """Why a figure has no value."""


def _part(stages: Stages, name: str, key: str) -> Any:
    """What the stage ``name`` has under ``key``, also if it broke elsewhere."""
    stage = stages.get(name)
    if stage is None:
        raise Missing(f"stage {name} was not run")
    if stage.get(key) is not None:
        return stage[key]
    if "skipped" in stage:
        raise Missing(f"stage {name} was skipped: {stage['skipped']}")
    if ERROR in stage:
        raise Missing(f"stage {name} broke: {stage[ERROR].strip().splitlines()[-1]}")
    raise Missing(f"{key} is not known")


def _number(found: Mapping[str, Any], key: str) -> float:
    if found.get(key) is None:
        raise Missing(_unknown(found, key))
    return float(found[key])


def _unknown(found: Mapping[str, Any], key: str) -> str:
    return f"failed: {found[FAILED]}" if FAILED in found else f"{key} is not known"


def _case(stages: Stages, name: str, shape: str, rows: int) -> Mapping[str, Any]:
    """Of one request."""
    for case in _part(stages, name, name):
        if (case["shape"], case["requests"], case["rows"]) == (shape, 1, rows):
            for problem in ("failed", "skipped"):
                if problem in case:
                    raise Missing(f"{name}, {shape}, {rows} rows: {problem}, {case[problem]}")
            return case  # type: ignore[no-any-return]
    raise Missing(f"{name} of {shape} with {rows} rows were not measured")


def of_step(shape: str, rows: int, key: str) -> Callable[[Stages], float]:
    """Of a plain step or a verified tree of one request."""
    return lambda stages: _number(_case(stages, "steps", shape, rows), key)


def of_round(shape: str, rows: int, key: str) -> Callable[[Stages], float]:
    """Of a whole round of one request."""
    return lambda stages: _number(_case(stages, "rounds", shape, rows), key)


def ratio(one: Callable[[Stages], float], other: Callable[[Stages], float]) -> Callable[[Stages], float]:
    """Of two figures."""
    return lambda stages: one(stages) / other(stages)


def step_ratio(shape: str, rows: int, key: str) -> Callable[[Stages], float]:
    """Of a verified tree and a plain step."""
    return ratio(of_step(shape, rows, key), of_step(shape, 1, key))


def of_sets(names: Sequence[str], *keys: str) -> Callable[[Stages], float]:
    """Mean over the sets of prompts of ``names``, of which none may lack; over all that were given for none.

    A set goes by its file's name, lower case, letters and digits alone, which has to contain the name asked for.
    """

    def found(stages: Stages) -> float:
        sets = _part(stages, "speed", "sets")
        plain = {"".join(filter(str.isalnum, name.lower())): one for name, one in sets.items()}
        chosen: list[Mapping[str, Any]] = []
        for name in names or plain:
            like = [one for other, one in plain.items() if name in other]
            if not like:
                raise Missing(f"no set of prompts named {name} was given (--prompts)")
            chosen.append(like[0])
        return fmean(_number(_inner(one, keys[:-1]), keys[-1]) for one in chosen)

    return found


def _inner(found: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    for key in keys:
        if key not in found:
            raise Missing(_unknown(found, key))
        found = found[key]
    return found


def bandwidth_over_weights(stages: Stages) -> float:
    """Tokens per second at which nothing but weights is read, at the speed of a copy."""
    bandwidth = float(_part(stages, "bandwidth", "copy_bytes_per_second"))
    return bandwidth / float(_part(stages, "speed", "weight_bytes"))


def against_compiled(stages: Stages) -> float:
    """The engine's plain decoding by the faster of transformers' compiled ways, on the same prompts and tokens."""
    peers = _part(stages, "peers", "peers")
    theirs = fastest_compiled(peers)
    if theirs is None:
        ways = {name: peers.get(name, {}) for name in (STATIC, KEPT)}
        why = (f"{name}: {one.get('skipped') or one.get('failed') or 'not run'}" for name, one in ways.items())
        raise Missing("; ".join(why))
    return _number(_inner(_part(stages, "peers", "ours"), ("plain",)), "tokens_per_second") / theirs


def nothing_compiled_late(stages: Stages) -> str | None:
    """Why the time that transformers took is no measure, None if it is one."""
    return compiled_late(_part(stages, "peers", "peers"))


def slowest_peer(stages: Stages) -> float:
    """``against_compiled`` as predicted: of the peer nothing but what it cannot do without."""
    return float(_part(stages, "peers", "predicted_ratio"))


def mismatches(way: str, what: str) -> Callable[[Stages], float]:
    """Of ``way`` to decode (equality_run.py)."""

    def found(stages: Stages) -> float:
        ways = _part(stages, "equality", "ways")
        if way not in ways or not ways[way]["requests"]:
            why = ways.get(way, {}).get(FAILED)
            raise Missing(f"{way} was not compared" + (f": {why}" if why else ""))
        return _number(ways[way], what)

    return found


def compared(way: str, prompts: int, tokens: int) -> Callable[[Stages], str | None]:
    """What is missing to ``prompts`` prompts of ``tokens`` tokens that ``way`` decoded, None if nothing."""

    def found(stages: Stages) -> str | None:
        one, each = _part(stages, "equality", "ways")[way], _part(stages, "equality", "max_tokens")
        if one["requests"] >= prompts and each >= tokens:
            return None
        why = f": {one[FAILED]}" if FAILED in one else ""
        return f"{one['requests']} x {each} compared, not {prompts} x {tokens}{why}"

    return found


def checks_failed(stages: Stages) -> float:
    """Checks of the stage ``equality``: of drafters that are wrong on purpose, of prefill against single steps."""
    return float(sum(not check["ok"] for check in _part(stages, "equality", "checks")))
