"""Train the arms of the comparison, each up to its operations, and go on where an earlier call stopped."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from redraft.benchmarks.headline.pace import Pace
from redraft.benchmarks.headline.plan import Arm
from redraft.drafts.checkpoint import Checkpoint, read_draft, write_draft
from redraft.drafts.training.data import Text
from redraft.drafts.training.run import Progress, Run
from redraft.drafts.training.tap_cache import TapCache
from redraft.server.engine.progress import say
from redraft.server.engine.target.resolve import ResolvedTarget
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.train import DRAFT, RunOptions, device_room, make_run
from redraft.server.train_card import card
from redraft.server.train_held_out import known_tau
from redraft.server.train_start import Settings, kept_tokens


@dataclass
class Bench:
    """What all arms are trained with; the target's states are shared by those with the same taps."""

    target: ResolvedTarget
    spec: TargetSpec
    teacher: TargetTeacher
    texts: Sequence[Text]
    dev: Sequence[Text]
    data: Sequence[Path]
    out: Path
    until: float
    """``time.monotonic()`` at which to save and stop, finished or not."""
    measure_every: int = 50
    save_every: int = 400
    command: Sequence[str] = ()
    """For the cards; paths are told by their names."""
    room: int | None = None
    """Bytes of a GPU's memory for the target's states; None: half of what is free."""
    caches: dict[tuple[int, ...], TapCache] = field(default_factory=dict)

    def cache(self, taps: tuple[int, ...]) -> TapCache:
        """Of these taps; in the GPU's memory where there is one."""
        if taps not in self.caches:
            room = device_room(self.teacher.embedding.device) if self.room is None else self.room
            folder = None if room else self.out / "target-states"
            self.caches[taps] = TapCache(self.teacher, taps, folder, room)
        return self.caches[taps]


def train_arm(bench: Bench, arm: Arm, budget: float, finish: float) -> bool:
    """Train ``arm`` with ``budget`` operations, or fewer to be done at ``finish``.

    Returns whether it is finished, now or since an earlier call.
    """
    folder = bench.out / arm.name
    if (folder / DRAFT).is_dir():
        return True
    start = read_draft(bench.out / arm.start / DRAFT) if arm.start else None
    settings = arm.settings if start is None else replace(arm.settings, start=start.version)
    kept = kept_tokens(settings, bench.spec, bench.texts, start)
    # the longest run there could be, until the first steps tell
    settings = replace(settings, steps=10**9)
    run = new_run(bench, settings, RunOptions(folder), kept, start)
    pace = Pace(run, budget, finish)
    pace()
    begun = time.monotonic()
    say(f"{arm.name}: {budget / 1e12:.0f} TFLOP")
    finished = run.run(
        _teller(arm.name, run, pace),
        lambda: time.monotonic() > bench.until,
        bench.measure_every,
        bench.save_every,
    )
    if not finished:
        say(f"{arm.name}: stopped at step {run.progress.step} of {run.settings.steps}, saved")
        return False
    config = run.config
    if bench.dev and run.settings.decay_share:
        config = replace(config, tree_temperatures=run.temperatures())
    # a trunk's weights are gone on from: they keep their precision
    dtype = torch.float32 if not run.settings.decay_share else torch.bfloat16
    command = shlex.join(Path(word).name if "/" in word else word for word in bench.command)
    noted = card(bench.target, run, bench.data, start) | {"planned_flops": budget, "command": command}
    if bench.dev:
        noted |= {"trained_tau": known_tau(run)}
    write_draft(folder / DRAFT, config, run.module.state_dict(), kept, noted, dtype)
    p = run.progress
    tau = "not measured" if p.tau is None else f"{p.tau:.3f}"
    say(
        f"{arm.name}: {p.step} steps, {p.labels} labels, {p.flops.total / 1e12:.0f} TFLOP in {p.seconds:.0f} s "
        f"({p.flops.total / 1e12 / p.seconds:.1f} TFLOP/s; {time.monotonic() - begun:.0f} s with measuring); τ {tau}"
    )
    return True


def new_run(
    bench: Bench, settings: Settings, options: RunOptions, kept: tuple[int, ...] | None, start: Checkpoint | None
) -> Run:
    """A run over the texts of ``bench``, with its states."""
    run = make_run(bench.spec, bench.teacher, bench.texts, bench.dev, settings, options, kept, start)
    run.cache = bench.cache(run.config.taps)
    run.paid = start is not None
    return run


def _teller(name: str, run: Run, pace: Pace) -> Callable[[Progress], None]:
    """A line every ten seconds."""
    shown = time.monotonic()

    def tell(p: Progress) -> None:
        nonlocal shown
        pace()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            tau = "" if p.tau is None else f", τ {p.tau:.3f}"
            say(f"  {name} {p.step}/{run.settings.steps} loss {p.loss:.3f}, {p.recent_rate:.0f} labels/s{tau}")

    return tell
