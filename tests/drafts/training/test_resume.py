"""A run that was stopped and resumed equals one that never was, bit for bit; what cannot be resumed says why."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training import run_state


def train(run, stop_at: int | None = None, every: int = 2) -> bool:
    return run.run(lambda progress: None, lambda: run.progress.step == stop_at, every, every)


def everything(run) -> dict[str, torch.Tensor]:
    weights = {f"weights/{k}": v for k, v in run.module.state_dict().items()}
    return weights | {f"optimiser/{k}": v for k, v in run.optimiser.tensors().items()}


def logged(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "flops")} for line in lines]


def assert_same(one, other) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not differing
    assert logged(one.out) == logged(other.out)
    assert one.progress.labels == other.progress.labels
    # the target's part depends on whether its states are kept
    assert (one.progress.flops.draft, one.progress.flops.head) == (
        other.progress.flops.draft,
        other.progress.flops.head,
    )
    assert one.progress.tau == other.progress.tau


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept-states", "no-states"])
def test_resuming_changes_no_bit(make_run, tmp_path: Path, optimiser: str, keep: bool) -> None:
    whole = make_run(tmp_path / "whole", optimiser=optimiser)
    assert train(whole)
    cut = tmp_path / "cut"
    options = {"optimiser": optimiser, "states": tmp_path / "states" if keep else None}
    before = make_run(cut, **options)
    assert not train(before, stop_at=3)  # between two saves and two measurements, within a pass over the texts
    assert not torch.equal(before.module.fc.weight, whole.module.fc.weight)
    after = make_run(cut, **options)
    assert after.progress.step == 3
    restored = everything(after)
    assert all(torch.equal(tensor, restored[name]) for name, tensor in everything(before).items())
    assert train(after)
    assert_same(after, whole)
    assert len(logged(cut)) == 6
    if keep:
        assert after.teacher.reads == 0, "the states of the first part lie on disk"


def test_kept_states_are_read_and_change_no_bit(make_run, tmp_path: Path) -> None:
    plain, kept = make_run(tmp_path / "plain"), make_run(tmp_path / "kept", states=tmp_path / "states")
    train(plain)
    train(kept)
    assert_same(kept, plain)
    assert kept.cache.computed == kept.teacher.reads == len(list((tmp_path / "states").iterdir())) == 7
    assert plain.teacher.reads == kept.cache.read + kept.cache.computed > 7
    assert 0 < kept.progress.flops.target < plain.progress.flops.target


def test_steps_may_change_between_runs(make_run, tmp_path: Path) -> None:
    steady = {"warmup": 1, "decay_share": 0.0}  # the schedule's end would move
    whole, first = make_run(tmp_path / "whole", **steady), make_run(tmp_path / "cut", steps=4, **steady)
    assert train(whole)
    assert train(first)
    longer = make_run(tmp_path / "cut", steps=6, **steady)
    assert (longer.progress.step, longer.settings.schedule(5)) == (4, 1.0)
    assert train(longer)
    assert_same(longer, whole)


def test_a_finished_run_has_nothing_left_to_do(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train(run)
    again = make_run(tmp_path)
    before = everything(again)
    assert train(again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(again).items())
    assert len(logged(tmp_path)) == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rate": 2e-2, "soft": 0.25}, "soft, rate"),
        ({"optimiser": "adamw"}, "optimiser"),
        ({"taps": (3, 1)}, "taps"),
        ({"causal": True}, "causal"),
        ({"target": 1}, "target"),
        ({"dtype": torch.bfloat16}, "dtype"),
    ],
    ids=["settings", "optimiser", "taps", "causal", "target", "dtype"],
)
def test_another_run_is_refused_by_name(make_run, tmp_path: Path, changes: dict, named: str) -> None:
    train(make_run(tmp_path, steps=1))
    names = sorted(named.split(", "))
    with pytest.raises(DraftError, match=r"a run with other .*; give the same ones, or another --out") as told:
        make_run(tmp_path, steps=1, **changes)
    listed = str(told.value).split("other ", 1)[1].split(";")[0].split(", ")
    assert sorted(listed) == names


def forget_dtype(saved: Path) -> None:
    """Make a save one from before products were noted."""
    noted = json.loads((saved / "state.json").read_text())
    del noted["dtype"]
    (saved / "state.json").write_text(json.dumps(noted))


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_products_are_made_in_is_saved(make_run, tmp_path: Path, dtype: torch.dtype) -> None:
    assert run_state.saved_products(tmp_path, CPU) is None
    train(make_run(tmp_path, steps=1, dtype=dtype))
    assert run_state.saved_products(tmp_path, CPU) == run_state.saved_products(tmp_path, GPU) == dtype


def test_a_save_without_its_products_goes_on_in_the_default_of_then(make_run, tmp_path: Path) -> None:
    train(make_run(tmp_path, steps=1, dtype=torch.bfloat16))
    forget_dtype(run_state.newest(tmp_path))
    assert run_state.saved_products(tmp_path, CPU) == torch.float32
    assert run_state.saved_products(tmp_path, GPU) == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):  # either may have been asked for
        assert make_run(tmp_path, steps=2, dtype=dtype).progress.step == 1


def test_unknown_products_of_a_save_are_a_clear_error(make_run, tmp_path: Path) -> None:
    train(make_run(tmp_path, steps=1))
    noted = run_state.newest(tmp_path) / "state.json"
    noted.write_text(noted.read_text().replace("float32", "int7"))
    with pytest.raises(DraftError, match=r"cannot be resumed \(its dtype is 'int7'\); remove it to start anew"):
        run_state.saved_products(tmp_path, CPU)


def test_other_texts_are_refused(make_run, make_texts, tmp_path: Path) -> None:
    train(make_run(tmp_path, steps=1))
    with pytest.raises(DraftError, match=r"other texts;"):
        make_run(tmp_path, steps=1, texts=make_texts((3, 9), (4, 7), seed=9))


def cut_weights(saved: Path) -> None:
    whole = (saved / "state.safetensors").read_bytes()
    (saved / "state.safetensors").write_bytes(whole[: len(whole) // 2])


def drop_a_weight(saved: Path) -> None:
    tensors = load_file(saved / "state.safetensors")
    del tensors["weights/fc.weight"]
    save_file(tensors, saved / "state.safetensors")


DAMAGE = {
    "half-the-weights": cut_weights,
    "no-weights": lambda saved: (saved / "state.safetensors").unlink(),
    "a-weight-missing": drop_a_weight,
    "not-json": lambda saved: (saved / "state.json").write_text('{"step": 2'),
    "empty-json": lambda saved: (saved / "state.json").write_text("{}"),
    "another-json": lambda saved: (saved / "state.json").write_text("[]"),
    "no-json": lambda saved: (saved / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_save_is_a_clear_error(make_run, tmp_path: Path, damage: str) -> None:
    train(make_run(tmp_path, steps=2))
    saved = run_state.newest(tmp_path)
    DAMAGE[damage](saved)
    with pytest.raises(DraftError, match=rf"{saved}: cannot be resumed \(.*\); remove it to start anew"):
        make_run(tmp_path, steps=2)


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(tensors: dict, path: Path) -> None:
    path.write_bytes(b"\x08")
    full_disk()


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [(run_state, "save_file", half_written), (Path, "mkdir", full_disk), (Path, "rename", full_disk)],
    ids=["weights", "folder", "rename"],
)
def test_a_full_disk_keeps_the_save_before(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, failure
) -> None:
    train(make_run(tmp_path / "whole"))
    cut = tmp_path / "cut"
    run = make_run(cut)
    assert not train(run, stop_at=2)
    (saved,) = cut.glob("step-*")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    run.step()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failure)
        with pytest.raises(DraftError, match=r"step 3 could not be saved .*No space left.*save before it is whole"):
            run.save()
    assert {path.name for path in cut.iterdir()} == {"log.jsonl", saved.name}
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    again = make_run(cut)
    assert again.progress.step == 2
    assert train(again)
    assert_same(again, make_run(tmp_path / "whole"))


def test_a_run_killed_while_saving_goes_on_from_the_save_before(make_run, tmp_path: Path) -> None:
    train(make_run(tmp_path, steps=2))
    (tmp_path / "saving.part").mkdir()
    (tmp_path / "saving.part" / "state.safetensors").write_bytes(b"half")
    run = make_run(tmp_path)
    assert run.progress.step == 2
    assert train(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "step-00000006"]


def test_a_run_killed_between_saves_logs_every_step_once(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=5)
    train(run, stop_at=2)
    run.step()
    run._log()  # and killed here, before the next save
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lab')
    again = make_run(tmp_path, steps=5)
    train(again)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_log_that_cannot_be_written_is_a_clear_error(make_run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(DraftError, match=r"log.jsonl: cannot be written"):
        train(make_run(tmp_path / "out"))


def test_a_loss_that_is_not_finite_leaves_the_save_before(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert not train(run, stop_at=2)
    with torch.no_grad():
        run.module.norm.weight[0] = torch.nan
    with pytest.raises(DraftError, match=r"not finite at step 2.*lower --rate"):
        train(run)
    assert run_state.newest(tmp_path).name == "step-00000002"
    assert make_run(tmp_path).progress.step == 2


def test_gradients_that_are_not_finite_never_reach_the_weights(make_run, tmp_path: Path) -> None:
    """A finite loss can have them, and one more save would make the damage last."""
    run = make_run(tmp_path)
    run.module.fc.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DraftError, match=r"not finite at step 0"):
        train(run, every=1)
    assert run_state.newest(tmp_path) is None


def test_without_development_texts_nothing_is_claimed(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path, dev=[])
    train(run)
    assert run.progress.tau is None
    assert {line["tau"] for line in logged(tmp_path)} == {None}
