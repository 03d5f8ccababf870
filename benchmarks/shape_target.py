"""A target of a known shape with random weights, made on the device, and an engine's state while it decodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.base import NO_CONTEXT, Context, Drafter
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
BOUND = LENGTH + 128
"""What the host would know of their lengths."""
ROOM = LENGTH + 1024
ANCHOR = 1
"""The token that texts consist of."""


@dataclass(frozen=True, slots=True)
class Case:
    """``requests`` texts, each with ``rows`` rows verified a round; 1 is plain decoding."""

    requests: int
    rows: int

    @property
    def plan(self) -> Plan:
        """Of its round."""
        rows = row_bucket(self.requests * self.rows)
        return Plan(rows, BOUND, self.requests, sampled=False, filtered=False, drafting=self.rows > 1)


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


class ShapeTarget:
    """One shape's target, and states of engines that decode with it."""

    def __init__(
        self, spec: TargetSpec, device: torch.device, dtype: torch.dtype, make_attention: MakeAttention
    ) -> None:
        self.spec, self.device, self.dtype, self.make_attention = spec, device, dtype, make_attention
        self.kv_dtype = torch.float32 if device.type == "cpu" else dtype
        self.weights = random_weights(spec, device, dtype)
        self.target = Target(spec, self.weights, ROOM)

    def state(self, case: Case, nodes: int, context: Context = NO_CONTEXT) -> DeviceState:
        """``make_state`` of this target."""
        return make_state(self.spec, self.device, self.kv_dtype, case, nodes, context)

    def rounds(self, state: DeviceState, drafter: Drafter) -> Graphs[Ran]:
        """Rounds by graph on a GPU, as they are elsewhere."""

        def run(plan: Plan) -> Parts[Ran]:
            return round_parts(state, self.target, drafter, plan, self.make_attention)

        make_recorder = cuda_recorder if self.device.type == "cuda" else None
        return Graphs(run, make_recorder, state.slots, state.positions)


def make_state(
    spec: TargetSpec,
    device: torch.device,
    kv_dtype: torch.dtype,
    case: Case,
    nodes: int,
    context: Context = NO_CONTEXT,
) -> DeviceState:
    """Every slot with a text of ``LENGTH`` tokens, for a draft of ``nodes`` nodes that keeps ``context``."""
    pages = -(-ROOM // PAGE)
    state = DeviceState(
        spec,
        device,
        kv_dtype,
        slots=case.requests,
        pages=pages * case.requests,
        max_model_len=LENGTH + 512,
        tree_rows=max(1 + nodes, context.reach, 16),
        context=context,
    )
    each = min(state.page_table.shape[1], pages)
    own = torch.arange(1, 1 + case.requests * pages, device=device).view(case.requests, pages)
    state.page_table[: case.requests, :each] = own[:, :each]
    state.tokens[: case.requests] = ANCHOR
    state.limit[: case.requests] = state.positions
    state.most_nodes[: case.requests] = nodes
    state.trust[: case.requests] = 1.0
    begin(state)
    return state


def begin(state: DeviceState) -> None:
    """All texts as they were before the first round."""
    state.length[: state.slots] = LENGTH
    state.active[: state.slots] = True
