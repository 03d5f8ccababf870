"""Where the GPU suite's figures are found in what its stages returned; what is not there says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from redraft.benchmarks.peers import KEPT, STATIC, fastest_compiled

Stages = Mapping[str, Mapping[str, Any]]


class Missing(Exception):
    """Why a figure has no value."""


def _stage(stages: Stages, name: str) -> Mapping[str, Any]:
    stage = stages.get(name)
    if stage is None:
        raise Missing(f"stage {name} was not run")
    if "skipped" in stage:
        raise Missing(f"stage {name} was skipped: {stage['skipped']}")
    if "error" in stage:
        raise Missing(f"stage {name} broke: {stage['error'].strip().splitlines()[-1]}")
    return stage


def _number(found: Mapping[str, Any], key: str) -> float:
    if found.get(key) is None:
        raise Missing(f"{key} is not known")
    return float(found[key])


def _case(stages: Stages, name: str, shape: str, rows: int) -> Mapping[str, Any]:
    """Of one request."""
    for case in _stage(stages, name).get(name, ()):
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
        sets = _stage(stages, "speed")["sets"]
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
            raise Missing(f"{key} is not known")
        found = found[key]
    return found


def bandwidth_over_weights(stages: Stages) -> float:
    """Tokens per second at which nothing but weights is read, at the speed of a copy."""
    bandwidth = _number(_stage(stages, "bandwidth"), "copy_bytes_per_second")
    return bandwidth / _number(_stage(stages, "speed"), "weight_bytes")


def against_compiled(stages: Stages) -> float:
    """The engine's plain decoding by the faster of transformers' compiled ways, on the same prompts and tokens."""
    stage = _stage(stages, "peers")
    theirs = fastest_compiled(stage["peers"])
    if theirs is None:
        ways = {name: stage["peers"].get(name, {}) for name in (STATIC, KEPT)}
        why = (f"{name}: {one.get('skipped') or one.get('failed') or 'not run'}" for name, one in ways.items())
        raise Missing("; ".join(why))
    return _number(_inner(stage, ("ours", "plain")), "tokens_per_second") / theirs


def slowest_peer(stages: Stages) -> float:
    """``against_compiled`` as predicted: of the peer nothing but what it cannot do without."""
    return _number(_stage(stages, "peers"), "predicted_ratio")


def mismatches(way: str, what: str) -> Callable[[Stages], float]:
    """Of ``way`` to decode (equality_run.py)."""

    def found(stages: Stages) -> float:
        ways = _stage(stages, "equality").get("ways", {})
        if way not in ways or not ways[way]["requests"]:
            raise Missing(f"{way} was not compared")
        return _number(ways[way], what)

    return found


def compared(prompts: int, tokens: int) -> Callable[[Stages], str | None]:
    """What is missing to ``prompts`` prompts of ``tokens`` tokens, None if nothing."""

    def found(stages: Stages) -> str | None:
        stage = _stage(stages, "equality")
        did, each = stage.get("prompts", 0), stage.get("max_tokens", 0)
        return f"{did} x {each} compared, not {prompts} x {tokens}" if did < prompts or each < tokens else None

    return found


def checks_failed(stages: Stages) -> float:
    """Checks of the stage ``equality``: of drafters that are wrong on purpose, of prefill against single steps."""
    return float(sum(not check["ok"] for check in _stage(stages, "equality")["checks"]))
