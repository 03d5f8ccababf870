"""An EAGLE-3 draft's folder: published configurations load, what is written is read, what cannot serve is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redraft.drafts.checkpoint import CONFIG, WEIGHTS, read_draft, write_draft
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.draft_config import from_json, to_json
from redraft.drafts.eagle3_config import Eagle3Config, default_taps

SMALL = Eagle3Config(
    hidden=16,
    intermediate=24,
    heads=4,
    kv_heads=2,
    head_dim=6,
    vocab=37,
    norm_eps=1e-5,
    rope_theta=50.0,
    taps=(1, 3),
    target_layers=6,
    draft_vocab=5,
    steps=3,
    tree_temperatures=(1.0, 1.2, 1.5),
)
KEPT = (0, 3, 4, 20, 36)
LLAMA = Eagle3Config(
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    norm_eps=1e-5,
    rope_theta=5e5,
    taps=(),
    target_layers=0,
    draft_vocab=32000,
    max_positions=2048,
)


def published(**changes: Any) -> dict[str, Any]:
    """As the first EAGLE-3 drafts were published: nothing is said of taps nor of the target's depth."""
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "bos_token_id": 128000,
        "draft_vocab_size": 32000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 128256,
    }
    return {name: value for name, value in (config | changes).items() if value is not ...}


