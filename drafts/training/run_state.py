"""The state of a training run on disk: enough to go on bit for bit, in safetensors and JSON.

Every save is a folder of its own, complete before it gets its name; older ones are removed afterwards.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.optimise import Optimiser
from redraft.drafts.training.settings import dtype_name

PREFIX = "step-"
NOTED = {"step", "labels", "seconds", "tau", "settings", "texts", "target"}
"""What ``state.json`` has to hold."""
PRODUCTS = {dtype_name(dtype): dtype for dtype in (torch.bfloat16, torch.float32)}
"""What runs multiply in, by its name in ``state.json``."""


def save_state(folder: Path, step: int, module: nn.Module, optimiser: Optimiser, facts: dict[str, Any]) -> None:
    """Save under ``folder``; a full disk raises ``DraftError`` and leaves the last save as it was."""
    final, part = folder / f"{PREFIX}{step:08}", folder / "saving.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors: dict[str, Tensor] = {f"weights/{k}": v.detach() for k, v in module.state_dict().items()}
        tensors |= {f"optimiser/{k}": v for k, v in optimiser.tensors().items()}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(facts | {"step": step}))
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DraftError(
            f"{folder}: step {step} could not be saved ({error}); the save before it is whole. "
            "Make room and run the same command again to go on from there."
        ) from None
    for old in folder.glob(f"{PREFIX}*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The last save under ``folder``."""
    found = sorted(folder.glob(f"{PREFIX}*"))
    return found[-1] if found else None


def facts_of(saved: Path) -> dict[str, Any]:
    """What was noted with a save."""
    try:
        facts: dict[str, Any] = json.loads((saved / "state.json").read_text())
        if not isinstance(facts, dict) or not facts.keys() >= NOTED:
            raise ValueError("state.json is not whole")
    except (OSError, ValueError) as error:
        raise DraftError(f"{saved}: cannot be resumed ({error}); remove it to start anew") from None
    return facts


def saved_products(folder: Path, device: torch.device) -> torch.dtype | None:
    """What the run saved under ``folder`` multiplies in; None if there is no save.

    Saves from before this was noted are taken for what nearly all of them are, the default of then: fp32 on a CPU, bf16
    on a GPU.  To measure what is faster now would change the numbers of a run by how busy the machine is.
    """
    saved = newest(folder)
    if saved is None:
        return None
    name = str(facts_of(saved).get("dtype", "float32" if device.type == "cpu" else "bfloat16"))
    if name not in PRODUCTS:
        raise DraftError(f"{saved}: cannot be resumed (its dtype is {name!r}); remove it to start anew")
    return PRODUCTS[name]


def load_state(saved: Path, module: nn.Module, optimiser: Optimiser) -> None:
    """Restore weights and optimiser from a save."""
    try:
        tensors = load_file(saved / "state.safetensors")
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
        with torch.no_grad():
            module.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last: names or shapes of the weights
        why = " ".join(str(error).split())
        raise DraftError(f"{saved}: cannot be resumed ({why}); remove it to start anew") from None
    optimiser.restore({k.removeprefix("optimiser/"): v for k, v in tensors.items() if k.startswith("optimiser/")})
