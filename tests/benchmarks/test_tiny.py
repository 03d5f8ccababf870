"""The tiny random target: deterministic, whole, and accepted by the loaders."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from redraft.benchmarks.tiny import FAMILIES, VOCAB, make_tiny_target
from redraft.server.engine.target.resolve import check_folder
from redraft.server.engine.target.spec import read_spec
from redraft.server.text import TextTokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_families_differ_where_the_decoder_has_switches(tmp_path: Path, family: str) -> None:
    spec = read_spec(make_tiny_target(tmp_path / family, family))
    assert (spec.layers, spec.hidden, spec.head_dim, spec.vocab) == (2, 64, 16, VOCAB)
    assert spec.heads > spec.kv_heads
    assert spec.qk_norm == (family == "qwen3")
    assert spec.tied == (family != "qwen2")
    assert spec.eos_token_ids == (VOCAB - 1,)


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    weights = [
        (make_tiny_target(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_loaders_take_the_folder_with_its_tokenizer(tiny_target: Path) -> None:
    check_folder(tiny_target)
    tokenizer = TextTokenizer.from_folder(tiny_target)
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界!\n")) == "Grüße, 世界!\n"
    assert tokenizer.chat_template is not None
    prompt = tokenizer.encode(tokenizer.chat_template.render([{"role": "user", "content": "hi"}]))
    assert prompt.count(VOCAB - 2) == 2, "the template's marks must be single tokens"


def test_every_id_stands_for_something(tiny_target: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_target / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    assert all(tokenizer.id_to_token(token) for token in range(VOCAB))
