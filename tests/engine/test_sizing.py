"""What fits is divided; what does not is refused with the sum."""

import pytest

from redraft.drafts.base import NO_CONTEXT, Context
from redraft.server.engine.sizing import GIB, Sizes, fit
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.types import RedraftError

SPEC = TargetSpec(
    layers=4,
    hidden=512,
    intermediate=1024,
    heads=8,
    kv_heads=4,
    head_dim=64,
    vocab=1000,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=(),
    context=4096,
    tied=True,
    qk_norm=False,
    eos_token_ids=(2,),
)


def sizes(available: float, max_model_len: int | None = None, context: Context = NO_CONTEXT) -> Sizes:
    return fit(
        SPEC,
        context,
        weight_itemsize=2,
        kv_itemsize=2,
        available=int(available * GIB),
        max_model_len=max_model_len,
        max_num_seqs=2,
        tree_rows=6,
    )


def test_plenty_of_memory_gives_every_slot_the_whole_context() -> None:
    assert sizes(8) == Sizes(4096, 2 * 33)


def test_scarce_memory_shortens_the_context_only_if_none_was_asked_for() -> None:
    short = sizes(0.525)
    assert short.max_model_len < 4096
    assert short.pages * 128 >= short.max_model_len
    with pytest.raises(RedraftError, match=r"does not fit: weights .* GiB .* available are 0\.5. GiB"):
        sizes(0.525, max_model_len=4096)


def test_a_target_larger_than_memory_is_refused_with_the_sum() -> None:
    with pytest.raises(RedraftError, match="take a smaller target"):
        sizes(0.1)


def test_a_length_beyond_the_context_is_refused() -> None:
    with pytest.raises(RedraftError, match="beyond the target's context of 4096"):
        sizes(8, max_model_len=4097)


def test_a_drafts_weights_and_keys_and_values_are_counted() -> None:
    # the target's: 4 layers of 4 heads of 64, 2 bytes each, keys and values
    page = 2 * 4 * 4 * 64 * 2 * 128
    plain = sizes(0.525)
    bare = Context(layers=0, weights=page // 2 * 5)
    assert sizes(0.525, context=bare).pages == plain.pages - 5
    # as many draft layers as the target has double a page
    kept = sizes(0.525, context=Context(layers=4, kv_heads=4, head_dim=64))
    assert kept.pages in ((plain.pages + 1) // 2 - 1, plain.pages // 2)
    with pytest.raises(RedraftError, match="does not fit: weights 1"):
        sizes(0.525, context=Context(weights=GIB // 2))
