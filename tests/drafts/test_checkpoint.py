"""A draft's folder: what is written is read, and whatever is wrong with a folder is said in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft.drafts.checkpoint import CONFIG, WEIGHTS, read_draft, write_draft
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.draft_config import to_json
from redraft.drafts.training.module import DFlashModule

CONFIGURATION = DFlashConfig(
    layers=2,
    hidden=16,
    intermediate=24,
    heads=4,
    kv_heads=2,
    head_dim=6,
    vocab=37,
    norm_eps=1e-5,
    rope_theta=50.0,
    block_size=4,
    mask_token_id=5,
    taps=(1, 3),
    target_layers=6,
)
PRUNED = replace(CONFIGURATION, draft_vocab=5, tree_temperatures=(1.0, 1.2, 1.5))
KEPT = (0, 3, 4, 20, 36)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole draft with a pruned vocabulary."""
    torch.manual_seed(0)
    write_draft(tmp_path / "draft", PRUNED, DFlashModule(PRUNED).state_dict(), KEPT, {"target": "toy", "steps": 3})
    return tmp_path / "draft"


def change(folder: Path, **tensors: Any) -> None:
    """Replace tensors of a draft, by names with ``__`` for dots; None takes one out."""
    found: dict[str, Any] = load_file(folder / WEIGHTS) | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / WEIGHTS)


@pytest.mark.parametrize("config", [CONFIGURATION, PRUNED], ids=["whole", "pruned"])
def test_what_is_written_is_read(tmp_path: Path, config: DFlashConfig) -> None:
    torch.manual_seed(1)
    weights = DFlashModule(config).state_dict()
    kept = KEPT if config.draft_vocab else None
    card = {"target": "toy", "settings": {"taps": [1, 3]}}
    write_draft(tmp_path / "a" / "draft", config, weights, kept, card)
    draft = read_draft(tmp_path / "a" / "draft")
    assert draft.config == config
    assert draft.card == card
    assert draft.tensors.keys() == config.shapes.keys()
    for name, weight in weights.items():
        assert draft.tensors[name].dtype == torch.bfloat16
        assert torch.equal(draft.tensors[name], weight.bfloat16())
    if kept is None:
        assert draft.vocabulary is None
    else:
        assert draft.vocabulary.tolist() == list(KEPT)
        assert draft.tensors["d2t"].tolist() == [0, 2, 2, 17, 32], "target id less row, as EAGLE-3 has it"
    assert sorted(path.name for path in (tmp_path / "a" / "draft").iterdir()) == ["card.json", CONFIG, WEIGHTS]


def test_precision_can_be_kept(tmp_path: Path) -> None:
    weights = DFlashModule(CONFIGURATION).state_dict()
    write_draft(tmp_path, CONFIGURATION, weights, None, {}, torch.float32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_draft(tmp_path).tensors.items())


def test_the_version_is_of_weights_and_configuration(folder: Path) -> None:
    draft = read_draft(folder)
    assert read_draft(folder).version == draft.version
    others = {draft.version}
    change(folder, norm__weight=draft.tensors["norm.weight"] * 1.01)
    others.add(read_draft(folder).version)
    change(folder, norm__weight=draft.tensors["norm.weight"], d2t=torch.tensor([1, 2, 2, 17, 32]))
    others.add(read_draft(folder).version)
    change(folder, d2t=draft.tensors["d2t"])
    assert read_draft(folder).version == draft.version
    (folder / CONFIG).write_text(json.dumps(to_json(replace(PRUNED, causal=True))))
    others.add(read_draft(folder).version)
    assert len(others) == 4


def test_shards_and_tensors_of_the_target_are_read_over(folder: Path) -> None:
    """Some published drafts carry the target's embedding and head, and ``t2d``; none of it is the draft's."""
    draft = read_draft(folder)
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    extra = {"embed_tokens.weight": torch.ones(37, 16), "lm_head.weight": torch.ones(5, 16), "t2d": torch.ones(37)}
    (folder / WEIGHTS).unlink()
    save_file({name: tensors[name] for name in names[:9]} | extra, folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[9:]}, folder / "model-00002-of-00002.safetensors")
    assert read_draft(folder).tensors.keys() == draft.tensors.keys()
    assert read_draft(folder).version == draft.version


