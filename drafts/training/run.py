"""A training run, whatever it learns from: steps, saves, log, measuring, going on where it stopped."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.draft_config import DraftConfig
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.calibrate import fit_temperatures
from redraft.drafts.training.data import Text
from redraft.drafts.training.flops import Flops
from redraft.drafts.training.measure import Acceptance, pooled
from redraft.drafts.training.module import rope_for
from redraft.drafts.training.optimise import Optimiser
from redraft.drafts.training.run_state import facts_of, load_state, newest, save_state
from redraft.drafts.training.settings import RunSettings, require_same
from redraft.drafts.training.tap_cache import TapCache
from redraft.drafts.training.teacher import States, Teacher
from redraft.drafts.training.together import ALONE, Together


@dataclass(slots=True)
class Progress:
    """What a run tells while it runs."""

    step: int
    labels: int = 0
    """Since the run's first step, over all resumptions."""
    seconds: float = 0.0
    """Of training proper, likewise: the target's passes included, measuring and saving not."""
    flops: Flops = field(default_factory=Flops)
    """Likewise."""
    loss: float = 0.0
    norm: float = 0.0
    """Of the gradient, before clipping."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last step, what the way of training tells besides."""
    tau: float | None = None
    """Greedy chain acceptance length on the development texts, when last measured."""
    measured: int = 0
    """Step after which this process last measured it; 0 if it has not."""
    rate: float = 0.0
    """Learning rate of the last step."""
    recent_rate: float = 0.0
    """Labels per second of the last step."""


@dataclass(frozen=True, slots=True)
class Made:
    """What one step's passes came to, over all processes; gradients of this one's share are in the module."""

    loss: Tensor
    labels: int
    """Rows that were taught."""
    flops: Flops
    """Of this process's share."""
    figures: dict[str, float]


