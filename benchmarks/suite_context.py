"""What the GPU suite's stages work with: sizes, engines, prompts, bandwidth, time."""

from __future__ import annotations

import argparse
import shutil
import weakref
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import mkdtemp

from redraft.benchmarks.bandwidth import copy_bandwidth
from redraft.benchmarks.kernel_checks import FULL, QUICK
from redraft.benchmarks.shapes import TARGETS, TINY
from redraft.benchmarks.suite_clock import Clock
from redraft.benchmarks.suite_prompts import random_prompts, read_id_prompts
from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.base import Drafter
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.hardware import choose_device, choose_dtype
from redraft.server.engine.load import build_engine

SLOTS = 8
"""Of the engine that speed is measured on, as one that serves has."""
MANY = 16
"""Requests side by side in which output is compared."""
TREES = 2 * PAGE
"""Cells behind a text that rounds may write: of two trees, with one round not read back yet."""
PEER_PROMPTS, PEER_TOKENS = 6, 128
"""Peers are slow: what is compared with them is that much of the work."""

Prompts = list[list[int]]


class Suite:
    """One run: what is measured on, and what every stage needs."""

    def __init__(self, options: argparse.Namespace, clock: Clock | None = None) -> None:
        self.options = options
        self.clock = clock or Clock(options.budget)
        self.quick: bool = options.quick
        self.device, _ = choose_device(options.device)
        self.dtype, _ = choose_dtype(options.dtype, self.device)
        self.sizes = QUICK if self.quick else FULL
        # the one with most figures first, should time run out
        self.targets = TINY if self.quick else dict(reversed(TARGETS.items()))
        self.max_tokens: int = options.max_tokens or (16 if self.quick else 256)
        self.equality_tokens: int = options.equality_tokens or (16 if self.quick else 256)
        self.equality_prompts: int = options.equality_prompts or (6 if self.quick else 200)
        self.speed_prompts: int = options.speed_prompts or (3 if self.quick else 16)

    @cached_property
    def folder(self) -> Path:
        """Of the target: the one given, or a tiny random one, which goes with the suite."""
        if self.options.target:
            return Path(self.options.target)
        scratch = Path(mkdtemp())
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        return make_tiny_target(scratch / "tiny-target")

    @cached_property
    def engine(self) -> Engine:
        """Built when the first stage needs it, so that kernels are checked even where no target loads."""
        return self._engine(SLOTS)

    @cached_property
    def drafter(self) -> Drafter:
        """The engine's own, whatever decoded last; asked for before anything is decoded."""
        return self.engine.drafter

    @cached_property
    def many(self) -> Engine:
        """With as many slots as requests are to run side by side."""
        return self._engine(MANY)

    @cached_property
    def many_drafter(self) -> Drafter:
        """Of ``many``, as ``drafter`` is of ``engine``."""
        return self.many.drafter

    def _engine(self, slots: int) -> Engine:
        each = -(-(self.options.max_model_len + TREES) // PAGE)
        config = EngineConfig(
            target=str(self.folder),
            target_name=self.folder.name,
            target_sha="",
            draft=self.options.draft,
            dtype=self.options.dtype,
            device=self.options.device,
            max_model_len=self.options.max_model_len,
            measure_costs=False,
            max_num_seqs=slots,
            self_check=False,
            # there are two engines, and targets of other shapes beside them
            kv_pages=slots * each,
        )
        return build_engine(config)

    @cached_property
    def sets(self) -> dict[str, Prompts]:
        """Token ids by name of the set: of a file each, or random."""
        if self.options.prompts:
            return {path.stem: read_id_prompts(path, self.options.target) for path in self.options.prompts}
        return {"random": random_prompts(self.engine.info.vocab_size, count=6 if self.quick else MANY)}

    @property
    def mixed(self) -> Prompts:
        """Of all sets, in turn."""
        turns = zip_longest(*self.sets.values())
        return [prompt for prompt in chain.from_iterable(turns) if prompt is not None]

    @property
    def peer_work(self) -> tuple[Prompts, int]:
        """Prompts and tokens of each that peers and the engine beside them answer."""
        count, tokens = (2, 4) if self.quick else (PEER_PROMPTS, PEER_TOKENS)
        return self.mixed[:count], min(tokens, self.max_tokens)

    @cached_property
    def copy_bytes_per_second(self) -> float:
        """Measured once, whichever stage asks first."""
        return copy_bandwidth(self.device, 2**24 if self.quick else 2**30)
