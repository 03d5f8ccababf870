"""The ops of a round by themselves: each does what it does in a round, and is told with its bytes and launches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from redraft.benchmarks import op_speed as module
from redraft.benchmarks.op_speed import op_speed, table
from redraft.benchmarks.round_ops import ACCEPTED, RoundOps, size
from redraft.benchmarks.shape_target import Case
from redraft.benchmarks.shapes import TARGETS, TINY, draft_shape
from redraft.benchmarks.suite_clock import LEFT_OUT
from redraft.kernels.accept import Committed
from redraft.kernels.rows import Rows

CPU, CASE, SPEC = torch.device("cpu"), Case(2, 8), TINY["tiny"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """As rounds run."""
    with torch.inference_mode():
        yield


@pytest.fixture
def ops() -> RoundOps:
    return RoundOps(SPEC, draft_shape(SPEC), CASE, CPU, torch.float32)


def test_every_op_is_measured(monkeypatch: pytest.MonkeyPatch, ops: RoundOps) -> None:
    monkeypatch.setattr(module, "TIMES", 2)
    left = iter([True] * 21 + [False])
    found = op_speed(TINY, [CASE], CPU, torch.float32, 1e10, lambda seconds: next(left))
    assert [one["op"] for one in found] == list(ops.ops())
    assert not [one for one in found if "failed" in one]
    *measured, last = found
    assert last["skipped"] == LEFT_OUT
    for one in measured:
        assert one["microseconds"] > 0
        assert one["floor_microseconds"] == pytest.approx(one["bytes"] / 1e4)
        if one["launches"] is not None:
            assert one["predicted_microseconds"] > one["floor_microseconds"]
    shown = table(found)
    assert all(one["op"] in shown for one in found)
    assert LEFT_OUT in shown


def test_an_op_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: RoundOps) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(RoundOps, "_accept", broken)
    monkeypatch.setattr(module, "TIMES", 1)
    found = {one["op"]: one for one in op_speed(TINY, [CASE], CPU, torch.float32, 1e10)}
    assert "no such kernel" in found["accept"]["failed"]
    assert found["compact_kv"]["microseconds"] > 0


def test_what_is_measured_is_work(ops: RoundOps) -> None:
    """Nodes are accepted, cells are moved, lookup finds something."""
    made = {name: make()[0] for name, make in ops.ops().items()}
    packed = made["pack_tree"]()
    assert isinstance(packed, Rows)
    assert packed.row_count.tolist() == [8, 8, 0]
    committed = made["accept"]()
    assert isinstance(committed, Committed)
    assert committed.accepted.tolist() == [ACCEPTED, ACCEPTED, 0]
    kv = ops.state.kv
    kv.normal_()
    before = kv.clone()
    made["compact_kv"]()
    assert not torch.equal(kv, before)
    token, _, score = made["ngram"]()  # type: ignore[misc]
    assert (score[:2, 1:] > 0).any()
    # the passage goes on
    anchor = (int(ops.state.length[0]) - 1) % 31
    assert token[0, 1] == (anchor + 1) % 31


def test_launches_are_counted() -> None:
    pytest.importorskip("triton")
    spec = TARGETS["Qwen3-8B"]
    names = {"sample greedy": 2, "sample, top_k 50 and top_p 0.9": 8, "pack_tree": 2, "accept": 1, "ngram": 1}
    assert {name: module._launches(spec, Case(1, 16), name) for name in names} == names


def test_bytes_of_anything() -> None:
    x = torch.zeros(3, 5)
    assert size(x, (x.bool(), [x.half()])) == 60 + 15 + 30
    assert size() == 0


def test_a_case_whose_inputs_cannot_be_made_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMES", 1)
    make = module.RoundOps

    def no_many(spec: object, draft: object, case: Case, *where: object) -> RoundOps:
        if case.requests > 1:
            raise ValueError("no room")
        return make(spec, draft, case, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "RoundOps", no_many)
    *one, many = op_speed(TINY, [Case(1, 4), Case(2, 4)], CPU, torch.float32, 1e10)
    assert len(one) > 20
    assert all(op["microseconds"] > 0 for op in one)
    assert (many["requests"], many["op"], many["failed"]) == (2, "all of them", "ValueError: no room")
    assert "tiny         all of them: failed: ValueError: no room" in table([*one, many])
