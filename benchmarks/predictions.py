"""The GPU suite's figures as predicted for a GPU that is not at hand: ``python -m redraft.benchmarks.predictions``.

From shapes, counted launches and a bandwidth alone, by the code that puts predictions beside the suite's measurements;
so they can be written down before.  Of the default target, what its draft commits per round has to be told,
and with how many nodes.
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
TAU = (4.184, 4.056, 2.841)
"""Tokens a round of the shipped draft with lookup, on GSM8K, HumanEval and MT-Bench; ``NODES`` nodes are verified."""
SOURCE = "counted on a CPU, greedy, 24 prompts a set (docs/log.md, A selector behind the shipped draft)"
SETS = ("gsm8k", "humaneval", "mt-bench")
ITEMSIZE = 2


def predicted_stages(
    bandwidth: float, tau: Mapping[str, float], prompt: int, tokens: int, verified: int = NODES
) -> list[dict[str, Any]]:
    """Stages as the suite would have them, with what is predicted of them and nothing measured.

    ``tau``: tokens of a round by set, of rounds that verify ``verified`` nodes.
    """
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
    drafting = Drafting(draft_shape(spec), True, NODES, verified)
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


def premise(tau: Mapping[str, float], verified: int, source: str) -> str:
    """What speculative speeds rest on that shapes do not tell."""
    told = ", ".join(f"{name} {of:g}" for name, of in tau.items())
    return "\n".join(
        (
            f"speculative: tokens a round {told}, {source};",
            f"priced are rounds as those were, with {verified} nodes verified, {1 + verified} rows.",
            f"The suite's engine has no measured costs and verifies all {2 * NODES} nodes that draft and lookup make,",
            "for no fewer tokens a round; what the suite predicts is of that, with the tokens that it counted.",
        )
    )


def main() -> None:
    """Entry point of ``python -m``."""
    parser = argparse.ArgumentParser(
        prog="python -m redraft.benchmarks.predictions", description="Predict the GPU suite's figures; needs no GPU."
    )
    parser.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, help="bytes per second that a copy reads and writes"
    )
    parser.add_argument(
        "--tau", type=float, nargs=3, metavar=("GSM8K", "HUMANEVAL", "MT-BENCH"), help="tokens of a round"
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=NODES,
        help=f"verified in rounds of so many tokens, of {2 * NODES} that are drafted",
    )
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    options = parser.parse_args()
    if not HAS_TRITON:
        sys.exit("launches of Triton kernels are counted with Triton's own launcher: install triton")
    if options.tau is None and options.nodes != NODES:
        parser.error(f"--nodes needs --tau: what is known of rounds is of {NODES} nodes")
    if not 1 <= options.nodes <= 2 * NODES:
        parser.error(f"--nodes must lie in 1 ... {2 * NODES}")
    tau = dict(zip(SETS, options.tau or TAU, strict=True))
    print(table(predicted_stages(options.bandwidth, tau, options.prompt, options.tokens, options.nodes)))
    print(premise(tau, options.nodes, SOURCE if options.tau is None else "as --tau has it"))


if __name__ == "__main__":
    main()
