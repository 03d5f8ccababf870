"""Sizes of targets whose weights need not be there: what speed depends on."""

from __future__ import annotations

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.settings import SftSettings
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.train_start import new_dflash


def _spec(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int, vocab: int, tied: bool,
          qk_norm: bool) -> TargetSpec:  # fmt: skip
    return TargetSpec(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=(),
        context=8192,
        tied=tied,
        qk_norm=qk_norm,
        eos_token_ids=(2,),
    )


TARGETS = {
    "SmolLM2-135M": _spec(30, 576, 1536, 9, 3, 64, 49152, True, False),
    "Qwen3-1.7B": _spec(28, 2048, 6144, 16, 8, 128, 151936, True, True),
    "Qwen3-8B": _spec(36, 4096, 12288, 32, 8, 128, 151936, False, True),
}
"""Sizes of the published config.json; epsilon, base and the like are made up, since speed does not see them."""
LEAST_LAYERS, LEAST_HIDDEN = 12, 1024
"""Of targets for which ``draft_shape`` is the published one."""
TINY = {"tiny": _spec(2, 64, 128, 4, 2, 16, 512, True, False)}
"""For trying a measurement itself."""


def products(spec: TargetSpec) -> dict[str, tuple[int, int, int]]:
    """Outputs, inner size and times a pass of every matrix product; gate and up are one of ``2 I`` outputs."""
    merged = spec.query_width + 2 * spec.kv_width
    return {
        "qkv": (merged, spec.hidden, spec.layers),
        "output": (spec.hidden, spec.query_width, spec.layers),
        "gate_up": (2 * spec.intermediate, spec.hidden, spec.layers),
        "down": (spec.hidden, spec.intermediate, spec.layers),
        "head": (spec.vocab, spec.hidden, 1),
    }


def draft_shape(spec: TargetSpec) -> DFlashConfig:
    """Of a DFlash draft for a target of ``spec``'s shape, where speed alone matters.

    As published for Qwen3-8B: five layers of the target's own sizes, five taps, blocks of 16, all of the vocabulary.
    The default target's is the one that ships: three layers, three taps, blocks of 8, 16,384 tokens.
    """
    small = spec.layers < LEAST_LAYERS or spec.hidden < LEAST_HIDDEN
    count = min(3 if small else 5, max(spec.layers - 4, 1))
    sizes = SftSettings(
        layers=3 if small else 5, block_size=8 if small else 16, tap_count=count, mask_token_id=spec.vocab - 1
    )
    return new_dflash(spec, sizes, min(16384, spec.vocab) if small else 0)
