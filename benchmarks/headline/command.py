"""``train``: read texts and target, then train and evaluate arm after arm."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from redraft.benchmarks.headline.evaluate import Answers, by_set, evaluate
from redraft.benchmarks.headline.options import choices
from redraft.benchmarks.headline.plan import TRUNK, Arm, arms
from redraft.benchmarks.headline.runs import require_known
from redraft.benchmarks.headline.sets import write_sets
from redraft.benchmarks.headline.train import Bench, train_arm
from redraft.benchmarks.stamp import stamp
from redraft.drafts.training.data import read_texts
from redraft.drafts.training.run_state import saved_products
from redraft.server.engine.hardware import choose_device, choose_training_dtype
from redraft.server.engine.progress import say
from redraft.server.engine.target.resolve import resolve_target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.engine.types import RedraftError
from redraft.server.text import TextTokenizer
from redraft.server.train import DRAFT, STATE, ChatEncode
from redraft.server.train_held_out import development


def train(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Train what is not trained yet, evaluate what is not evaluated yet; ``command`` is for the results' stamp."""
    begun = time.monotonic()
    wanted = chosen(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RedraftError(f"cannot write {options.out} ({error.strerror}); choose another --out") from None
    bench, answers = prepare(options)
    bench.command = command
    card = torch.cuda.get_device_name() if bench.teacher.embedding.is_cuda else None
    told = stamp(command, card)
    for arm in wanted:
        within = options.trunk_within if arm.name == TRUNK else options.finish_within
        while arm.start and options.wait and not (bench.out / arm.start / DRAFT / "model.safetensors").is_file():
            time.sleep(0.2)
        if not train_arm(bench, arm, arm.budget(options.trunk_flops, options.arm_flops), begun + within):
            return
        path = bench.out / arm.name / "evaluation.json"
        if answers and not path.is_file():
            made = told | {"arm": arm.name, "results": evaluate(bench, arm, answers)}
            write_sets(bench.out, answers, options.block_size - 1)
            path.write_text(json.dumps(made) + "\n")  # last: an arm that has it is done with
            say(
                f"{arm.name}: "
                + ", ".join(f"{r['set']} {r['shape']} T={r['temperature']:g} {r['tau']:.3f}" for r in made["results"])
            )


def prepare(options: argparse.Namespace) -> tuple[Bench, list[Answers]]:
    """Read target, texts, and answers to evaluate on."""
    until = time.monotonic() + options.seconds
    target = resolve_target(options.target)
    folder = Path(target.path)
    spec = read_spec(folder)
    device, _ = choose_device(options.device)
    # all arms in one, also in a later call
    saved = (saved_products(state, device) for state in sorted(options.out.glob(f"*/{STATE}")))
    dtype, _ = choose_training_dtype(options.dtype, device, next(filter(None, saved), None))
    encode = ChatEncode(TextTokenizer.from_folder(folder), spec.eos_token_ids[0])
    texts = read_texts(options.data, encode, spec.vocab, options.max_length)
    held_out = read_texts(options.dev, encode, spec.vocab, options.max_length)
    dev = development(held_out, options.dev_limit)
    say(f"{len(texts)} texts with {sum(len(text.anchors) for text in texts)} tokens of answers; {len(dev)} held out")
    answers = [
        some
        for path in options.answers
        for some in by_set(read_texts([path], encode, spec.vocab, options.max_length), path.name.split(".")[0])
    ]
    teacher = TargetTeacher(folder, spec, target.sha, device, dtype)
    room = None if options.room is None else int(options.room * 2**30) or 1
    bench = Bench(target, spec, teacher, texts, dev, options.data, options.out, until, options.measure_every, room=room)
    return bench, answers


def chosen(options: argparse.Namespace) -> list[Arm]:
    """The arms that were asked for and those they start from; all if none was named."""
    every = arms(choices(options))
    require_known(options.arm, [arm.name for arm in every])
    wanted = set(options.arm) or {arm.name for arm in every}
    if not options.wait:
        wanted |= {arm.start for arm in every if arm.name in wanted}
    return [arm for arm in every if arm.name in wanted]
