"""Sizes of targets whose weights need not be there: what speed depends on."""

from __future__ import annotations

from redraft.server.engine.target.spec import TargetSpec


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
