"""The GPU suite's figures as predicted for a GPU that is not at hand: ``python -m redraft.benchmarks.predictions``.

From shapes, counted launches and a bandwidth alone, by the code that puts predictions beside the suite's measurements;
so they can be written down before.  Of the default target, what its draft commits per round has to be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from redraft.benchmarks.gpu_figures import gpu_figures
from redraft.benchmarks.launches import NODES
from redraft.benchmarks.predict import predicted_round, predicted_step
from redraft.benchmarks.predict_speed import Answers, Drafting, bound_of_peer, expected_speed
from redraft.benchmarks.round_speed import RATE
from redraft.benchmarks.shape_target import BOUND, LENGTH
from redraft.benchmarks.shapes import TARGETS, draft_shape
from redraft.kernels.triton_support import HAS_TRITON

BANDWIDTH = 4.2e12
"""Bytes per second, read and written, that a copy on an H200 is taken to reach: 88 % of what its memory is sold with.
An H100's reached 90 % (benchmarks/results/gpu/)."""
TAU = (3.97, 3.74, 2.42)
"""Tokens a round of the shipped draft and lookup, 11 nodes verified, on GSM8K, HumanEval and MT-Bench (README)."""
SETS = ("gsm8k", "humaneval", "mt-bench")
ITEMSIZE = 2


def predicted_stages(bandwidth: float, tau: Mapping[str, float], prompt: int, tokens: int) -> list[dict[str, Any]]:
    """Stages as the suite would have them, with what is predicted of them and nothing measured."""
    steps, rounds = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, spec in TARGETS.items():
        for rows in (1, 8, 16, 32, 64):
            step = predicted_step(spec, 1, rows, LENGTH, ITEMSIZE, bound=BOUND)
            steps.append(
                {
                    "shape": name,
                    "requests": 1,
                    "rows": rows,
                    "launches": step.launches,
                    "memory_seconds": step.traffic.seconds(bandwidth),
                    "predicted_seconds": step.seconds(bandwidth),
                }
            )
        draft = draft_shape(spec)
        accepted = sum(RATE**depth for depth in range(1, draft.block_size))
        whole = predicted_round(
            spec, draft, 1, 1 + NODES, LENGTH, ITEMSIZE, bound=BOUND, accepted=accepted, read_back=True
        )
        seconds, rest = whole.seconds(bandwidth), whole.rest_seconds(bandwidth)
        rounds.append(
            {
                "shape": name,
                "requests": 1,
                "rows": 1 + NODES,
                "launches": whole.launches,
                "memory_seconds": whole.traffic.seconds(bandwidth),
                "predicted_seconds": seconds,
                "memory_rest_share": whole.traffic.rest / whole.traffic.total,
                "predicted_rest_share": rest / seconds if rest is not None and seconds else None,
            }
        )
    spec = TARGETS["SmolLM2-135M"]
    # without measured costs an engine verifies all that both propose
    drafting = Drafting(draft_shape(spec), True, NODES, 2 * NODES)
    sets = {
        name: {"expected": expected_speed(spec, drafting, Answers(prompt, tokens, of), ITEMSIZE, bandwidth)}
        for name, of in tau.items()
    }
    peer = bound_of_peer(spec, prompt + tokens // 2, ITEMSIZE, bandwidth)
    return [
        {"name": "bandwidth", "copy_bytes_per_second": bandwidth},
        {"name": "steps", "steps": steps},
        {"name": "rounds", "rounds": rounds},
        {"name": "speed", "weight_bytes": spec.parameters * ITEMSIZE, "sets": sets},
        {"name": "peers", "ours": {}, "peers": {}, "predicted_ratio": peer},
    ]


def table(stages: list[dict[str, Any]]) -> str:
    """Steps and rounds by shape, then the figures that they make."""
    lines = [f"{'':14} {'rows':>10} {'launches':>8} {'ms':>8} {'floor':>8}"]
    for name in ("steps", "rounds"):
        for one in next(stage for stage in stages if stage["name"] == name)[name]:
            what = f"{one['rows']} {'round' if name == 'rounds' else 'rows'}"
            lines.append(
                f"{one['shape']:14} {what:>10} {one['launches']:8} {1e3 * one['predicted_seconds']:8.3f} "
                f"{1e3 * one['memory_seconds']:8.3f}"
            )
    for name, figure in gpu_figures(stages).items():
        if figure["predicted"] is not None:
            goal = "" if figure["goal"] is None else f", goal {figure['goal']:g}"
            lines.append(f"{name}: {figure['predicted']:.4g} {figure['unit']}{goal}")
    return "\n".join(lines)


def main() -> None:
    """Entry point of ``python -m``."""
    parser = argparse.ArgumentParser(
        prog="python -m redraft.benchmarks.predictions", description="Predict the GPU suite's figures; needs no GPU."
    )
    parser.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, help="bytes per second that a copy reads and writes"
    )
    parser.add_argument(
        "--tau", type=float, nargs=3, default=TAU, metavar=("GSM8K", "HUMANEVAL", "MT-BENCH"), help="tokens of a round"
    )
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    options = parser.parse_args()
    if not HAS_TRITON:
        sys.exit("launches of Triton kernels are counted with Triton's own launcher: install triton")
    tau = dict(zip(SETS, options.tau, strict=True))
    print(table(predicted_stages(options.bandwidth, tau, options.prompt, options.tokens)))


if __name__ == "__main__":
    main()
