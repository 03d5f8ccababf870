"""The target's states, kept on disk or on the device: what is kept, and what happens when there is too little room."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training import tap_cache


def half_written(tensors: dict, path: Path) -> None:
    path.write_bytes(b"\x08")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_goes_on_without_keeping_more(toy, make_texts, tmp_path, monkeypatch) -> None:
    teacher, (first, second) = toy(), make_texts((3, 5), (4, 6))
    cache = tap_cache.TapCache(teacher, (1, 3), tmp_path)
    kept = cache.states(first)
    monkeypatch.setattr(tap_cache, "save_file", half_written)
    made = cache.states(second)
    exact = teacher.states(second.tokens, (1, 3))
    assert torch.equal(made.taps, exact.taps.bfloat16().float())
    assert torch.equal(made.final, exact.final.bfloat16().float())
    assert len(list(tmp_path.iterdir())) == 1, "no half file stays"
    reads = teacher.reads
    assert torch.equal(cache.states(first).final, kept.final)
    assert teacher.reads == reads, "what was kept is still read"


def test_spare_disk_is_left_alone(toy, make_texts, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=tap_cache.SPARE - 1))
    cache = tap_cache.TapCache(toy(), (1,), tmp_path)
    cache.states(make_texts((3, 5))[0])
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_made_again(toy, make_texts, tmp_path) -> None:
    teacher, (text,) = toy(), make_texts((3, 5))
    first = tap_cache.TapCache(teacher, (1,), tmp_path).states(text)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    cache = tap_cache.TapCache(teacher, (1,), tmp_path)
    for _ in range(2):
        cache.fill([text])
        assert torch.equal(cache.states(text).taps, first.taps)
    assert (cache.computed, cache.read) == (1, 1)


def test_room_on_the_device_keeps_states_as_long_as_it_lasts(toy, make_texts) -> None:
    texts = make_texts((3, 5), (4, 6), (3, 9), (2, 7))
    teacher = toy()
    exact = {text: teacher.states(text.tokens, (1, 3)) for text in texts}
    each = 8 * 3 * 16 * 4  # of the first: positions, taps and final, sizes, bytes
    cache = tap_cache.TapCache(teacher, (1, 3), None, room=each + 9 * 3 * 16 * 4)
    for _ in range(3):
        cache.fill([*texts, texts[0]])
        for text in texts:
            assert torch.equal(cache.states(text).taps, exact[text].taps.bfloat16().float())
            assert torch.equal(cache.states(text).final, exact[text].final.bfloat16().float())
    assert set(cache.resident) == {texts[0], texts[3]}, "there is room for the two shortest"
    assert cache.computed == 2 + 3 * 2


def test_texts_are_read_together_by_length(make_texts) -> None:
    texts = make_texts((3, 5), (4, 26), (3, 9), (2, 7))
    groups = [[len(text.tokens) for text in group] for group in tap_cache._groups(texts, 30)]
    assert groups == [[8, 9], [12], [30]]


def test_files_are_of_one_target_one_text_and_its_taps(toy, make_texts, tmp_path) -> None:
    text, other = make_texts((3, 5), (3, 5))
    for teacher, taps, read in ((toy(), (1,), text), (toy(), (2,), text), (toy(seed=1), (1,), text)):
        assert tap_cache.TapCache(teacher, taps, tmp_path).states(read).taps.shape == (8, 16)
    tap_cache.TapCache(toy(), (1,), tmp_path).states(other)
    assert len(list(tmp_path.iterdir())) == 4


def test_states_of_two_dtypes_are_not_mixed(toy, make_texts, tmp_path) -> None:
    (text,), dtypes = make_texts((3, 5)), (torch.float32, torch.bfloat16)
    own = [tap_cache.TapCache(toy(dtype=dtype), (1,), None).states(text) for dtype in dtypes]
    assert not torch.equal(own[0].taps.bfloat16(), own[1].taps), "what would be mixed differs"
    for _ in range(2):
        for dtype, made in zip(dtypes, own, strict=True):
            assert torch.equal(tap_cache.TapCache(toy(dtype=dtype), (1,), tmp_path).states(text).taps, made.taps)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_a_clear_error(toy, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DraftError, match=r"file/states: cannot be made"):
        tap_cache.TapCache(toy(), (1,), tmp_path / "file" / "states")
