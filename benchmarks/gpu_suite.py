"""All that a GPU must prove and tell, in one command: ``python -m redraft.benchmarks.gpu_suite --out DIR``.

Kernels against their twins, row invariance, equality of speculative and plain output, copy bandwidth, what share of it
a layer's products and whole steps reach, speed, peers.  GPU time is scarce: what is known is written to
``DIR/gpu_suite.json`` after every stage, and a stage that fails does not keep the next one from running.  The exit code
is 1 if a check failed or a stage broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from redraft.benchmarks.attention_checks import attention_checks
from redraft.benchmarks.attention_speed import attention_speed
from redraft.benchmarks.bandwidth import copy_bandwidth
from redraft.benchmarks.dependent_checks import dependent, dependent_checks
from redraft.benchmarks.draft_checks import draft_checks
from redraft.benchmarks.equality_checks import equality_checks
from redraft.benchmarks.gpu_figures import figures_table, gpu_figures
from redraft.benchmarks.kernel_checks import FULL, QUICK, Check, kernel_checks
from redraft.benchmarks.layer_checks import layer_checks
from redraft.benchmarks.peers import peer_speed
from redraft.benchmarks.product_speed import product_speed, table
from redraft.benchmarks.row_checks import QUICK_SHAPES, SHAPES, layer_row_checks, row_checks
from redraft.benchmarks.shapes import TARGETS, TINY
from redraft.benchmarks.stamp import stamp
from redraft.benchmarks.step_speed import CASES, step_speed
from redraft.benchmarks.suite_prompts import random_prompts, read_id_prompts
from redraft.benchmarks.suite_speed import plain_step, speed
from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.base import Drafter
from redraft.drafts.checkpoint import read_draft
from redraft.kernels.attention import block_attention, cpu_attention
from redraft.kernels.dependent_launch import LEAST_CAPABILITY
from redraft.kernels.triton_support import HAS_TRITON, INTERPRETED
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.hardware import choose_device, choose_dtype
from redraft.server.engine.load import build_engine

SLOTS = 8
Found = dict[str, Any]


class Suite:
    """One run: what is measured on, and what every stage needs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.quick: bool = options.quick
        self.device, _ = choose_device(options.device)
        self.dtype, _ = choose_dtype(options.dtype, self.device)
        self.sizes = QUICK if self.quick else FULL
        self.targets = TINY if self.quick else TARGETS
        self.max_tokens = options.max_tokens or (16 if self.quick else 128)

    @cached_property
    def folder(self) -> Path:
        """Of the target: the one given, or a tiny random one."""
        return self.options.target or make_tiny_target(self.options.out / "tiny-target")

    @cached_property
    def engine(self) -> Engine:
        """Built when the first stage needs it, so that kernels are checked even where no target loads."""
        config = EngineConfig(
            target=str(self.folder),
            target_name=self.folder.name,
            target_sha="",
            draft=self.options.draft,
            dtype=self.options.dtype,
            device=self.options.device,
            max_model_len=self.options.max_model_len,
            measure_costs=False,
            max_num_seqs=SLOTS,
            self_check=False,
        )
        return build_engine(config)

    @cached_property
    def drafter(self) -> Drafter:
        """The engine's own, whatever decoded last; asked for before anything is decoded."""
        return self.engine.drafter

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids, from the file or random."""
        if self.options.prompts:
            return read_id_prompts(self.options.prompts, self.options.target)
        return random_prompts(self.engine.info.vocab_size, count=3 if self.quick else SLOTS)

    @cached_property
    def copy_bytes_per_second(self) -> float:
        """Measured once, whichever stage asks first."""
        return copy_bandwidth(self.device, 2**24 if self.quick else 2**30)

    def kernels(self) -> Found:
        """Triton kernels against twins."""
        if not HAS_TRITON:
            return {"skipped": "Triton is not installed"}
        if self.device.type != "cuda" and not INTERPRETED:
            return {"skipped": "kernels need a CUDA device, or TRITON_INTERPRET=1; on a CPU the twins are what runs"}
        of_sizes = kernel_checks(self.sizes, self.device), draft_checks(self.sizes, self.device)
        return run_checks(chain(*of_sizes, layer_checks(self.targets, self.device)))

    def rows(self) -> Found:
        """Row invariance, op by op and over whole layers."""
        make_attention = block_attention if self.device.type == "cuda" else cpu_attention
        ops = row_checks(self.sizes, self.device, self.dtype, QUICK_SHAPES if self.quick else SHAPES)
        return run_checks(chain(ops, layer_row_checks(self.targets, self.device, self.dtype, make_attention)))

    def attention(self) -> Found:
        """Attention's bits in any company, and its share of the copy bandwidth."""
        if not HAS_TRITON or self.device.type != "cuda":
            return {"skipped": "needs a CUDA device and Triton; the interpreter's products have other bits"}
        found = run_checks(attention_checks(self.device, tuple(dict.fromkeys((self.dtype, torch.float32))), self.quick))
        speed = copy_bandwidth(self.device, 2**30)
        return {**found, "figures": attention_speed(self.device, self.dtype, speed)}

    def dependent(self) -> Found:
        """Kernels launched before the one before has ended: whether they wait, and what that gains."""
        if self.device.type != "cuda" or torch.cuda.get_device_capability()[0] < LEAST_CAPABILITY:
            return {"skipped": "needs a CUDA device of capability 9.0 or newer"}
        found = run_checks(dependent_checks(self.targets, self.device, self.dtype))
        measure = partial(step_speed, self.targets, CASES[:3], self.device, self.dtype, self.engine.make_attention)
        with dependent():
            return {**found, "steps": measure(self.copy_bytes_per_second)}

    def equality(self) -> Found:
        """Output with every drafter against plain output."""
        # the adversarial drafters tell requests apart by slot
        prompts = self.prompts[:SLOTS]
        return run_checks(equality_checks(self.engine, self.drafter, prompts, self.max_tokens))

    def bandwidth(self) -> Found:
        """Bytes per second of a large copy: what decoding speed is measured against."""
        return {"copy_bytes_per_second": self.copy_bytes_per_second}

    def products(self) -> Found:
        """Each weight shape's product against what its bytes must take."""
        found = [
            one
            for name, spec in self.targets.items()
            for one in product_speed(name, spec, self.device, self.dtype, self.copy_bytes_per_second)
        ]
        print(table(found))
        return {"products": found}

    def speed(self) -> Found:
        """Plain and speculative decoding, one request at a time and together."""
        found = speed(self.engine, self.drafter, self.prompts, self.max_tokens, 1 if self.quick else 3)
        context = sum(map(len, self.prompts)) // len(self.prompts) + self.max_tokens // 2
        step = plain_step(self.engine, found["alone"]["plain_tokens_per_second"], context, self.copy_bytes_per_second)
        return {**found, "plain_step": step}

    def steps(self) -> Found:
        """Plain steps and verified rounds on random weights of known shapes."""
        cases, attention = CASES[:2] if self.quick else CASES, self.engine.make_attention
        return {
            "steps": step_speed(self.targets, cases, self.device, self.dtype, attention, self.copy_bytes_per_second)
        }

    def peers(self) -> Found:
        """transformers on the same weights and prompts."""
        count, tokens = (2, 4) if self.quick else (4, self.max_tokens)
        folder = Path(self.options.draft)
        draft = read_draft(folder) if folder.is_dir() else None
        return {"peers": peer_speed(self.folder, self.prompts[:count], tokens, self.device, self.dtype, draft)}


