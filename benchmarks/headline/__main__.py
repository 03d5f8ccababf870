"""``python -m redraft.benchmarks.headline``: train and evaluate the arms; needs no HTTP packages."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from redraft.benchmarks.headline.evaluate import by_set, evaluate
from redraft.benchmarks.headline.plan import TRUNK, Arm, Choices, arms
from redraft.benchmarks.headline.train import Bench, train_arm
from redraft.benchmarks.stamp import stamp
from redraft.drafts.training.data import read_texts
from redraft.server.engine.hardware import choose_device, choose_dtype
from redraft.server.engine.progress import say
from redraft.server.engine.target.resolve import resolve_target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.text import TextTokenizer
from redraft.server.train import DRAFT, ChatEncode, RunOptions, development


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; argparse, because a GPU machine may lack typer."""
    plain = Choices()
    parser = argparse.ArgumentParser(
        prog="python -m redraft.benchmarks.headline",
        description="Train EAGLE-3, DFlash by SFT and Draft-OPD drafts with equal operations, and evaluate them. "
        "The same command goes on where it was stopped.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="runs and results")
    parser.add_argument("--target", default="smollm2-135m", help="as redraft serve has it")
    parser.add_argument("--data", type=Path, action="append", required=True, help="texts to train on; repeat")
    parser.add_argument("--dev", type=Path, action="append", required=True, help="texts set aside; repeat")
    parser.add_argument(
        "--answers", type=Path, action="append", default=[], help="the target's answers to evaluation prompts; repeat"
    )
    parser.add_argument("--arm", action="append", default=[], help="only this one (and what it starts from); repeat")
    parser.add_argument("--trunk-flops", type=float, default=2e15, help="operations of the trunk")
    parser.add_argument("--arm-flops", type=float, default=1e15, help="operations of an arm")
    never = float("inf")
    parser.add_argument("--seconds", type=float, default=never, help="save and stop after so long")
    parser.add_argument(
        "--finish-within", type=float, default=never, help="seconds; arms get fewer operations if it must be"
    )
    parser.add_argument("--trunk-within", type=float, default=never, help="likewise, of the trunk")
    parser.add_argument("--wait", action="store_true", help="for what an arm starts from: another process trains it")
    parser.add_argument("--room", type=float, help="GiB of GPU memory for the target's states; half of it if left out")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="of the target's passes")
    parser.add_argument("--dev-limit", type=int, default=216, help="held-out answers measured while training")
    parser.add_argument("--measure-every", type=int, default=50, help="steps between two measurements")
    for name in (
        "batch",
        "micro_batch",
        "chain_batch",
        "layers",
        "block_size",
        "vocab",
        "max_length",
        "anchors",
        "warmup",
        "seed",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plain, name))
    for name in ("rate", "arm_rate", "eagle3_rate"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(plain, name))
    return parser.parse_args(arguments)


def choices(options: argparse.Namespace) -> Choices:
    """What of the command line the arms share."""
    names = [name for name in Choices.__slots__ if hasattr(options, name)]
    return Choices(**{name: getattr(options, name) for name in names})


def prepare(options: argparse.Namespace) -> Bench:
    """Read texts and target."""
    until = time.monotonic() + options.seconds
    target = resolve_target(options.target)
    folder = Path(target.path)
    spec = read_spec(folder)
    device, _ = choose_device(options.device)
    dtype, _ = choose_dtype("fp32" if options.dtype == "auto" and device.type == "cpu" else options.dtype, device)
    encode = ChatEncode(TextTokenizer.from_folder(folder), spec.eos_token_ids[0])
    texts = read_texts(options.data, encode, spec.vocab, options.max_length)
    held_out = read_texts(options.dev, encode, spec.vocab, options.max_length)
    dev = development(held_out, RunOptions(options.out, dev_limit=options.dev_limit))
    say(f"{len(texts)} texts with {sum(len(text.anchors) for text in texts)} tokens of answers; {len(dev)} held out")
    teacher = TargetTeacher(folder, spec, target.sha, device, dtype)
    room = None if options.room is None else int(options.room * 2**30) or 1
    return Bench(target, spec, teacher, texts, dev, options.data, options.out, until, options.measure_every, room=room)


def chosen(options: argparse.Namespace) -> list[Arm]:
    """The arms that were asked for and those they start from; all if none was named."""
    every = arms(choices(options))
    unknown = set(options.arm) - {arm.name for arm in every}
    if unknown:
        sys.exit(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(arm.name for arm in every)}")
    wanted = set(options.arm) or {arm.name for arm in every}
    if not options.wait:
        wanted |= {arm.start for arm in every if arm.name in wanted}
    return [arm for arm in every if arm.name in wanted]


def main() -> None:
    """Entry point of ``python -m``."""
    options, begun = parse(sys.argv[1:]), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = chosen(options)
    bench = prepare(options)
    encode = ChatEncode(TextTokenizer.from_folder(Path(bench.target.path)), bench.spec.eos_token_ids[0])
    answers = [
        some
        for path in options.answers
        for some in by_set(read_texts([path], encode, bench.spec.vocab, options.max_length), path.name.split(".")[0])
    ]
    card = torch.cuda.get_device_name() if bench.teacher.embedding.is_cuda else None
    told = stamp(["python", "-m", "redraft.benchmarks.headline", *sys.argv[1:]], card)
    for arm in wanted:
        within = options.trunk_within if arm.name == TRUNK else options.finish_within
        while arm.start and options.wait and not (bench.out / arm.start / DRAFT / "model.safetensors").is_file():
            time.sleep(0.2)
        if not train_arm(bench, arm, arm.budget(options.trunk_flops, options.arm_flops), begun + within):
            return
        path = bench.out / arm.name / "evaluation.json"
        if answers and not path.is_file():
            made = told | {"arm": arm.name, "results": evaluate(bench, arm, answers)}
            path.write_text(json.dumps(made) + "\n")
            say(
                f"{arm.name}: "
                + ", ".join(f"{r['set']} {r['shape']} T={r['temperature']:g} {r['tau']:.3f}" for r in made["results"])
            )


if __name__ == "__main__":
    main()