def random_weights(config: Eagle3Config) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in config.shapes.items() if name not in ("d2t", "t2d")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_draft(tmp_path / "draft", SMALL, random_weights(SMALL), KEPT, {"target": "toy"})
    return tmp_path / "draft"


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of a draft, by names with ``__`` for dots; None takes one out."""
    found: dict[str, Any] = load_file(folder / WEIGHTS) | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / WEIGHTS)


def rewrite(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(raw | values))


def test_the_published_format_loads_and_takes_the_rest_from_the_target() -> None:
    config = from_json(published(), "draft")
    assert config == LLAMA
    assert len(LLAMA.shapes) == 15
    assert LLAMA.shapes["fc.weight"] == (4096, 3 * 4096)
    assert LLAMA.shapes["midlayer.self_attn.k_proj.weight"] == (1024, 2 * 4096)
    whole = LLAMA.for_target(32)
    assert (whole.taps, whole.target_layers) == ((1, 15, 28), 32)
    assert whole.for_target(40) == whole, "what a checkpoint says stays"


@pytest.mark.parametrize("place", ["top", "inner"])
def test_taps_of_the_checkpoint_are_its_own(place: str) -> None:
    taps = {"eagle_aux_hidden_state_layer_ids": [1, 46, 90]}
    config = from_json(published(**taps if place == "top" else {"eagle_config": taps}), "draft")
    assert isinstance(config, Eagle3Config)
    assert config.taps == (1, 46, 90) == default_taps(94)
    assert config.for_target(94).target_layers == 94
    with pytest.raises(DraftError, match="taps layers 1, 46, 90; the target has 90"):
        config.for_target(90)


def test_a_target_too_shallow_for_the_default_taps() -> None:
    assert default_taps(7) == (1, 2, 3)
    with pytest.raises(DraftError, match="a target of 6 layers is too shallow"):
        LLAMA.for_target(6)


@pytest.mark.parametrize("config", [SMALL, LLAMA, replace(LLAMA, draft_vocab=128256, steps=1)])
def test_ours_come_back(config: Eagle3Config) -> None:
    assert from_json(to_json(config), "draft") == config


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 2}, "more layers than one are not supported"),
    "biases": ({"attention_bias": True}, "biases in attention"),
    "mlp-biases": ({"mlp_bias": True}, "biases in the MLP"),
    "scaled-rope": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotation"),
    "activation": ({"hidden_act": "gelu"}, "activation gelu"),
    "window": ({"sliding_window": 512}, "sliding-window layers"),
    "hidden-size": ({"target_hidden_size": 2880}, "a hidden size of its own"),
    "no-taps": ({"eagle_config": {"use_aux_hidden_state": False}}, "a draft without taps"),
    "residual": ({"norm_before_residual": True}, "norm_before_residual are not supported"),
    "no-norm": ({"eagle_config": {"use_last_layernorm": False}}, "without use_last_layernorm are not supported"),
    "parallel": ({"eagle_config": {"parallel_drafting": True}}, "parallel_drafting are not supported"),
    "hidden-is-text": ({"hidden_size": "4096"}, "hidden_size is '4096', not a positive number"),
    "no-vocabulary": ({"vocab_size": ...}, "vocab_size is None"),
    "draft-vocabulary": ({"draft_vocab_size": 128257}, "128257 of 128256 tokens do not make a draft"),
    "heads": ({"num_key_value_heads": 7}, "over 7 key heads"),
    "steps": ({"eagle_config": {"steps": 0}}, "eagle_config.steps is 0"),
    "tap-twice": ({"eagle_aux_hidden_state_layer_ids": [1, 1, 2]}, "is [1, 1, 2], not different layers"),
    "tap-negative": ({"eagle_aux_hidden_state_layer_ids": [-1]}, "not different layers"),
    "tap-beyond": (
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 9], "num_target_layers": 9}},
        "taps (1, 9) are not layers of a target of 9",
    ),
    "temperatures": ({"eagle_config": {"tree_temperatures": [1.0]}}, "tree_temperatures must be 7 numbers"),
    "temperature-nan": ({"eagle_config": {"tree_temperatures": [float("nan")] * 7}}, "tree_temperatures must be 7"),
    "inner-is-a-list": ({"eagle_config": [1]}, "a value is not of the kind it should be"),
    "epsilon-is-text": ({"rms_norm_eps": "small"}, "a value is not of the kind it should be"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_served_is_refused_with_its_reason(kind: str) -> None:
    changes, message = BAD[kind]
    with pytest.raises(DraftError, match=re.escape(message)) as told:
        from_json(published(**changes), "folder/config.json")
    assert str(told.value).startswith("folder/config.json: ")


def test_what_is_written_is_read(folder: Path) -> None:
    draft, weights = read_draft(folder), random_weights(SMALL)
    assert draft.config == SMALL
    assert draft.card == {"target": "toy"}
    assert draft.tensors.keys() == SMALL.shapes.keys()
    for name, weight in weights.items():
        assert torch.equal(draft.tensors[name], weight.bfloat16())
    assert draft.vocabulary is not None
    assert draft.vocabulary.tolist() == list(KEPT)
    assert draft.tensors["d2t"].tolist() == [0, 2, 2, 17, 32], "offsets, as the published drafts have it"
    assert draft.tensors["t2d"].dtype == torch.bool
    assert draft.tensors["t2d"].nonzero().flatten().tolist() == list(KEPT)


def test_the_mask_may_be_absent_and_does_not_make_another_draft(folder: Path) -> None:
    whole = read_draft(folder)
    change(folder, t2d=None)
    bare = read_draft(folder)
    assert torch.equal(bare.tensors["t2d"], whole.tensors["t2d"])
    assert bare.version == whole.version
    change(folder, norm__weight=torch.ones(16))
    assert read_draft(folder).version != whole.version


def test_a_draft_with_the_whole_vocabulary_needs_no_maps(tmp_path: Path) -> None:
    config = replace(SMALL, draft_vocab=37)
    write_draft(tmp_path, config, random_weights(config), None, {})
    change(tmp_path, d2t=None, t2d=None, embed_tokens__weight=torch.ones(37, 16))
    draft = read_draft(tmp_path)
    assert draft.vocabulary is not None
    assert draft.vocabulary.tolist() == list(range(37))
    assert draft.tensors.keys() == config.shapes.keys()


DAMAGE = {
    "missing": ({"fc__weight": None}, r"the checkpoint lacks fc\.weight$"),
    "no-head": ({"lm_head__weight": None}, r"the checkpoint lacks lm_head\.weight$"),
    "no-map": ({"d2t": None}, "the checkpoint lacks d2t$"),
    "unknown": ({"fc_norm__weight": torch.ones(16)}, r"fc_norm\.weight means nothing to an EAGLE-3 draft"),
    "shape": (
        {"midlayer__self_attn__q_proj__weight": torch.ones(24, 16)},
        r"q_proj.weight is \(24, 16\), config.json makes it \(24, 32\)",
    ),
    "nan": ({"norm__weight": torch.full((16,), torch.nan)}, r"norm\.weight holds values that are not finite"),
    "map-beyond": ({"d2t": torch.tensor([0, 0, 0, 0, 33])}, "d2t does not map to 5 different ids below 37"),
    "map-twice": ({"d2t": torch.tensor([1, 0, 0, 0, 0])}, "d2t does not map to 5 different ids"),
    "map-of-floats": ({"d2t": torch.zeros(5)}, r"d2t is torch.float32, not whole numbers"),
    "other-mask": ({"t2d": torch.ones(37, dtype=torch.bool)}, "t2d does not mark the 5 tokens that d2t maps to"),
    "mask-too-short": ({"t2d": torch.ones(5, dtype=torch.bool)}, "t2d does not mark the 5 tokens"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_checkpoint_is_a_clear_error(folder: Path, kind: str) -> None:
    tensors, message = DAMAGE[kind]
    change(folder, **tensors)
    with pytest.raises(DraftError, match=message) as told:
        read_draft(folder)
    assert str(told.value).startswith(str(folder))
    assert "\n" not in str(told.value)


def test_what_serves_another_architecture_refuses_it(folder: Path) -> None:
    assert read_draft(folder).config_as(Eagle3Config) == SMALL
    with pytest.raises(DraftError, match="this needs a DFlash draft; the one given is Eagle3"):
        read_draft(folder).config_as(DFlashConfig)


def test_taps_of_another_number_than_fc_is_made_for(folder: Path) -> None:
    rewrite(folder, eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1, 2]})
    with pytest.raises(DraftError, match=r"fc.weight is \(16, 32\), config.json makes it \(16, 48\)"):
        read_draft(folder)
