"""The DFlash drafter (arXiv 2602.06036): one pass over a block of masks drafts all its tokens at once.

Its context are the target's own states: after every pass of the target, ``absorb`` turns the tapped outputs into the
keys and values of all draft layers, in the cells of the very tokens, where acceptance moves them along with the
target's.  A block is the anchor and masks; row k predicts the token k places behind the anchor, seeing all text before
the anchor and its own block (up to itself, where the draft is causal).  From the rows' marginals grows the tree,
corrected by what follows what where the draft has a selector (selector.py).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from redraft.drafts.base import Bounds, Candidates, Context, DraftState, Passed
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.dflash_weights import pack
from redraft.drafts.marginals import BRANCH, Noise, marginals
from redraft.drafts.own_tokens import Own, OwnTokens
from redraft.drafts.selector import Selector, chosen
from redraft.drafts.slots import active_slots, spread
from redraft.kernels.attention import block_attention
from redraft.kernels.block_rows import block_rows
from redraft.kernels.block_tree import block_tree
from redraft.kernels.layer_ops import LayerOps, layer_ops, run_layer
from redraft.kernels.rope import rope_table
from redraft.kernels.triton_support import use_triton


def context_of(checkpoint: Checkpoint) -> Context:
    """What a draft keeps of the text.  Serving has a head of its own and keys' and values' projections twice."""
    config = checkpoint.config_as(DFlashConfig)
    own = sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if name != "d2t")
    return Context(
        taps=config.taps,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        reach=config.block_size,
        weights=own + ((config.draft_vocab or config.vocab) + 2 * config.layers * config.kv_width) * config.hidden,
    )


class DFlashDrafter:
    """Serves one draft to one engine."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        embedding: Tensor,
        head: Tensor,
        positions: int,
        max_nodes: int,
        name: str = "dflash",
        branch: int | None = None,
        own_tokens: int = 0,
    ) -> None:
        """``embedding``, ``head`` [V, H] are the target's, on the device and in the dtype to work in.

        ``positions`` bounds those of any row; ``branch`` tokens of every row (``BRANCH`` unless told) make the tree, 1
        for a chain.  Up to ``own_tokens`` of a text that the draft's vocabulary lacks are candidates, too.  Raises
        ``DraftError`` if the draft is not one for this target.
        """
        self.config = config = checkpoint.config_as(DFlashConfig)
        self.context = context_of(checkpoint)
        if embedding.shape != (config.vocab, config.hidden):
            raise DraftError(
                f"{name} is a draft for a target with {config.vocab} tokens and hidden size {config.hidden}, "
                f"this one has {embedding.shape[0]} and {embedding.shape[1]}"
            )
        self.name, self.version, self.max_nodes, self.branch = name, checkpoint.version, max_nodes, branch or BRANCH
        self.device = device = embedding.device
        self.weights = pack(checkpoint, head, device, embedding.dtype)
        vocabulary = self.weights.vocabulary
        self.own_tokens = OwnTokens(vocabulary, head, own_tokens) if own_tokens and vocabulary is not None else None
        self.embedding = embedding
        self.selector = Selector.of(checkpoint, self.device) if config.selector_rank else None
        self.temperature = torch.tensor(config.tree_temperatures or (1.0,) * config.drafted, device=device)
        half = torch.arange(config.head_dim // 2, dtype=torch.float64, device=device)
        cos, sin = rope_table(config.rope_theta ** (-2 * half / config.head_dim), positions)

        def ops(heads: int) -> LayerOps:
            width = max(2 * config.intermediate, config.query_width + 2 * config.kv_width, config.hidden)
            sizes = {"heads": heads, "kv_heads": config.kv_heads, "width": width}
            return layer_ops(cos, sin, eps=config.norm_eps, dtype=embedding.dtype, **sizes)

        self.block_ops, self.context_ops = ops(config.heads), ops(0)

    def as_chain(self) -> DFlashDrafter:
        """The same draft with one token a row."""
        chain = copy.copy(self)
        chain.branch = 1
        return chain

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """Write the context's keys and values of all layers (§3, KV injection)."""
        weights, ops, config = self.weights, self.context_ops, self.config
        made = ops.project(weights.fuse(passed.taps.flatten(1)), weights.hidden_norm, weights.context_kv)
        made = made.view(-1, config.layers, 2 * config.kv_width)
        ops.turn(passed.position, passed.cell)
        ops.cache_layers(made, weights.k_norm, kv)

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """The best ``max_nodes`` prefixes of every slot's block."""
        slot, anchor, root = active_slots(state, bounds.requests)
        own = None if self.own_tokens is None else self.own_tokens.find(state, slot, bounds.context)
        logits = self._block(state, slot, anchor, root, bounds.context, own)
        token, log_probability = self._marginals(state, slot, root, logits, bounds.sampled, own)
        if self.selector is not None:
            log_probability = self.selector(token, log_probability, self.temperature)
            if self.branch == 1:
                token, log_probability = chosen(token, log_probability)
        token, parent, score = block_tree(anchor, token, log_probability, self.max_nodes)
        return spread(state, slot, token, parent, score)

    def _block(
        self,
        state: DraftState,
        slot: Tensor,
        anchor: Tensor,
        root: Tensor,
        context_bound: int,
        own: Own | None = None,
    ) -> Tensor:
        """Logits [N, B - 1, V' + E] of the blocks behind ``anchor`` [N] at ``root`` [N]."""
        config, ops = self.config, self.block_ops
        size, mask, causal = config.block_size, config.mask_token_id, config.causal
        block = block_rows(slot, anchor, root, state.page_table, self.embedding, size=size, mask=mask, causal=causal)
        attend = block_attention(block.rows, state.page_table, context_bound + size, config.head_dim, len(slot))
        hidden = block.hidden
        ops.turn(block.position, block.cell)
        for number, layer in enumerate(self.weights.layers):
            hidden = run_layer(ops, layer, hidden, state.kv[number], attend)
        return self._head(hidden, own)

    def _head(self, hidden: Tensor, own: Own | None) -> Tensor:
        """Logits [N, B - 1, V' + E] of blocks ``hidden`` [N * B, H]."""
        config, weights, ops = self.config, self.weights, self.block_ops
        head, size = weights.head, config.block_size
        if own is None and use_triton(hidden):
            # one launch instead of three; rows come in tiles of 16 there, so the anchors' are seldom more work
            return ops.project(hidden, weights.norm, head).view(-1, size, head.out_features)[:, 1:]
        predicting = hidden.view(-1, size, config.hidden)[:, 1:].flatten(0, 1)
        normed = ops.norm(predicting, weights.norm)
        logits = head(normed).view(-1, config.drafted, head.out_features)
        if self.own_tokens is None or own is None:
            return logits
        return torch.cat((logits, self.own_tokens.logits(normed.view(-1, config.drafted, config.hidden), own)), -1)

    def _marginals(
        self, state: DraftState, slot: Tensor, root: Tensor, logits: Tensor, sampled: bool, own: Own | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best tokens of every row and their log-probabilities, [N, B - 1, K] each.

        K is ``branch``, but where a selector makes the chain: that is not made of every row's best.
        """
        noise = Noise(state.sampling.seed, root + 1, state.sampling.temperature, slot) if sampled else None
        ids = None if own is None else own.ids
        kept = BRANCH if self.branch == 1 and self.selector is not None else self.branch
        return marginals(logits, self.temperature, kept, self.weights.vocabulary, noise, ids)
