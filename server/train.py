"""``redraft train``: draft training, wired to a target, a tokenizer and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from redraft.drafts.checkpoint import Checkpoint, read_draft, write_draft
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text, read_texts
from redraft.drafts.training.eagle3 import Eagle3
from redraft.drafts.training.eagle3_opd import Eagle3Opd
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.opd import Opd
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.run import Progress, Run
from redraft.drafts.training.run_state import saved_products
from redraft.drafts.training.selector import SelectorRun
from redraft.drafts.training.selector_settings import SelectorSettings
from redraft.drafts.training.sft import Sft
from redraft.drafts.training.tap_cache import TapCache
from redraft.drafts.training.together import ALONE, Together
from redraft.server.engine.draft_errors import as_redraft_error
from redraft.server.engine.hardware import choose_device, choose_training_dtype
from redraft.server.engine.progress import say
from redraft.server.engine.target.resolve import ResolvedTarget
from redraft.server.engine.target.spec import TargetSpec, read_spec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.text import TextTokenizer
from redraft.server.train_card import card
from redraft.server.train_display import display, interruptible
from redraft.server.train_events import events
from redraft.server.train_held_out import development, keep_apart, known_tau
from redraft.server.train_start import Settings, first_draft, kept_tokens
from redraft.server.train_together import gathered

DRAFT, STATE, STATES, EVENTS = "draft", "state", "target-states", "events"
"""Folders of a run: the finished draft, what a run goes on from, the target's states, and TensorBoard's events."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run has besides its settings."""

    out: Path
    start: Path | None = None
    """A draft to go on from instead of the target's own layers."""
    keep_states: bool | None = None
    """Whether the target's states stay on disk; None: if they are needed again and there is no GPU to keep them."""
    states: Path | None = None
    """Folder of kept states, which runs over the same texts may share; None: one in ``out``."""
    measure_every: int = 50
    save_every: int = 50
    dev_limit: int = 40
    tensorboard: bool = False
    """Whether every step's scalars are written as events."""


class ChatEncode:
    """Rows without ids are encoded as the server would (``drafts.training.data.Encode``)."""

    def __init__(self, tokenizer: TextTokenizer, end: int) -> None:
        self.tokenizer, self.end = tokenizer, end

    def prompt(self, text: str) -> tuple[int, ...]:
        template = self.tokenizer.chat_template
        if template is None:
            return self.tokenizer.encode(text)
        return self.tokenizer.encode(template.render([{"role": "user", "content": text}]), special_tokens=False)

    def response(self, text: str, ended: bool) -> tuple[int, ...]:
        return self.tokenizer.encode(text, special_tokens=False) + ((self.end,) if ended else ())


def train_draft(
    target: ResolvedTarget,
    data: Sequence[Path],
    dev: Sequence[Path],
    settings: Settings,
    options: RunOptions,
    device: str,
    dtype: str,
) -> None:
    """Train a draft of ``target`` on the texts of ``data``; raises ``RedraftError`` for what the user can mend."""
    with as_redraft_error(), gathered(device) as together:
        spec = read_spec(Path(target.path))
        place, why_place = choose_device(device)
        kind, why_kind = common_dtype(dtype, place, options.out / STATE, together)
        shared = f"; training in {together.size} processes" if together.size > 1 else ""
        say(f"{why_place}; {why_kind}{shared}")
        encode = ChatEncode(TextTokenizer.from_folder(Path(target.path)), spec.eos_token_ids[0])
        texts = read_texts(data, encode, spec.vocab, settings.max_length)
        held_out = (
            development(read_texts(dev, encode, spec.vocab, settings.max_length), options.dev_limit) if dev else []
        )
        keep_apart(texts, held_out)
        answers = sum(len(text.anchors) for text in texts)
        say(f"{len(texts)} texts with {answers} tokens of answers; {len(held_out)} held-out greedy answers")
        teacher = TargetTeacher(Path(target.path), spec, target.sha, place, kind)
        start = read_draft(options.start) if options.start is not None else None
        if start is not None:
            settings = replace(settings, start=start.version)
        kept = kept_tokens(settings, spec, texts, start)
        run = make_run(spec, teacher, texts, held_out, settings, options, kept, start, together)
        if _run(run, options):
            told = card(target, run, data, start)
            together.on_main(partial(_finish, run, options.out / DRAFT, kept, told))


