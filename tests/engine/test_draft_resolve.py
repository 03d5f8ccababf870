"""What ``--draft`` stands for, before an engine is built."""

import json
from pathlib import Path

import pytest

from redraft.server.engine import draft_resolve
from redraft.server.engine.draft_resolve import resolve_draft
from redraft.server.engine.target.resolve import ResolvedTarget
from redraft.server.engine.types import RedraftError

TARGET = ResolvedTarget(Path("/nowhere"), "tiny", "sha-of-tiny")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with one shipped draft, made for ``TARGET``."""
    folder = tmp_path / "package" / "checkpoints" / "tiny" / "tiny-draft"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"target_sha": "sha-of-tiny"}))
    monkeypatch.setattr("redraft.drafts.shipped.resources.files", lambda package: tmp_path / "package")
    return folder


@pytest.mark.parametrize("name", ["ngram", "none"])
def test_methods_without_weights_stand_for_themselves(name: str) -> None:
    assert resolve_draft(name, TARGET).draft == name


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    assert resolve_draft(tmp_path.name, TARGET).draft == str(tmp_path.resolve())


def test_the_shipped_draft_is_the_default_of_its_target_only(shipped: Path) -> None:
    assert resolve_draft(None, TARGET).draft == str(shipped)
    assert resolve_draft(None, ResolvedTarget(Path("/nowhere"), "tiny", "other")).draft == "ngram"


def test_a_shipped_draft_is_taken_by_its_name_for_its_target_only(shipped: Path) -> None:
    found = resolve_draft("tiny-draft", TARGET)
    assert (found.draft, found.why) == (str(shipped), "shipped for these weights, as asked")
    with pytest.raises(RedraftError, match=r"hub id \(owner/name\), tiny-draft, ngram or none"):
        resolve_draft("tiny", TARGET)
    with pytest.raises(RedraftError, match=r"hub id \(owner/name\), ngram or none"):
        resolve_draft("tiny-draft", ResolvedTarget(Path("/nowhere"), "tiny", "other"))


def test_a_damaged_card_says_which(shipped: Path) -> None:
    (shipped / "card.json").write_text("{")
    with pytest.raises(RedraftError, match=r"card\.json"):
        resolve_draft(None, TARGET)


def test_hub_ids_are_fetched_and_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repository: str, revision: str | None, offline: bool, check: object) -> Path:
        asked.append((repository, revision, offline))
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        check(config)  # type: ignore[operator]
        return tmp_path

    monkeypatch.setattr(draft_resolve, "fetch_snapshot", fetch)
    with pytest.raises(RedraftError, match="DFlashDraftModel"):
        resolve_draft("owner/draft", TARGET, offline=True)
    assert asked == [("owner/draft", None, True)]


def test_a_published_draft_that_cannot_be_had_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*arguments: object) -> Path:
        raise RedraftError("the hub cannot be reached")

    monkeypatch.setattr(draft_resolve, "fetch_snapshot", unreachable)
    target = ResolvedTarget(Path("/nowhere"), "Qwen/Qwen3-8B", "other")
    assert resolve_draft(None, target).draft == "ngram"
    assert "z-lab/Qwen3-8B-DFlash-b16 cannot be had (the hub cannot be reached)" in capsys.readouterr().err
    monkeypatch.setattr(draft_resolve, "fetch_snapshot", lambda *arguments: Path("/draft"))
    assert resolve_draft(None, target).draft == "/draft"


@pytest.mark.parametrize("name", ["no-such-folder", "a/b/c", ""])
def test_what_names_nothing_is_refused(name: str) -> None:
    with pytest.raises(RedraftError, match="--draft takes"):
        resolve_draft(name, TARGET)
