"""States of texts, computed once and kept on disk as safetensors, so that later passes over the data skip the target.

A file a text, named by what it was made from, written under another name and renamed: a killed run leaves no half file.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.teacher import States, Teacher

SPARE = 2 << 30
"""Bytes of disk that the cache leaves alone."""


class TapCache:
    """Gets a text's states from disk or from the teacher, always rounded to bf16, so that both are the same."""

    def __init__(self, teacher: Teacher, taps: tuple[int, ...], folder: Path | None) -> None:
        """``folder``: where to keep states; None keeps nothing."""
        self.teacher, self.taps, self.folder = teacher, taps, folder
        self.read = self.computed = 0
        self.full = False
        """Whether the disk has no room for more; what lies there is still read."""
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DraftError(f"{folder}: cannot be made ({error})") from None

    def states(self, text: Text) -> States:
        """[S, n * H] and [S, H] of ``text``, in the dtype of the teacher's embedding."""
        path = self._path(text)
        found = self._load(path) if path is not None and path.is_file() else None
        if found is None:
            made = self.teacher.states(text.tokens, self.taps)
            found = {"taps": made.taps.bfloat16(), "final": made.final.bfloat16()}
            self.computed += 1
            if path is not None and not self.full:
                self._save(path, found)
        else:
            self.read += 1
        like = self.teacher.embedding
        return States(*(found[name].to(like.device, like.dtype) for name in ("taps", "final")))

    def _path(self, text: Text) -> Path | None:
        if self.folder is None:
            return None
        key = f"{self.teacher.identity}|{self.taps}|{text.tokens}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    @staticmethod
    def _load(path: Path) -> dict[str, torch.Tensor] | None:
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            return None  # damaged: made again

    def _save(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        """Keep ``tensors``; with too little disk left, go on without keeping any more."""
        draft = path.with_suffix(".part")
        try:
            if shutil.disk_usage(path.parent).free < SPARE:
                self.full = True
                return
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft)
            draft.replace(path)
        except (OSError, SafetensorError):
            draft.unlink(missing_ok=True)
            self.full = True