def common_dtype(wanted: str, device: torch.device, state: Path, together: Together) -> tuple[torch.dtype, str]:
    """What all processes multiply in, and a line that says why; ``state``: folder of the run's saves.

    They keep the same weights because they compute the same.
    """
    dtype, why = choose_training_dtype(wanted, device, saved_products(state, device))
    if together.any(dtype == torch.float32) and dtype != torch.float32:
        return torch.float32, "dtype: fp32, since another process has found bf16 not to be faster"
    return dtype, why


def _finish(run: Run, folder: Path, kept: tuple[int, ...] | None, told: dict[str, Any]) -> None:
    """Compare with what was trained on, fit temperatures and write the draft."""
    config = run.config
    if run.dev:
        told = told | {"trained_tau": known_tau(run)}
        fitted = run.temperatures()
        config = replace(config, tree_temperatures=fitted)
        say(f"temperatures of the tree's scores: {', '.join(map(str, fitted))}")
    try:
        write_draft(folder, config, run.module.state_dict(), kept, told)
    except (OSError, SafetensorError) as error:
        raise DraftError(
            f"{folder}: the draft could not be written ({error}); its training is saved. "
            "Make room and run the same command again"
        ) from None
    say(f"The draft is in {folder}; serve it with --draft {folder}")


def make_run(
    spec: TargetSpec,
    teacher: TargetTeacher,
    texts: Sequence[Text],
    dev: Sequence[Text],
    settings: Settings,
    options: RunOptions,
    kept: tuple[int, ...] | None,
    start: Checkpoint | None = None,
    together: Together = ALONE,
) -> Run:
    """Everything of a run, resumed if ``options.out`` has a save.  ``kept`` is the draft's vocabulary."""
    longest = max(len(text.tokens) for text in (*texts, *dev))
    if longest > spec.context:
        raise DraftError(
            f"a text has {longest} tokens and the target reads at most {spec.context}; give that as --max-length"
        )
    again, device = settings.steps * settings.batch > len(texts), teacher.embedding.device
    room = device_room(device) if again else 0
    keep = options.keep_states
    if keep is None:
        keep = options.states is not None or (again and not room)
    vocabulary = Vocabulary(teacher, kept)
    config, module = first_draft(spec, teacher, vocabulary, settings, texts[0], start)
    parts: dict[str, Any] = {
        "config": config,
        "teacher": teacher,
        "vocabulary": vocabulary,
        "module": module.to(device),
        "texts": texts,
        "dev": dev,
        "cache": TapCache(teacher, config.taps, (options.states or options.out / STATES) if keep else None, room),
        "out": options.out / STATE,
        "together": together,
    }
    if isinstance(settings, OpdSettings):
        kind = Eagle3Opd if isinstance(config, Eagle3Config) else Opd
        return kind(settings, ends=spec.eos_token_ids, **parts)
    if isinstance(settings, SelectorSettings):
        return SelectorRun(settings, **parts)
    return Eagle3(settings, **parts) if isinstance(settings, Eagle3Settings) else Sft(settings, **parts)


def device_room(device: torch.device) -> int:
    """Bytes of a GPU that kept states may fill; none of a CPU's memory, which is not set apart for training."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0


def _run(run: Run, options: RunOptions) -> bool:
    """Train with a bar; the first Ctrl-C ends after the current step with everything saved."""
    if run.progress.step:
        say(f"going on from step {run.progress.step}")
    if run.progress.step >= run.settings.steps:
        return True
    with ExitStack() as opened:
        stop, show = opened.enter_context(interruptible()), opened.enter_context(display(run))
        note = opened.enter_context(events(options.out / EVENTS, run.progress.step)) if options.tensorboard else None

        def tell(progress: Progress) -> None:
            show(progress)
            if note is not None:
                note(progress)

        finished = run.run(tell, stop, options.measure_every, options.save_every)
    if not finished:
        say(f"stopped at step {run.progress.step}, saved; the same command goes on from there")
    return finished
