"""``redraft bench acceptance``: τ per prompt file for the ways to use one draft, requests decoded side by side.

Acceptance does not depend on how fast or how many at a time requests are decoded, so this needs a fraction of the time
of ``bench speed``.  All ways decode the same requests on one engine, so their outputs are compared as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.stamp import stamp
from redraft.drafts.base import Drafter
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.progress import progress
from redraft.server.engine.types import RedraftError, SamplingParams
from redraft.server.text import TextTokenizer

EVERY_NODE = 1 << 20
"""Rows of a round: what is proposed is verified, however many requests there are."""


def ways(drafter: Drafter) -> dict[str, Drafter]:
    """The ways to use what an engine was built with, by name."""
    if not isinstance(drafter, MergedDrafter) or not isinstance(drafter.first, DFlashDrafter | Eagle3Drafter):
        return {drafter.name: drafter}
    return {
        "n-gram": drafter.second,
        "chain": drafter.first.as_chain(),
        "tree": drafter.first,
        "tree + n-gram": drafter,
    }


def acceptance(
    config: EngineConfig,
    files: Sequence[PromptFile],
    params: SamplingParams,
    json_file: Path | None,
    command: list[str],
) -> None:
    """Print a table and, last, a line of JSON; raises ``RedraftError`` if ways of drafting gave different tokens."""
    tokenizer = TextTokenizer.from_folder(Path(config.target))
    engine = build_engine(config)
    engine.pacer.most_rows, engine.pacer.fixed = EVERY_NODE, engine.info.max_nodes
    drafters = ways(engine.drafter)
    found: list[dict[str, Any]] = []
    for file in files:
        prompts = [_prompt(tokenizer, turns[0]) for turns in file.conversations]
        outputs: list[list[list[int]]] = []
        with progress(f"{file.name}: {len(prompts)} requests, {len(drafters)} ways", len(drafters)) as advance:
            for name, drafter in drafters.items():
                decoded = decode(engine, drafter, prompts, params)
                outputs.append([one.tokens for one in decoded])
                found.append({"file": file.name, "draft": name, **_figures(decoded)})
                advance(1)
        if any(tokens != outputs[0] for tokens in outputs[1:]):
            raise RedraftError(f"{file.name}: ways of drafting gave different tokens; see the engine's self-check")
    for row in found:
        print(f"{row['file']:14} {row['draft']:14} τ {row['tau']:.3f} ({row['tau_per_request']:.3f} per request)")
    facts = {"draft": engine.info.draft, "max_nodes": engine.info.max_nodes, "dtype": engine.info.dtype}
    report = {"benchmark": "acceptance", **stamp(command), "engine": facts, "files": found}
    line = json.dumps(report, ensure_ascii=False)
    if json_file is not None:
        json_file.write_text(line + "\n")
    print(line, flush=True)


def _prompt(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        return tokenizer.encode(text)
    return tokenizer.encode(tokenizer.chat_template.render([{"role": "user", "content": text}]), special_tokens=False)


def _figures(decoded: Sequence[Decoded]) -> dict[str, Any]:
    lengths = Counter(n for one in decoded for n in one.committed)
    rounds = lengths.total()
    return {
        "requests": len(decoded),
        "tokens": sum(len(one.tokens) for one in decoded),
        "rounds": rounds,
        "tau": sum(n * count for n, count in lengths.items()) / rounds,
        "tau_per_request": sum(len(one.tokens) / len(one.committed) for one in decoded) / len(decoded),
        "histogram": [lengths[n] for n in range(1, max(lengths) + 1)],
    }
