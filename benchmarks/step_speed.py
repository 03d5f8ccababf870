"""What a plain step and a verified round take on weights of a known shape, random and made on the device.

A round here is the engine's, by graph on a GPU: draft, tree, target, sampling, acceptance, compaction.  The draft is a
stand-in that costs nothing and is never right, so that what remains is the cost of verifying.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.benchmarks.traffic import target_pass
from redraft.drafts.adversarial import ChainDrafter
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.attention import MakeAttention
from redraft.kernels.linear import Linear
from redraft.server.engine.config import PAGE
from redraft.server.engine.graphs import Graphs
from redraft.server.engine.parts import Parts
from redraft.server.engine.recording import cuda_recorder
from redraft.server.engine.round import Plan, Ran, round_parts
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.target.weights import Layer, Weights

LENGTH = 512
"""Tokens of every text when a measurement begins."""
STEPS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """``requests`` texts, each with ``rows`` rows verified a round; 1 is plain decoding."""

    requests: int
    rows: int


CASES = (
    *(Case(1, rows) for rows in (1, 8, 16, 32, 64)),
    *(Case(requests, rows) for requests in (4, 16, 64) for rows in (1, 8)),
)


def random_weights(spec: TargetSpec, device: torch.device, dtype: torch.dtype) -> Weights:
    """Weights of ``spec``'s shapes; values matter only in that they stay finite."""
    torch.manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, device=device, dtype=dtype).normal_(std=columns**-0.5)

    def ones(*shape: int) -> Tensor:
        return torch.ones(*shape, device=device)

    def layer() -> Layer:
        return Layer(
            input_norm=ones(spec.hidden),
            qkv=Linear(matrix(spec.query_width + 2 * spec.kv_width, spec.hidden)),
            qk_norm=ones(spec.heads + spec.kv_heads, spec.head_dim) if spec.qk_norm else None,
            output=Linear(matrix(spec.hidden, spec.query_width)),
            post_norm=ones(spec.hidden),
            gate_up=Linear(matrix(2 * spec.intermediate, spec.hidden)),
            down=Linear(matrix(spec.hidden, spec.intermediate)),
        )

    embedding = matrix(spec.vocab, spec.hidden)
    layers = tuple(layer() for _ in range(spec.layers))
    return Weights(
        embedding, layers, ones(spec.hidden), Linear(embedding if spec.tied else matrix(spec.vocab, spec.hidden))
    )


class Steps:
    """One shape's target, and what a step of it takes."""

    def __init__(
        self, spec: TargetSpec, device: torch.device, dtype: torch.dtype, make_attention: MakeAttention
    ) -> None:
        self.spec, self.device, self.make_attention = spec, device, make_attention
        self.kv_dtype = torch.float32 if device.type == "cpu" else dtype
        self.weights = random_weights(spec, device, dtype)
        self.target = Target(spec, self.weights, LENGTH + 1024)

    @torch.inference_mode()
    def seconds(self, case: Case, steps: int = STEPS) -> float:
        """Of one step of ``case``: the median over ``steps``, after two that compile and record."""
        state = self._state(case)
        drafter: Drafter = NoDrafter()
        if case.rows > 1:
            # as wrong as can be: every node is verified and none accepted
            wrong = torch.zeros(case.requests + 1, LENGTH + 1024, dtype=torch.int64, device=self.device)
            drafter = ChainDrafter(wrong, self.spec.vocab, case.rows - 1, offset=1)
        run = _runner(state, self.target, drafter, self.make_attention)
        rows = row_bucket(case.requests * case.rows)
        plan = Plan(rows, LENGTH + 128, case.requests, sampled=False, filtered=False, drafting=case.rows > 1)
        for _ in range(3):
            run(plan)
        times = []
        for _ in range(steps):
            state.length[: case.requests] = LENGTH
            state.active[: case.requests] = True
            self._wait()
            begun = time.perf_counter()
            self.committed = run(plan)[0].committed
            self._wait()
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2]

    def _state(self, case: Case) -> DeviceState:
        pages = -(-(LENGTH + 1024) // PAGE)
        state = DeviceState(
            self.spec,
            self.device,
            self.kv_dtype,
            slots=case.requests,
            pages=pages * case.requests,
            max_model_len=LENGTH + 512,
            tree_rows=max(case.rows, 16),
        )
        each = state.page_table.shape[1]
        own = torch.arange(1, 1 + case.requests * pages, device=self.device).view(case.requests, pages)
        state.page_table[: case.requests, : min(each, pages)] = own[:, : min(each, pages)]
        state.tokens[: case.requests] = 1
        state.length[: case.requests] = LENGTH
        state.limit[: case.requests] = state.positions
        state.most_nodes[: case.requests] = case.rows
        state.trust[: case.requests] = 1.0
        state.active[: case.requests] = True
        return state

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _runner(state: DeviceState, target: Target, drafter: Drafter, make_attention: MakeAttention) -> Graphs[Ran]:
    """Rounds by graph on a GPU, as they are elsewhere."""

    def run(plan: Plan) -> Parts[Ran]:
        return round_parts(state, target, drafter, plan, make_attention)

    make_recorder = cuda_recorder if state.device.type == "cuda" else None
    return Graphs(run, make_recorder, state.slots, state.positions)


def step_speed(
    shapes: Mapping[str, TargetSpec],
    cases: Iterable[Case],
    device: torch.device,
    dtype: torch.dtype,
    make_attention: MakeAttention,
    bandwidth: float,
) -> list[dict[str, Any]]:
    """One entry per shape and case: seconds, what memory alone would take, and the first as a share of plain decoding.

    ``bandwidth`` is the device's in bytes per second (bandwidth.py).  A shape that does not fit says so.
    """
    found = []
    for name, spec in shapes.items():
        try:
            steps = Steps(spec, device, dtype, make_attention)
        except torch.OutOfMemoryError as error:
            found.append({"shape": name, "failed": str(error)[:300]})
            continue
        plain: dict[int, float] = {}
        for case in cases:
            entry: dict[str, Any] = {"shape": name, "requests": case.requests, "rows": case.rows}
            try:
                seconds = steps.seconds(case)
            except Exception as error:  # the other cases are still of interest
                found.append(entry | {"failed": f"{type(error).__name__}: {error}"[:300]})
                continue
            if case.rows == 1:
                plain[case.requests] = seconds
            moved = target_pass(spec, case.requests * case.rows, [LENGTH] * case.requests, dtype.itemsize)
            floor, predicted = moved.seconds(bandwidth), moved.predicted_seconds(bandwidth)
            entry |= {"seconds": seconds, "memory_seconds": floor, "predicted_seconds": predicted}
            entry["share_of_bandwidth"] = floor / seconds
            if case.requests in plain:
                entry["against_plain"] = seconds / plain[case.requests]
            found.append(entry)
            print(
                f"  {name}: {case.requests} x {case.rows} rows {1e3 * seconds:.3f} ms, "
                f"{floor / seconds:.0%} of the bandwidth, {entry.get('against_plain', float('nan')):.2f} x plain",
                flush=True,
            )
        del steps
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found
