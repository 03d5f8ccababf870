"""Published configurations load, ours come back as they were, and what would compute something else is refused."""

import re
from typing import Any

import pytest

from redraft.drafts.dflash_config import DFlashConfig, DraftError, default_taps
from redraft.drafts.draft_config import from_json, to_json


def published(**changes: Any) -> dict[str, Any]:
    """As z-lab wrote Qwen3-4B's draft: ``block_size`` at the top level."""
    config = {
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": 16,
        "bos_token_id": 151643,
        "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "layer_types": ["full_attention"] * 5,
        "max_position_embeddings": 40960,
        "max_window_layers": 5,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "num_target_layers": 36,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    inner = changes.pop("dflash_config", {})
    made = config | changes | {"dflash_config": config["dflash_config"] | inner}
    return {name: value for name, value in made.items() if value is not ...}


PUBLISHED = DFlashConfig(
    layers=5,
    hidden=2560,
    intermediate=9728,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=151936,
    norm_eps=1e-6,
    rope_theta=1e6,
    block_size=16,
    mask_token_id=151669,
    taps=(1, 9, 17, 25, 33),
    target_layers=36,
    max_positions=40960,
)


def test_the_published_format_loads() -> None:
    config = from_json(published(), "draft")
    assert config == PUBLISHED
    assert (config.drafted, config.query_width, config.kv_width) == (15, 4096, 1024)
    assert len(config.shapes) == 58, "11 a layer, fc, hidden_norm, norm (research notes, section 1.1)"
    assert config.shapes["fc.weight"] == (2560, 5 * 2560)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": ..., "dflash_config": {"block_size": 16}},
        {"dflash_config": {"block_size": 16, "projector_type": "dflash", "use_aux_hidden_state": True}},
        {"dflash_config": {"target_hidden_size": 2560, "causal_head": False}},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
        {"layer_types": ...},
    ],
    ids=["block-size-inside", "block-size-twice", "optional-keys", "rope-parameters", "no-layer-types"],
)
def test_newer_places_of_the_same_things(changes: dict[str, Any]) -> None:
    assert from_json(published(**changes), "draft") == PUBLISHED


