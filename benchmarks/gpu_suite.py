"""All that a GPU must prove and tell, in one command: ``python -m redraft.benchmarks.gpu_suite``.

Kernels against their twins, row invariance, equality of speculative and plain output, copy bandwidth, what share of it
a layer's products and whole steps reach, speed, peers.  GPU time is scarce: what is known is written to
``gpu_suite.json`` after every stage, and a stage that fails does not keep the next one from running.  All stages have
``--budget`` seconds together; what no longer fits is left out, and says so.  The exit code is 1 if a check failed or a
stage broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path

import torch

from redraft.benchmarks.gpu_figures import figures_table, gpu_figures
from redraft.benchmarks.stamp import stamp
from redraft.benchmarks.suite_clock import BUDGET, LEFT_OUT
from redraft.benchmarks.suite_context import Suite
from redraft.benchmarks.suite_stages import LEAST_SECONDS, STAGES, Found
from redraft.server.engine.types import RedraftError

RESULTS = Path("benchmarks/results/gpu")
FILE = "gpu_suite.json"


def run_stage(suite: Suite, name: str) -> Found:
    """Run one stage if there is time for it; an exception is written down, not raised."""
    print(name, flush=True)
    clock, least = suite.clock, LEAST_SECONDS.get(name, 0.0)
    begun = clock.spent
    if not clock.fits(least):
        left = clock.budget - begun
        found: Found = {"skipped": f"{LEFT_OUT}: {left:.0f} s of {clock.budget:.0f}, and it needs {least:.0f} at least"}
        found["out_of_time"] = True
    else:
        try:
            found = STAGES[name](suite)
        except Exception:
            found = {"error": traceback.format_exc()}
            print(found["error"], flush=True)
    if "skipped" in found:
        print(f"  skipped: {found['skipped']}", flush=True)
    failed = "error" in found or any(not check["ok"] for check in found.get("checks", ()))
    return {"name": name, "seconds": round(clock.spent - begun, 3), "ok": not failed, **found}


def run(options: argparse.Namespace, command: list[str]) -> bool:
    """Run the stages in ``options.only`` and write the file after each; returns whether nothing failed.

    Raises ``RedraftError`` where results are to be kept that are not of the same code and device.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    suite, path = Suite(options), options.out / FILE
    names = options.only or list(STAGES)
    report: Found = {
        "benchmark": "gpu_suite",
        "complete": False,
        **stamp(command, torch.cuda.get_device_name() if suite.device.type == "cuda" else None),
        "device": suite.device.type,
        "dtype": str(suite.dtype).removeprefix("torch."),
        "quick": suite.quick,
        "budget_seconds": suite.clock.budget,
        "earlier": [],
        "stages": [],
    }
    if options.keep and path.is_file():
        join(report, json.loads(path.read_text()), names)
        suite.clock.spend(sum(stage["seconds"] for stage in report["stages"]))
    for number, name in enumerate(names, start=1):
        stages = report["stages"]
        stages.append(run_stage(suite, name))
        if options.keep:
            stages.sort(key=lambda stage: list(STAGES).index(stage["name"]))
        report["seconds"] = round(suite.clock.spent, 3)
        report["left_out"] = left_out(stages)
        report["complete"] = number == len(names) and not report["left_out"]
        report["figures"] = gpu_figures(stages)
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(figures_table(report["figures"]))
    print(stages_table(report))
    return all(stage["ok"] for stage in report["stages"])


def join(report: Found, before: Found, names: list[str]) -> None:
    """Take into ``report`` the stages of a run ``before`` that are not in ``names``."""
    for key in ("commit", "versions", "machine", "device", "dtype", "quick"):
        if report[key] != before[key]:
            raise RedraftError(
                f"--keep: what DIR holds is of another {key}, {before[key]} and not {report[key]}; choose another --out"
            )
    report["dirty"] = report["dirty"] or before["dirty"]
    report["earlier"] = [*before["earlier"], before["command"]]
    report["stages"] = [stage for stage in before["stages"] if stage["name"] not in names]


def left_out(stages: list[Found]) -> list[str]:
    """What there was no time for: stages, and cases within them."""
    found = []
    for stage in stages:
        name = stage["name"]
        if stage.get("out_of_time"):
            found.append(f"{name}: all of it")
        if "left_out" in stage:
            found.append(f"{name}: {stage['left_out']}")
        cases = [one for of in stage.values() if isinstance(of, list) for one in of]
        cases += stage["peers"].values() if "peers" in stage else ()
        late = sum(one.get("skipped") == LEFT_OUT for one in cases if isinstance(one, dict))
        if late:
            found.append(f"{name}: {late} of {len(cases)} cases")
    return found


def stages_table(report: Found) -> str:
    """One line a stage with what it took, and what there was no time for."""
    lines = [f"{stage['name']:10} {stage['seconds']:8.1f} s  {_state(stage)}" for stage in report["stages"]]
    lines.append(f"{'all':10} {report['seconds']:8.1f} s  of {report['budget_seconds']:.0f}")
    return "\n".join([*lines, *(f"left out for want of time: {one}" for one in report["left_out"])])


def _state(stage: Found) -> str:
    return "skipped" if "skipped" in stage else "ok" if stage["ok"] else "FAILED"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; argparse, because a GPU machine may lack typer."""
    parser = argparse.ArgumentParser(
        prog="python -m redraft.benchmarks.gpu_suite",
        description=f"Check kernels, equality and speed on a GPU; writes DIR/{FILE} after each stage.",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"{RESULTS} unless told")
    parser.add_argument("--target", type=Path, metavar="FOLDER", help="converted target; else a tiny random one")
    parser.add_argument(
        "--draft", default="ngram", help="folder of a draft, which n-gram lookup helps; else lookup alone"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        action="append",
        help='a set of prompts: .json with lists of token ids, or .jsonl with {"turns": [...]}; may be repeated, and '
        "a set is named after its file (gsm8k, humaneval, mt-bench have figures of their own); else random ids",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for trying the suite itself")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    parser.add_argument("--max-tokens", type=_count, help="tokens per answer where speed is measured (256; 16 quick)")
    parser.add_argument("--speed-prompts", type=_count, help="prompts of each set that it is measured on (16; 3 quick)")
    parser.add_argument("--equality-prompts", type=_count, help="prompts that are compared, if there are as many (200)")
    parser.add_argument("--equality-tokens", type=_count, help="tokens of each that are compared (256; 16 quick)")
    parser.add_argument("--max-model-len", type=_count, default=1024)
    parser.add_argument(
        "--keep", action="store_true", help="keep the stages that are in DIR already and are not run again"
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all stages ({BUDGET:.0f})")
    parser.add_argument("--only", action="append", choices=tuple(STAGES), help="run this stage only; may be repeated")
    options = parser.parse_args(arguments)
    files = options.prompts or []
    if any(path.suffix == ".jsonl" for path in files) and not options.target:
        parser.error("--prompts with text needs --target, whose tokenizer reads it")
    if len({path.stem for path in files}) < len(files):
        parser.error("a set is named after its file, so two --prompts may not have the same name")
    if not options.budget > 0:
        parser.error("--budget must be above 0")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def main() -> None:
    """Entry point of ``python -m``."""
    try:
        ok = run(parse(sys.argv[1:]), ["python", "-m", "redraft.benchmarks.gpu_suite", *sys.argv[1:]])
    except RedraftError as error:
        sys.exit(str(error))
    print("passed" if ok else "FAILED")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
