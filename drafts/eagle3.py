"""The EAGLE-3 drafter (arXiv 2503.01840): one decoder layer drafts token after token, from the target's own states.

A row of the layer reads a *pair*, the feature f of a token and the embedding of the token after it.  The feature of a
token that the target has passed over is its tapped states, fused; that of a drafted one is the layer's own output.

All of a token's lies in the token's own cell, where acceptance moves it along with the target's keys and values: the
keys and values of the pair (f of the token before, the token), and behind them, in layers that exist for it, its own
feature, which the pair of whatever comes next asks for.  So a page is complete by itself and may be reused.  Position 0
has no pair, and no row but its own sees it; drafting begins with the second token.  The cells behind the anchor's hold
the pairs of drafted nodes while the tree grows.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.base import Bounds, Candidates, Context, DraftState, Passed
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.eagle3_weights import pack
from redraft.drafts.growing_tree import GrowingTree
from redraft.drafts.marginals import Noise, marginals
from redraft.drafts.slots import active_slots, spread
from redraft.kernels.attention import block_attention
from redraft.kernels.layer_ops import LayerOps, layer_ops
from redraft.kernels.rope import rope_table
from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import CHUNK

WIDTH = 4
"""Live nodes of a depth, each of which proposes so many: SGLang's default (drafters-and-kernels.md 2.3)."""