def test_causal_heads_load() -> None:
    assert from_json(published(dflash_config={"causal_head": True}), "draft").causal


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True, "taps": (3,), "block_size": 2, "kv_heads": 32},
        {"draft_vocab": 1000, "tree_temperatures": tuple(1 + i / 8 for i in range(15)), "norm_eps": 1e-5},
    ],
    ids=["plain", "causal", "pruned"],
)
def test_ours_come_back_from_both_places_of_the_block_size(changes: dict[str, Any]) -> None:
    from dataclasses import replace

    config = replace(PUBLISHED, **changes)
    raw = to_json(config)
    assert raw["block_size"] == raw["dflash_config"]["block_size"] == config.block_size
    assert from_json(raw, "draft") == config
    assert from_json({k: v for k, v in raw.items() if k != "block_size"}, "draft") == config
    del raw["dflash_config"]["block_size"]
    assert from_json(raw, "draft") == config


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["Eagle3DraftModel"]}, "architecture ['Eagle3DraftModel'] is not a draft"),
    "no-architecture": ({"architectures": ...}, "is not a draft this version serves"),
    "no-block-size": ({"block_size": ...}, "block_size is None, not a positive number"),
    "block-of-one": ({"block_size": 1}, "a block of 1 rows"),
    "block-size-true": ({"block_size": True}, "block_size is True, not a positive number"),
    "no-layers": ({"num_hidden_layers": ...}, "num_hidden_layers is None"),
    "no-target-layers": ({"num_target_layers": ...}, "num_target_layers is None"),
    "hidden-is-text": ({"hidden_size": "2560"}, "hidden_size is '2560', not a positive number"),
    "no-intermediate": ({"intermediate_size": 0}, "intermediate_size is 0"),
    "heads-do-not-divide": ({"num_key_value_heads": 7}, "over 7 key heads"),
    "no-taps": ({"dflash_config": {"target_layer_ids": []}}, "target_layer_ids is []"),
    "tap-beyond-the-target": ({"dflash_config": {"target_layer_ids": [1, 36]}}, "not layers of a target of 36"),
    "tap-negative": ({"dflash_config": {"target_layer_ids": [-1]}}, "not layers of a target of 36"),
    "tap-twice": ({"dflash_config": {"target_layer_ids": [3, 3]}}, "names a layer twice"),
    "mask-beyond-vocabulary": ({"dflash_config": {"mask_token_id": 151936}}, "mask_token_id is 151936, not a token"),
    "mask-negative": ({"dflash_config": {"mask_token_id": -1}}, "mask_token_id is -1, not a token"),
    "no-mask": ({"dflash_config": {"mask_token_id": None}}, "mask_token_id is None, not a token"),
    "head-dim-odd": ({"head_dim": 127}, "heads of 127 over"),
    "draft-vocabulary-negative": ({"draft_vocab_size": -3}, "-3 of 151936 tokens"),
    "draft-vocabulary-text": ({"draft_vocab_size": "all"}, "a value is not of the kind it should be"),
    "epsilon-is-text": ({"rms_norm_eps": "small"}, "a value is not of the kind it should be"),
    "rope-is-text": ({"rope_parameters": "default"}, "a value is not of the kind it should be"),
    "temperatures-are-one-number": ({"dflash_config": {"tree_temperatures": 1.0}}, "a value is not of the kind"),
    "draft-vocabulary": ({"draft_vocab_size": 151937}, "151937 of 151936 tokens"),
    "temperatures-too-few": ({"dflash_config": {"tree_temperatures": [1.0]}}, "tree_temperatures must be 15 numbers"),
    "temperature-zero": ({"dflash_config": {"tree_temperatures": [0.0] * 15}}, "tree_temperatures must be 15 numbers"),
    "sliding-window": ({"layer_types": ["sliding_attention"] * 5}, "sliding-window layers are not supported"),
    "scaled-rope": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "scaled rotation"),
    "scaled-rope-new": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "scaled rotation"),
    "biases": ({"attention_bias": True}, "biases in attention"),
    "activation": ({"hidden_act": "gelu"}, "activation gelu"),
    "projector": ({"dflash_config": {"projector_type": "mlp"}}, "projector mlp"),
    "other-hidden-size": ({"dflash_config": {"target_hidden_size": 4096}}, "a hidden size of its own"),
    "no-taps-at-all": ({"dflash_config": {"use_aux_hidden_state": False}}, "a draft without taps"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_served_is_refused_with_its_reason(kind: str) -> None:
    changes, message = BAD[kind]
    with pytest.raises(DraftError, match=re.escape(message)) as told:
        from_json(published(**changes), "folder/config.json")
    assert str(told.value).startswith("folder/config.json: ")


@pytest.mark.parametrize("inner", [[1, 9], "dflash", 5])
def test_an_inner_part_of_another_kind_is_refused(inner: object) -> None:
    with pytest.raises(DraftError, match=r"^draft: a value is not of the kind it should be"):
        from_json(published() | {"dflash_config": inner}, "draft")


@pytest.mark.parametrize(
    ("count", "layers", "taps"),
    [
        (5, 36, (1, 9, 17, 25, 33)),
        (5, 24, (1, 6, 11, 16, 21)),
        (5, 64, (1, 16, 31, 46, 61)),
        (5, 28, (1, 7, 13, 19, 25)),
        (3, 30, (1, 14, 27)),
        (1, 30, (15,)),
    ],
)
def test_taps_by_the_published_rule(count: int, layers: int, taps: tuple[int, ...]) -> None:
    assert default_taps(count, layers) == taps


def test_a_target_too_shallow_for_its_taps() -> None:
    with pytest.raises(DraftError, match="a target of 4 layers is too shallow for 3 taps"):
        default_taps(3, 4)