STAGES: dict[str, Callable[[Suite], Found]] = {
    "kernels": Suite.kernels,
    "rows": Suite.rows,
    "attention": Suite.attention,
    "equality": Suite.equality,
    "bandwidth": Suite.bandwidth,
    "products": Suite.products,
    "speed": Suite.speed,
    "steps": Suite.steps,
    "peers": Suite.peers,
    # off unless asked for, so what goes wrong here is to spoil nothing else
    "dependent": Suite.dependent,
}


def run_checks(checks: Iterator[Check]) -> Found:
    """Run every check; one that raises has failed, and the others still run."""
    found = []
    for name, check in checks:
        try:
            problem = check()
        except Exception:
            problem = traceback.format_exc()
        found.append({"name": name, "ok": problem is None, "problem": problem})
        print(
            f"  {'ok  ' if problem is None else 'FAIL'} {name}{'' if problem is None else ': ' + problem}", flush=True
        )
    return {"checks": found}


def run_stage(suite: Suite, name: str) -> Found:
    """Run one stage; an exception is written down, not raised."""
    print(name, flush=True)
    started = time.perf_counter()
    try:
        found = STAGES[name](suite)
    except Exception:
        found = {"error": traceback.format_exc()}
        print(found["error"], flush=True)
    if "skipped" in found:
        print(f"  skipped: {found['skipped']}", flush=True)
    failed = "error" in found or any(not check["ok"] for check in found.get("checks", ()))
    return {"name": name, "seconds": round(time.perf_counter() - started, 3), "ok": not failed, **found}


def run(options: argparse.Namespace, command: list[str]) -> bool:
    """Run the stages in ``options.only`` and write the file after each; returns whether nothing failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(options)
    report: Found = {
        "benchmark": "gpu_suite",
        "complete": False,
        **stamp(command, torch.cuda.get_device_name() if suite.device.type == "cuda" else None),
        "device": suite.device.type,
        "dtype": str(suite.dtype).removeprefix("torch."),
        "quick": suite.quick,
        "stages": [],
    }
    for name in options.only or STAGES:
        report["stages"].append(run_stage(suite, name))
        report["complete"] = len(report["stages"]) == len(options.only or STAGES)
        report["figures"] = gpu_figures(report["stages"])
        (options.out / "gpu_suite.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(figures_table(report["figures"]))
    return all(stage["ok"] for stage in report["stages"])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; argparse, because a GPU machine may lack typer."""
    parser = argparse.ArgumentParser(
        prog="python -m redraft.benchmarks.gpu_suite",
        description="Check kernels, equality and speed on a GPU; writes DIR/gpu_suite.json after each stage.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--target", type=Path, metavar="FOLDER", help="converted target; else a tiny random one")
    parser.add_argument(
        "--draft", default="ngram", help="folder of a draft, which n-gram lookup helps; else lookup alone"
    )
    parser.add_argument(
        "--prompts", type=Path, help='.json with lists of token ids, or .jsonl with {"turns": [...]}; else random ids'
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for trying the suite itself")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    parser.add_argument("--max-tokens", type=int, help="tokens per answer (16 with --quick, else 128)")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--only", action="append", choices=tuple(STAGES), help="run this stage only; may be repeated")
    options = parser.parse_args(arguments)
    if options.prompts and options.prompts.suffix == ".jsonl" and not options.target:
        parser.error("--prompts with text needs --target, whose tokenizer reads it")
    return options


def main() -> None:
    """Entry point of ``python -m``."""
    ok = run(parse(sys.argv[1:]), ["python", "-m", "redraft.benchmarks.gpu_suite", *sys.argv[1:]])
    print("passed" if ok else "FAILED")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
