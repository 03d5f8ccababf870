"""What --target may name, and every reason to refuse it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from redraft.server.engine.target import digest
from redraft.server.engine.target.resolve import check_folder, resolve_target
from redraft.server.engine.types import RedraftError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("REDRAFT_CACHE", str(folder))
    return folder


def tensors(**values: bytes) -> bytes:
    """A safetensors file: 8 bytes of length, JSON header, data."""
    header: dict[str, Any] = {}
    at = 0
    for name, data in values.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(values.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A target that passes every check."""
    path = tmp_path / "tiny-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(tensors(a=b"123", b=b"4567"))
    return path


def set_config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **values}))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / digest.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "not hold a JSON object"),
        (
            lambda f: set_config(f, architectures=["MambaForCausalLM"]),
            "MambaForCausalLM; supported are Llama",
        ),
        (lambda f: set_config(f, architectures=None), "architecture none"),
        (lambda f: set_config(f, quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
        (only_pickle, "pickled weights"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (shard_missing, "lacks model-00001-of-00002.safetensors"),
        (lambda f: (f / digest.INDEX).write_text("{}"), "index in .* is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 20), "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(tensors(a=b"123456")[:-1]), "ends early"),
    ],
)
def test_refuses_a_folder(folder: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(folder)
    with pytest.raises(RedraftError, match=reason):
        resolve_target(str(folder))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("nothing", "there is no folder nothing"),
        ("no-such-file.gguf", "there is no file no-such-file.gguf"),
        (__file__, "neither a folder nor a .gguf file"),
    ],
)
def test_refuses_what_is_not_there(target: str, reason: str) -> None:
    with pytest.raises(RedraftError, match=reason):
        resolve_target(target)


def test_a_folder_of_ggufs_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(RedraftError, match=r"give one of its files: model-q4\.gguf"):
        check_folder(tmp_path)


def test_revision_is_for_the_hub_only(folder: Path) -> None:
    with pytest.raises(RedraftError, match="--revision"):
        resolve_target(str(folder), revision="main")


def test_offline_does_not_fetch_the_embedded_target() -> None:
    with pytest.raises(RedraftError, match="--offline forbids it"):
        resolve_target("smollm2-135m", offline=True)


def test_a_folder_resolves(folder: Path) -> None:
    resolved = resolve_target(str(folder))
    assert (resolved.path, resolved.name, len(resolved.sha)) == (folder, "tiny-model", 64)


def test_digest_does_not_see_shards_but_sees_names_types_shapes_and_bytes(folder: Path, tmp_path: Path) -> None:
    whole = digest.weights_digest(folder)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "one.safetensors").write_bytes(tensors(b=b"4567"))
    (sharded / "two.safetensors").write_bytes(tensors(a=b"123"))
    assert digest.weights_digest(sharded) == whole
    others = set()
    for number, content in enumerate(
        [{"a": b"124", "b": b"4567"}, {"a": b"123", "c": b"4567"}, {"a": b"1234", "b": b"567"}]
    ):
        other = tmp_path / f"other-{number}"
        other.mkdir()
        (other / "model.safetensors").write_bytes(tensors(**content))
        others.add(digest.weights_digest(other))
    assert len(others | {whole}) == 4


def test_digest_is_remembered_until_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest.weights_digest(folder)
    (folder / "model.safetensors").write_bytes(tensors(a=b"12", b=b"4567"))
    assert digest.weights_digest(folder) != first
    monkeypatch.setattr(digest, "_digest_tensors", lambda files: pytest.fail("read the weights again"))
    digest.weights_digest(folder)


def test_copies_of_the_weights_under_other_names_are_left_out(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(tensors(c=b"1"))
    assert digest.weight_files(folder) == [folder / "model.safetensors"]


def test_a_model_in_the_hubs_cache_resolves_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "models--owner--name", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    assert resolve_target("owner/name", offline=True).name == "owner/name"
    with pytest.raises(RedraftError, match="owner/name at v2 is not on this machine; leave out --offline"):
        resolve_target("owner/name", revision="v2", offline=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (GatedRepoError, "gated: accept its terms"),
        (RepositoryNotFoundError, "no such model on the hub"),
        (RevisionNotFoundError, "no revision v9"),
    ],
)
def test_the_hubs_refusals_are_explained(kind: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise kind("refused", response=httpx2.Response(404, request=httpx2.Request("GET", "http://localhost")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(RedraftError, match=reason):
        resolve_target("owner/name", revision="v9")


def test_nothing_large_is_fetched_of_an_unsupported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_config(tmp_path, architectures=["MambaForCausalLM"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched the weights"))
    with pytest.raises(RedraftError, match="MambaForCausalLM"):
        resolve_target("owner/name")
