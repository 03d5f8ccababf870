"""The command line of ``python -m redraft.benchmarks.headline``; argparse, because a GPU machine may lack typer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from redraft.benchmarks.headline.findings import REFERENCE
from redraft.benchmarks.headline.plan import ARM_FLOPS, TRUNK_FLOPS, Choices

RESULTS = Path("benchmarks/results/headline")
WHOLE = {
    "batch": "texts a step",
    "micro_batch": "texts a pass of SFT",
    "chain_batch": "texts a pass of the other arms, which hold more of each",
    "layers": "of DFlash drafts",
    "block_size": "tokens of a DFlash block, its anchor included",
    "vocab": "tokens a draft can propose; 0 is all of the target's",
    "max_length": "tokens at which a text is cut",
    "anchors": "most blocks SFT draws from a text",
    "warmup": "steps in which the rate rises, in every arm",
    "seed": "of the first weights, the order of texts and the anchors",
}
RATES = {"rate": "learning rate of the trunk", "arm_rate": "of what goes on from it", "eagle3_rate": "of EAGLE-3"}


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Options of ``train`` or ``report``; leaves with exit code 2 and a line for what cannot be."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="EAGLE-3, DFlash by SFT and Draft-OPD with equal operations: train the arms of the comparison, "
        "then report how they differ.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train and evaluate the arms",
        description="Train drafts with equal operations, and evaluate them on answers to evaluation prompts. One trunk "
        "is trained by SFT; the arms go on from its weights, EAGLE-3 from nothing with the operations of both. The "
        "same command goes on where it was stopped.",
    )
    _train_options(train)
    report = commands.add_parser(
        "report",
        help="tables, conclusions, picture and JSON of finished arms",
        description=f"What the arms cost, what they came to on every set of prompts, and how sure their differences to "
        f"{REFERENCE} are (bootstrap over prompts, in pairs). Says whether operations were equal and whether SFT had "
        "plateaued. Writes headline.json, headline.md and headline.png.",
    )
    report.add_argument("--runs", type=Path, required=True, metavar="DIR", help="the --out of the training")
    report.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where the three files go (default: %(default)s)"
    )
    report.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this one; repeat")
    return parser.parse_args(arguments)


def _train_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, required=True, metavar="DIR", help="runs and results")
    files.add_argument("--target", default="smollm2-135m", help="as redraft serve has it (default: %(default)s)")
    files.add_argument(
        "--data", type=Path, action="append", required=True, metavar="FILE", help="texts to train on; repeat"
    )
    files.add_argument(
        "--dev", type=Path, action="append", required=True, metavar="FILE", help="texts set aside; repeat"
    )
    files.add_argument(
        "--answers",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the target's answers to evaluation prompts, a file a set; repeat",
    )
    what = parser.add_argument_group("what is trained, for how long")
    what.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help="only this one (and what it starts from); repeat"
    )
    what.add_argument("--trunk-flops", type=float, default=TRUNK_FLOPS, help="operations of the trunk (%(default)g)")
    what.add_argument("--arm-flops", type=float, default=ARM_FLOPS, help="operations of an arm (%(default)g)")
    never = float("inf")
    what.add_argument("--seconds", type=float, default=never, help="save and stop after so long")
    what.add_argument(
        "--finish-within", type=float, default=never, help="seconds; arms get fewer operations if it must be"
    )
    what.add_argument("--trunk-within", type=float, default=never, help="likewise, of the trunk")
    what.add_argument("--wait", action="store_true", help="for what an arm starts from: another process trains it")
    how = parser.add_argument_group("machine and measuring")
    how.add_argument("--room", type=float, help="GiB of GPU memory for the target's states; half of it if left out")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of all products; auto on a CPU: what is faster there, or what saved arms have",
    )
    how.add_argument(
        "--dev-limit", type=int, default=216, help="held-out answers measured while training (%(default)s)"
    )
    how.add_argument("--measure-every", type=int, default=50, help="steps between two measurements (%(default)s)")
    shared = parser.add_argument_group("what all arms share")
    plain = Choices()
    for names, kind in ((WHOLE, int), (RATES, float)):
        for name, meaning in names.items():
            option = f"--{name.replace('_', '-')}"
            shared.add_argument(option, type=kind, default=getattr(plain, name), help=f"{meaning} (%(default)s)")


def choices(options: argparse.Namespace) -> Choices:
    """What of the command line the arms share."""
    names = [name for name in Choices.__slots__ if hasattr(options, name)]
    return Choices(**{name: getattr(options, name) for name in names})
