"""What a trained draft says of itself: ``card.json``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.training.run import Run
from redraft.drafts.training.settings import dtype_name
from redraft.server.engine.target.resolve import ResolvedTarget


def card(target: ResolvedTarget, run: Run, data: Sequence[Path], start: Checkpoint | None = None) -> dict[str, Any]:
    """What a draft says of itself; what it was before this run is told in ``before``."""
    progress = run.progress
    before = {} if start is None else {"before": {"version": start.version, **start.card}}
    return {
        "target": target.name,
        "target_sha": target.sha,
        "method": run.method,
        "data": [path.name for path in data],
        "texts": len(run.texts),
        "steps": progress.step,
        "labels": progress.labels,
        "training_seconds": round(progress.seconds),
        "training_flops": asdict(progress.flops),
        "development_tau": progress.tau,
        **({"processes": run.together.size} if run.together.size > 1 else {}),
        "command": shlex.join(["redraft", *(Path(word).name if "/" in word else word for word in sys.argv[1:])]),
        "settings": run.settings.asked,
        "dtype": dtype_name(run.products),
        "torch": torch.__version__,
        **before,
    }