def context_of(checkpoint: Checkpoint, max_nodes: int, branch: int | None = None) -> Context:
    """What a draft keeps of the text.  Serving has keys' and values' projections twice."""
    config = checkpoint.config_as(Eagle3Config)
    if not config.taps:
        raise DraftError("the draft does not say which layers it taps; they follow from its target (for_target)")
    own = sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if name not in ("d2t", "t2d"))
    return Context(
        taps=config.taps,
        layers=1 + -(-config.hidden // (2 * config.kv_width)),
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        reach=1 + (min(config.steps, max_nodes) - 1) * min(branch or WIDTH, max_nodes),
        weights=own + 2 * config.kv_width * 2 * config.hidden,
    )


class Eagle3Drafter:
    """Serves one draft to one engine."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        embedding: Tensor,
        positions: int,
        max_nodes: int,
        name: str = "eagle3",
        branch: int | None = None,
    ) -> None:
        """``embedding`` [V, H] is the target's, on the device and in the dtype to work in.

        ``positions`` bounds those of any row; ``branch`` nodes of every depth (``WIDTH`` unless told) are gone on from,
        1 for a chain.  Raises ``DraftError`` if the draft is not one for this target.
        """
        self.config = config = checkpoint.config_as(Eagle3Config)
        self.context = context_of(checkpoint, max_nodes, branch)
        if embedding.shape != (config.vocab, config.hidden):
            raise DraftError(
                f"{name} is a draft for a target with {config.vocab} tokens and hidden size {config.hidden}, "
                f"this one has {embedding.shape[0]} and {embedding.shape[1]}"
            )
        self.name, self.version, self.max_nodes = name, checkpoint.version, max_nodes
        self.width, self.steps = min(branch or WIDTH, max_nodes), min(config.steps, max_nodes)
        self.device = device = embedding.device
        self.weights = pack(checkpoint, device, embedding.dtype)
        self.embedding = embedding
        self.temperature = torch.tensor(config.tree_temperatures or (1.0,) * self.steps, device=device)
        half = torch.arange(config.head_dim // 2, dtype=torch.float64, device=device)
        cos, sin = rope_table(config.rope_theta ** (-2 * half / config.head_dim), positions)

        def ops(heads: int) -> LayerOps:
            width = max(2 * config.intermediate, config.query_width + 2 * config.kv_width, config.hidden)
            sizes = {"heads": heads, "kv_heads": config.kv_heads, "width": width}
            return layer_ops(cos, sin, eps=config.norm_eps, dtype=embedding.dtype, **sizes)

        self.node_ops, self.context_ops = ops(config.heads), ops(0)

    def as_chain(self) -> Eagle3Drafter:
        """The same draft with one node a depth."""
        chain = copy.copy(self)
        chain.width = 1
        return chain

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """Write the rows' features, and the keys and values of their pairs."""
        ops = self.context_ops
        planes = self._features(kv)
        feature = functional.pad(self.weights.fuse(passed.taps.flatten(1)), (0, self._room - self.config.hidden))
        feature = feature.view(-1, planes.shape[0], *planes.shape[2:]).transpose(0, 1)
        planes.index_copy_(1, passed.cell, feature.to(kv.dtype))
        # only now: the token before may be of this pass
        pair = self._pair(ops, passed.token, self._feature(kv, passed.before, passed.position))
        self._turn(ops, passed.position, passed.cell)
        ops.rope_and_cache(self.weights.kv(pair), None, kv[0])

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """The best ``max_nodes`` of all nodes that were scored while every slot's tree grew."""
        slot, anchor, root = active_slots(state, bounds.requests)
        before = cells(state.page_table, slot, (root - 1).clamp_min(0), CHUNK)
        token, feature = anchor.unsqueeze(1), self._feature(state.kv, before, root)
        path = torch.zeros_like(token).unsqueeze(2)
        tree = GrowingTree(anchor, self.width)
        for depth in range(self.steps):
            live = token.shape[1]
            hidden = self._pass(state, _rows(token, slot, root, path, state.active.shape[0]), feature, bounds)
            logits = self.node_ops.project(hidden, self.weights.norm, self.weights.head)
            logits = logits.view(*token.shape, -1)
            token, parent = tree.grow(*self._children(state, slot, root, depth, logits, bounds.sampled))
            row = parent + torch.arange(0, hidden.shape[0], live, device=self.device).unsqueeze(1)
            feature = hidden.index_select(0, row.flatten())
            path = path.flatten(0, 1)[row]
            index = torch.arange(1 + depth * self.width, 1 + depth * self.width + token.shape[1], device=self.device)
            path = torch.cat((path, index.expand(token.shape).unsqueeze(2)), 2)
        tokens, parents, score = tree.best(self.max_nodes)
        # without a feature there is nothing to draft from
        nothing = (root == 0).unsqueeze(1) & (torch.arange(score.shape[1], device=self.device) > 0)
        return spread(state, slot, tokens, parents, score.masked_fill(nothing, float("-inf")))

    def _pass(self, state: DraftState, rows: Rows, feature: Tensor, bounds: Bounds) -> Tensor:
        """The layer over ``rows`` with ``feature`` [R, H]: its output [R, H], before the norm."""
        weights, ops = self.weights, self.node_ops
        self._turn(ops, rows.position, self._cell(state, rows))
        # position 0 has no pair
        bound = bounds.context + rows.path.shape[1]
        attend = block_attention(rows, state.page_table, bound, self.config.head_dim, bounds.requests, first=1)
        q = ops.rope_and_cache(weights.qkv(self._pair(ops, rows.token, feature)), None, state.kv[0])
        out = attend(q, state.kv[0, 0], state.kv[0, 1], feature.dtype).reshape(-1, self.config.query_width)
        hidden = weights.output(out, feature)
        return weights.down(ops.gate(hidden, weights.post_norm, weights.gate_up), hidden)

    def _pair(self, ops: LayerOps, token: Tensor, feature: Tensor) -> Tensor:
        """[R, 2 H] what the layer's attention reads."""
        embedded = functional.embedding(token, self.embedding)
        return torch.cat((ops.norm(embedded, self.weights.input_norm), ops.norm(feature, self.weights.hidden_norm)), 1)

    def _turn(self, ops: LayerOps, position: Tensor, cell: Tensor) -> None:
        """A pair is rotated to its feature's position, as in training; its token's is one further."""
        ops.turn((position - 1).clamp_min(0), cell)

    def _cell(self, state: DraftState, rows: Rows) -> Tensor:
        return cells(state.page_table, rows.slot, rows.position - rows.depth + rows.index, CHUNK)

    def _children(
        self, state: DraftState, slot: Tensor, root: Tensor, depth: int, logits: Tensor, sampled: bool
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [N, L, K] that the live nodes at ``depth`` propose, of ``logits`` [N, L, V']."""
        N, L, V = logits.shape
        scale, noise = self.temperature[depth : depth + 1], None
        if sampled:
            keys = state.sampling.seed[slot], root + depth + 1, state.sampling.temperature[slot]
            noise = Noise(*(key.repeat_interleave(L) for key in keys))
        token, score = marginals(logits.view(N * L, 1, V), scale, self.width, self.weights.vocabulary, noise)
        return token.view(N, L, -1), score.view(N, L, -1)

    @property
    def _room(self) -> int:
        """Numbers that the feature's layers hold of a token, at least H."""
        return 2 * (self.context.layers - 1) * self.config.kv_width

    def _features(self, kv: Tensor) -> Tensor:
        """[2 (D - 1), cells, HKV, HD] of ``kv``, where features lie."""
        return kv[1:].view(-1, *kv.shape[2:])

    def _feature(self, kv: Tensor, cell: Tensor, position: Tensor) -> Tensor:
        """[R, H] in ``cell`` [R], for pairs at ``position`` [R]: zero at 0, before which there is no token."""
        found = self._features(kv).index_select(1, cell).transpose(0, 1).flatten(1)[:, : self.config.hidden]
        return torch.where((position > 0).unsqueeze(1), found, 0.0).to(self.embedding.dtype)


def _rows(token: Tensor, slot: Tensor, root: Tensor, path: Tensor, slots: int) -> Rows:
    """Live nodes ``token`` [N, L] behind ``root`` [N] as a pass's rows; ``path`` [N, L, depth + 1] has their cells."""
    live, depth = token.shape[1], path.shape[2] - 1
    nothing = torch.zeros(slots, dtype=torch.int64, device=token.device)
    return Rows(
        token=token.flatten(),
        slot=slot.repeat_interleave(live),
        position=(root + depth).repeat_interleave(live),
        depth=torch.full_like(token, depth).flatten(),
        parent=nothing[:0],  # nobody walks these
        index=path[:, :, -1].flatten(),
        path=path.flatten(0, 1),
        first_row=nothing,
        row_count=nothing,
    )