def test_a_draft_without_a_card(folder: Path) -> None:
    (folder / "card.json").unlink()
    assert read_draft(folder).card == {}


def rewrite(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    inner = values.pop("dflash_config", {})
    (folder / CONFIG).write_text(json.dumps(raw | values | {"dflash_config": raw["dflash_config"] | inner}))


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"fc.weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def infinite(folder: Path) -> None:
    weight = load_file(folder / WEIGHTS)["fc.weight"]
    weight[3, 4] = torch.inf
    change(folder, fc__weight=weight)


DAMAGE = {
    "no-config": (lambda f: (f / CONFIG).unlink(), "no config.json; a draft is a folder with config.json and"),
    "config-not-json": (lambda f: (f / CONFIG).write_text("{"), "config.json: cannot be read"),
    "config-not-an-object": (lambda f: (f / CONFIG).write_text("[]"), "config.json: not a JSON object"),
    "card-not-json": (lambda f: (f / "card.json").write_text("{"), "card.json: cannot be read"),
    "architecture": (lambda f: rewrite(f, architectures=["Qwen3ForCausalLM"]), "it serves DFlashDraftModel"),
    "unsupported-switch": (lambda f: rewrite(f, attention_bias=True), "biases in attention are not supported"),
    "mask-out-of-range": (lambda f: rewrite(f, dflash_config={"mask_token_id": 37}), "mask_token_id is 37, not a"),
    "no-weights": (lambda f: (f / WEIGHTS).unlink(), r"no \*.safetensors file"),
    "pickled": (pickled, "pickled weights are not loaded"),
    "not-safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"PK" * 40), "damaged or not safetensors"),
    "cut-short": (cut, "damaged or not safetensors"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "damaged or not safetensors"),
    "tensor-missing": (lambda f: change(f, hidden_norm__weight=None), "the checkpoint lacks hidden_norm.weight$"),
    "layer-missing": (lambda f: rewrite(f, num_hidden_layers=3), r"lacks layers\.2\..* \.\.\.$"),
    "tensor-unknown": (lambda f: change(f, conv__weight=torch.ones(2)), "conv.weight means nothing to a DFlash draft"),
    "tensors-unknown": (lambda f: change(f, a=torch.ones(1), b=torch.ones(1)), "a, b mean nothing to a DFlash draft"),
    "layer-too-many": (lambda f: rewrite(f, num_hidden_layers=1), "layers.1.input_layernorm.weight, .* mean nothing"),
    "shape": (lambda f: change(f, norm__weight=torch.ones(8)), r"norm.weight is \(8,\), config.json makes it \(16,\)"),
    "shape-by-config": (lambda f: rewrite(f, intermediate_size=28), r"is \(24, 16\), config.json makes it \(28, 16\)"),
    "infinite": (infinite, "fc.weight holds values that are not finite"),
    "nan": (lambda f: change(f, norm__weight=torch.full((16,), torch.nan)), "norm.weight holds values that are not"),
    "d2t-beyond": (lambda f: change(f, d2t=torch.tensor([0, 0, 0, 0, 33])), "d2t does not map to 5 different ids"),
    "d2t-negative": (lambda f: change(f, d2t=torch.tensor([-1, 0, 0, 0, 0])), "d2t does not map to 5 different ids"),
    "d2t-twice": (lambda f: change(f, d2t=torch.tensor([1, 0, 0, 0, 0])), "d2t does not map to 5 different ids"),
    "d2t-missing": (lambda f: change(f, d2t=None), "the checkpoint lacks d2t$"),
    "d2t-not-announced": (lambda f: rewrite(f, draft_vocab_size=0), "d2t means nothing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_checkpoint_is_a_clear_error(folder: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(DraftError, match=message) as told:
        read_draft(folder)
    assert str(told.value).startswith(str(folder))
    assert "\n" not in str(told.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"no config\.json"):
        read_draft(tmp_path / "gone")


def test_weights_come_last_and_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while a draft is written over another leaves a file of weights that reads."""
    before = (folder / WEIGHTS).read_bytes()

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("redraft.drafts.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_draft(folder, PRUNED, DFlashModule(PRUNED).state_dict(), KEPT, {})
    assert (folder / WEIGHTS).read_bytes() == before
    assert read_draft(folder).config == PRUNED