@dataclass
class Run(ABC):
    """One run: the module, where it stands, and what it needs to go on."""

    settings: RunSettings
    config: DraftConfig
    teacher: Teacher
    vocabulary: Vocabulary
    module: nn.Module
    texts: Sequence[Text]
    dev: Sequence[Text]
    cache: TapCache
    out: Path
    paid: bool = False
    """Whether the cost of the texts' states is another run's."""
    progress: Progress = field(default_factory=lambda: Progress(0))
    together: Together = ALONE

    method = ""
    """Of the draft that comes out, for its card."""

    def __post_init__(self) -> None:
        """Resume from ``out`` if there is a save; ``DraftError`` if it belongs to another run."""
        settings = self.settings
        self.optimiser = Optimiser(self.module, settings.optimiser, settings.rate, settings.weight_decay, self.products)
        longest = max(len(text.tokens) for text in (*self.texts, *self.dev))
        self.rope = rope_for(self.config, longest + self.ahead, self.teacher.embedding.device)
        self.facts = settings.facts(self.texts, self.teacher.identity, self.products)
        saved = newest(self.out)
        if saved is not None:
            noted = facts_of(saved)
            require_same(noted, self.facts, str(saved))
            load_state(saved, self.module, self.optimiser)
            spent = Flops(**noted.get("flops", {}))
            self.progress = Progress(noted["step"], noted["labels"], noted["seconds"], spent, tau=noted["tau"])

    @property
    @abstractmethod
    def ahead(self) -> int:
        """How far behind a text's end the draft's rows may lie."""

    @abstractmethod
    def teach(self, texts: Sequence[Text], generator: torch.Generator) -> Made:
        """Put the gradients of this process's share of a step over ``texts`` into the module.

        What is divided by is the whole step's.  ``generator`` is the step's own: whatever is drawn is drawn for all
        texts, so that it is the same in every process.
        """

    def run(
        self, tell: Callable[[Progress], None], stop: Callable[[], bool], measure_every: int, save_every: int
    ) -> bool:
        """Train up to ``settings.steps``; returns False if ``stop`` asked for an end before.

        ``tell`` is called after every step.  The state is saved every ``save_every`` steps and at the end, however it
        comes; a ``DraftError`` of saving leaves the save before.  Of several processes the main one measures, logs,
        tells and saves; a stop that any was asked for stops all after the same step.
        """
        done = True
        report = partial(self._report, tell, measure_every)
        self.together.on_main(self._forget_unsaved)
        while self.progress.step < self.settings.steps:
            self.step()
            step, last = self.progress.step, self.progress.step == self.settings.steps
            self.together.on_main(report)
            done = last or not self.together.any(stop())
            if step % save_every == 0 or last or not done:
                self.together.on_main(self.save)
            if not done:
                break
        return done

    def step(self) -> None:
        """One update of the weights."""
        begun, number, settings, progress = time.perf_counter(), self.progress.step, self.settings, self.progress
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        # neighbours in length share a pass, so that little of it is padding
        texts = sorted((self.texts[i] for i in self._drawn(number)), key=lambda text: len(text.tokens))
        self.cache.fill(self.together.share(texts))
        made = self.teach(texts, generator)
        flops = self._summed(made.flops)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        if not (torch.isfinite(made.loss) and torch.isfinite(norm)):
            raise DraftError(
                f"loss or gradient are not finite at step {number}; the last save is from before. Try a lower --rate"
            )
        share = settings.schedule(number)
        self.optimiser.step(share)
        seconds = time.perf_counter() - begun
        progress.step, progress.labels = number + 1, progress.labels + made.labels
        progress.seconds, progress.flops = progress.seconds + seconds, progress.flops + flops
        progress.loss, progress.norm, progress.figures = made.loss.item(), float(norm), made.figures
        progress.rate, progress.recent_rate = settings.rate * share, made.labels / seconds

    def _summed(self, flops: Flops) -> Flops:
        """Sum gradients, in place, and ``flops`` over all processes."""
        counts = torch.tensor([flops.target, flops.draft, flops.head])
        gradients = []
        if self.together.size > 1:
            for parameter in filter(lambda parameter: parameter.requires_grad, self.module.parameters()):
                if parameter.grad is None:  # there were fewer texts than processes
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self.together.sum_([counts, *gradients])
        return Flops(*counts.tolist())

    def states(self, text: Text) -> tuple[States, Flops]:
        """The target's states of ``text``, and what they cost: nothing in later passes over kept ones.

        States that another run has left count as if they were made here.
        """
        found = self.cache.states(text)
        again = self.cache.keeps and self.progress.step * self.settings.batch >= len(self.texts)
        if self.together.size > 1:  # what another process keeps on its device is of no use to this one
            again = again and text not in self.cache.fresh
        return found, Flops(target=0 if self.paid or again else self.teacher.flops(len(text.tokens)))

    def _drawn(self, step: int) -> list[int]:
        """Texts of a step: every pass over the data is a permutation of its own."""
        drawn, orders = [], dict[int, list[int]]()
        for place in range(step * self.settings.batch, (step + 1) * self.settings.batch):
            epoch, index = divmod(place, len(self.texts))
            if epoch not in orders:
                generator = torch.Generator().manual_seed(self.settings.seed * 7919 + epoch)
                orders[epoch] = torch.randperm(len(self.texts), generator=generator).tolist()
            drawn.append(orders[epoch][index])
        return drawn

    @property
    def products(self) -> torch.dtype:
        """What is multiplied in, of fp32 weights: what the target was loaded in, fp32 or bf16, on every device."""
        return self.teacher.embedding.dtype

    def mixed(self) -> torch.autocast:
        """The draft's passes."""
        device, bf16 = self.teacher.embedding.device, torch.bfloat16
        return torch.autocast(device.type, bf16, enabled=self.products == bf16)

    def measure(self, texts: Sequence[Text]) -> Acceptance:
        """Greedy chain acceptance on ``texts``."""
        return pooled(self.counts(texts), self.config.drafted)

    def counts(self, texts: Sequence[Text], nodes: int = 0) -> list[list[int]]:
        """``accepted``, in the precision of training."""
        self.cache.fill(texts)
        with self.mixed():
            return self.accepted(texts, nodes)

    @abstractmethod
    def accepted(self, texts: Sequence[Text], nodes: int = 0) -> list[list[int]]:
        """Of every anchor of every text, how many tokens verification would accept of what the draft proposes there.

        ``nodes``: size of the tree that is proposed, 0 for the greedy chain.
        """

    @abstractmethod
    def rows(self, text: Text, anchors: range) -> tuple[Tensor, Tensor]:
        """Logits [A, D, V'] fp32 of what is drafted at ``anchors`` along ``text``, and the labels [A, D]."""

    def temperatures(self) -> tuple[float, ...]:
        """Fitted on the development texts, one for every token of a round."""
        with self.mixed():
            return fit_temperatures(self.rows, self.dev, self.teacher.embedding.device)

    def save(self) -> None:
        """Keep the state, so that the same command goes on from here."""
        noted = self.facts | {name: getattr(self.progress, name) for name in ("labels", "seconds", "tau")}
        noted["flops"] = asdict(self.progress.flops)
        save_state(self.out, self.progress.step, self.module, self.optimiser, noted)

    def _report(self, tell: Callable[[Progress], None], measure_every: int) -> None:
        """Measure if it is time to, log and tell."""
        if self.dev and (self.progress.step % measure_every == 0 or self.progress.step == self.settings.steps):
            self.progress.tau, self.progress.measured = self.measure(self.dev).tau, self.progress.step
        self._log()
        tell(self.progress)

    def _log(self) -> None:
        """A line of ``log.jsonl`` for this step."""
        p = self.progress
        line: dict[str, Any] = {"step": p.step, "labels": p.labels, "seconds": round(p.seconds, 2)}
        line |= {"flops": asdict(p.flops), "loss": p.loss, **p.figures, "norm": p.norm, "tau": p.tau, "rate": p.rate}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DraftError(f"{self.out / 'log.jsonl'}: cannot be written ({error})") from None

    def _forget_unsaved(self) -> None:
        """Take from ``log.jsonl`` the steps after the last save: a run that was killed makes them again."""
        path, part = self.out / "log.jsonl", self.out / "log.part"
        if not path.is_file():
            return
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _logged_step(line) <= self.progress.step]
        try:
            if len(kept) < len(lines):
                part.write_text("".join(kept))
                part.replace(path)
        except OSError as error:
            raise DraftError(f"{path}: cannot be written ({error})") from None


def _logged_step(line: str) -> float:
    """The step of a line of the log; infinite where a kill or a full disk cut the line."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
