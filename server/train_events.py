"""Scalars of a training run for TensorBoard: ``--tensorboard``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.run import Progress


@contextmanager
def events(folder: Path, step: int) -> Iterator[Callable[[Progress], None]]:
    """Writes what it is told of every step to an event file under ``folder``; ``step`` is the run's last one so far.

    Steps behind ``step`` that an earlier process wrote, before it was killed and after its last save, are made again:
    the new file tells TensorBoard to forget the old ones.
    """
    # loads the tensorboard package, which is optional
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1)
    except OSError as error:
        raise _unwritable(folder, error) from None

    def tell(progress: Progress) -> None:
        try:
            for name, value in scalars(progress).items():
                writer.add_scalar(name, value, progress.step)
            # as the log: what a killed run has saved must not lack its steps here
            writer.flush()
        except OSError as error:
            raise _unwritable(folder, error) from None

    try:
        yield tell
    finally:
        with suppress(OSError):  # all that was told has been flushed, or has raised
            writer.close()


def scalars(progress: Progress) -> dict[str, float]:
    """The last step by the names that ``log.jsonl`` has; τ only where it was measured."""
    p = progress
    found = {"loss": p.loss, "norm": p.norm, "rate": p.rate, "labels": p.labels, "labels_per_second": p.recent_rate}
    operations = asdict(p.flops) | {"total": p.flops.total}
    found |= p.figures | {f"flops/{part}": count for part, count in operations.items()}
    return found | ({"tau": p.tau} if p.tau is not None and p.measured == p.step else {})


def _unwritable(folder: Path, error: OSError) -> DraftError:
    return DraftError(f"{folder}: events cannot be written ({error})")
