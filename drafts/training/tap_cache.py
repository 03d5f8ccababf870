"""States of texts, computed once and kept, on disk as safetensors or on the device, so that later passes over the data
skip the target.

On disk a file a text, named by what it was made from, written under another name and renamed: a killed run leaves no
half file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.teacher import States, Teacher

SPARE = 2 << 30
"""Bytes of disk that the cache leaves alone."""
ROWS = {"cpu": 1, "cuda": 32768}
"""Positions that the target reads in one pass; a text is never cut."""


class TapCache:
    """A text's states, always rounded to bf16, so that they are the same wherever they come from.

    Those of a target that multiplies in fp32 are others than those of the same target in bf16.
    """

    def __init__(self, teacher: Teacher, taps: tuple[int, ...], folder: Path | None, room: int = 0) -> None:
        """``folder``: where to keep states, None keeps none on disk; ``room``: bytes of the device to keep them in."""
        self.teacher, self.taps, self.folder, self.room = teacher, taps, folder, room
        self.keeps = folder is not None or room > 0
        """Whether a later pass over the same texts finds their states, as far as there is room."""
        self.read = self.computed = 0
        self.full = False
        """Whether the disk has no room for more; what lies there is still read."""
        self.resident: dict[Text, States] = {}
        self.held: dict[Text, States] = {}
        """Of the texts that were last asked for together."""
        self.fresh: set[Text] = set()
        """Those of them that the target had to read."""
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DraftError(f"{folder}: cannot be made ({error})") from None

    def fill(self, texts: Sequence[Text]) -> None:
        """Have the states of ``texts`` at hand; the target reads what nobody kept, many texts in a pass."""
        found = {text: states for text in texts if (states := self.resident.get(text) or self._load(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for group in _groups(missing, ROWS.get(self.teacher.embedding.device.type, 1)):
            self.computed += len(group)
            for text, made in zip(group, self.teacher.states_of([t.tokens for t in group], self.taps), strict=True):
                rounded = States(made.taps.bfloat16(), made.final.bfloat16())
                self._save(text, rounded)
                found[text] = self._placed(rounded)
        for text, states in found.items():
            size = states.taps.nbytes + states.final.nbytes
            if text not in self.resident and size <= self.room:
                self.room -= size
                self.resident[text] = states
        self.held, self.fresh = found, set(missing)

    def states(self, text: Text) -> States:
        """[S, n * H] and [S, H] of ``text``, in the dtype of the teacher's embedding."""
        if text not in self.held:
            self.fill([text])
        return self.held[text]

    def _placed(self, states: States) -> States:
        like = self.teacher.embedding
        return States(states.taps.to(like.device, like.dtype), states.final.to(like.device, like.dtype))

    def _path(self, text: Text) -> Path | None:
        if self.folder is None:
            return None
        # Files from before the dtype was part of it don't tell what they were made in, so none of them is found.
        key = f"{self.teacher.identity}|{self.teacher.embedding.dtype}|{self.taps}|{text.tokens}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, text: Text) -> States | None:
        """From disk, if it is there and whole; else it is made again."""
        path = self._path(text)
        if path is None or not path.is_file():
            return None
        try:
            found = load_file(path)
        except (SafetensorError, OSError):
            return None
        self.read += 1
        return self._placed(States(found["taps"], found["final"]))

    def _save(self, text: Text, states: States) -> None:
        """Keep ``states`` on disk; with too little of it left, go on without keeping any more."""
        path = self._path(text)
        if path is None or self.full:
            return
        draft = path.with_suffix(f".{os.getpid()}.part")  # another process may be at the same text
        try:
            if shutil.disk_usage(path.parent).free < SPARE:
                self.full = True
                return
            save_file({"taps": states.taps.cpu().contiguous(), "final": states.final.cpu().contiguous()}, draft)
            draft.replace(path)
        except (OSError, SafetensorError):
            draft.unlink(missing_ok=True)
            self.full = True


def _groups(texts: Sequence[Text], rows: int) -> Iterator[list[Text]]:
    """``texts`` by length, as many together as make ``rows`` with their padding."""
    group: list[Text] = []
    for text in sorted(texts, key=lambda text: len(text.tokens)):
        if group and (len(group) + 1) * len(text.tokens) > rows:
            yield group
            group = []
        group.append(text)
    if group:
        yield group
