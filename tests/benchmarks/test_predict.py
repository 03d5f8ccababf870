"""What is predicted of steps and rounds: bytes at a copy's speed, and launches as they are counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from redraft.benchmarks import launches, predict
from redraft.benchmarks.launches import count_op
from redraft.benchmarks.predict import READ_BACK, predicted_prefill, predicted_round, predicted_step
from redraft.benchmarks.shapes import TARGETS, draft_shape
from redraft.benchmarks.traffic import LAUNCH_SECONDS, draft_pass, lookup, moved, target_pass
from redraft.server.engine.readback import copied

pytest.importorskip("triton")
SPEC = TARGETS["Qwen3-8B"]
DRAFT = draft_shape(SPEC)
SPEED = 4.2e12


def test_a_plain_step_is_its_bytes_and_its_launches() -> None:
    found = predicted_step(SPEC, 1, 1, 512, 2)
    # passes have four rows at least
    assert found.traffic == target_pass(SPEC, 4, [512], 2)
    assert found.launches == 5 * SPEC.layers + 11
    assert found.seconds(SPEED) == pytest.approx(found.traffic.total / SPEED + found.launches * LAUNCH_SECONDS)
    assert predicted_step(SPEC, 1, 1, 512, 2, read_back=True).launches == found.launches + 2


def test_verified_rows_cost_the_sixth_launch_of_a_layer() -> None:
    """Many do; of one request at this context 16 do not."""
    plain, few, rows = (predicted_step(SPEC, 1, count, 512, 2).seconds(SPEED) for count in (1, 16, 64))
    assert plain is not None
    assert few is not None
    assert rows is not None
    assert few / plain < 1.01
    assert 1.02 < rows / plain < 1.06


def test_a_round_is_target_draft_and_lookup() -> None:
    found = predicted_round(SPEC, DRAFT, 1, 16, 512, 2, accepted=5)
    kv = SPEC.kv_bytes(2) + 2 * DRAFT.layers * DRAFT.kv_width * 2
    parts = target_pass(SPEC, 16, [512], 2), draft_pass(DRAFT, 16, [512], 2), lookup([512]), moved(kv, 5)
    assert found.traffic.total == sum(part.total for part in parts)
    rest, whole = found.rest_seconds(SPEED), found.seconds(SPEED)
    assert rest is not None
    assert whole is not None
    assert found.by_module is not None
    products = sum(found.by_module.get(f"kernels.{name}", 0) for name in ("matmul", "chunk_attention", "sum_chunks"))
    counted = sum(found.by_module.values()) - products
    assert rest == pytest.approx(found.traffic.rest / SPEED + counted * LAUNCH_SECONDS)
    told = predicted_round(SPEC, DRAFT, 1, 16, 512, 2, accepted=5, read_back=True)
    assert told.launches == found.launches + 3  # type: ignore[operator]
    assert told.rest_seconds(SPEED) == pytest.approx(rest + 3 * LAUNCH_SECONDS)
    # what the issue asks of it
    assert 0.005 < rest / whole < 0.05


@pytest.mark.parametrize("drafted", [False, True])
def test_an_engine_reads_back_in_as_many_launches(drafted: bool) -> None:
    def make() -> Callable[[], object]:
        whole, score = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5)
        tensors = (whole, whole[:, 0], *((whole, score) if drafted else ()))
        return lambda: copied(tensors)

    # and the copy itself, which from a CPU to a CPU is none
    assert count_op(make) + 1 == READ_BACK[drafted]


def test_norms_of_many_rows_are_taken_for_part_of_their_products() -> None:
    few, many = (predicted_step(SPEC, requests, 8, 512, 2) for requests in (4, 16))
    assert few.by_module is not None
    assert many.by_module is not None
    assert "kernels.rms_norm" not in few.by_module
    assert many.by_module["kernels.rms_norm"] == 2 * SPEC.layers + 1
    rest = [one.rest_seconds(1e30) for one in (few, many)]
    assert rest[0] == rest[1]


def test_a_long_prompt_has_launches_for_its_norms() -> None:
    short, long = (predicted_prefill(SPEC, tokens, 2).launches for tokens in (64, 65))
    assert short is not None
    assert long == short + 2 * SPEC.layers


def test_without_triton_bytes_alone_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "HAS_TRITON", False)
    monkeypatch.setattr(predict, "launches_of", launches.launches_of.__wrapped__)
    found = predicted_round(SPEC, DRAFT, 1, 16, 512, 2)
    assert found.traffic.total > 0
    assert found.launches is found.seconds(SPEED) is found.rest_seconds(SPEED) is None
    with pytest.raises(RuntimeError, match="install triton"):
        launches.count_launches(SPEC)
