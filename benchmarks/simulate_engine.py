"""A simulation's inputs from a real engine: its costs, its draft's acceptance on prompts, what it really does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redraft.benchmarks.load_plan import round_robin
from redraft.benchmarks.prompts import read_prompts
from redraft.benchmarks.simulate import Inputs
from redraft.benchmarks.simulate_record import costs, record
from redraft.benchmarks.simulate_script import Chances
from redraft.benchmarks.simulate_trace import Trace, write_trace
from redraft.benchmarks.simulate_validate import report, validate
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.costs import CostTable
from redraft.server.engine.load import build_engine
from redraft.server.engine.progress import progress
from redraft.server.engine.types import RedraftError, SamplingParams
from redraft.server.text import TextTokenizer

GREEDY = SamplingParams(max_tokens=64, temperature=0.0)
FACTS = ("target", "draft", "device", "dtype", "max_nodes", "fingerprint", "notes")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be had of the engine besides its costs."""

    files: tuple[Path, ...] = ()
    """Of prompts to record acceptance on; none if that is given."""
    limit: int | None = None
    params: SamplingParams = GREEDY
    record: Path | None = None
    """Where the trace goes."""
    users: tuple[int, ...] = ()
    """Closed loops to run for real, and to compare."""
    host_seconds: float = 0.0


def from_engine(
    config: EngineConfig, wanted: Wanted, table: CostTable | None, source: Trace | Chances | None
) -> tuple[Inputs, dict[str, Any]]:
    """Inputs, of which ``table`` and ``source`` may be given; and with ``wanted.users`` a comparison, printed too.

    Raises ``RedraftError`` where the engine cannot start or a prompt cannot run.
    """
    prompts = encode(config, round_robin([read_prompts(path, wanted.limit) for path in wanted.files]))
    engine = build_engine(config)
    if source is None:
        with progress(f"Recording {len(prompts)} answers", len(prompts)) as advance:
            source = record(engine, prompts, wanted.params, advance)
        if wanted.record is not None:
            write_trace(wanted.record, source)
    measured = costs(engine) if table is None else table
    more: dict[str, Any] = {}
    if wanted.users:
        assert isinstance(source, Trace)
        rows = []
        with progress("Running for real", len(wanted.users)) as advance:
            for users in wanted.users:
                # machines drift: what a level is held against was measured just before
                rows += validate(engine, prompts, wanted.params, source, users, table, wanted.host_seconds)
                advance(1)
        print(report(rows))
        more["validation"] = rows
    facts = {
        **{name: getattr(engine.info, name) for name in FACTS},
        "target_sha": config.target_sha,
        "threads": torch.get_num_threads(),
        "costs": "measured" if table is None else "given",
        "acceptance": [str(path) for path in wanted.files] or "given",
    }
    gpu = torch.cuda.get_device_name() if engine.info.device == "cuda" else None
    return Inputs(measured, source, facts, engine.lag, gpu), more


def encode(config: EngineConfig, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """``prompts`` in the target's chat template; ``RedraftError`` where it has none."""
    if not prompts:
        return []
    tokenizer = TextTokenizer.from_folder(Path(config.target))
    template = tokenizer.chat_template
    if template is None:
        raise RedraftError(f"{config.target_name} has no chat template; simulate a target that has one")
    texts = (template.render([{"role": "user", "content": prompt}]) for prompt in prompts)
    # the template writes the special tokens itself
    return [tokenizer.encode(text, special_tokens=False) for text in texts]
