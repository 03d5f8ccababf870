"""Bytes of a pass, against numbers counted by hand and published sizes."""

from dataclasses import replace

import pytest
import torch

from redraft.benchmarks.layer_checks import outside
from redraft.benchmarks.shapes import TARGETS, TINY, draft_shape, products
from redraft.benchmarks.traffic import Traffic, draft_pass, lookup, moved, target_pass
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash import context_of


def test_by_hand() -> None:
    spec = TINY["tiny"]
    found = target_pass(spec, rows=3, contexts=[10, 20], itemsize=2)
    layer = 128 * 64 + 64 * 64 + 256 * 64 + 64 * 128
    assert found.weights == 2 * (2 * layer + 512 * 64) + 4 * (2 * 128 + 64)
    # keys and values of 2 heads of 16 in 2 layers
    assert found.kv == (10 + 20 + 3) * 2 * 2 * 32 * 2
    per_layer = 2 * (64 + 128 + 128 + 64) + 2 * 64 * 4 + 2 * (64 + 128) + 2 * (64 + 128) + 2 * (128 + 128)
    # the head, and beside the products the embedding and the logits once more
    assert found.activations == 3 * (2 * per_layer + 2 * (64 + 512))
    assert found.rest == 3 * 2 * (2 * 64 + 512)
    assert found.total == found.weights + found.kv + found.activations + found.rest
    assert found + moved(100, 2) == Traffic(found.weights, found.kv, found.activations, found.rest + 400)


def test_a_draft_by_hand() -> None:
    config = replace(draft_shape(TINY["tiny"]), layers=1, taps=(0,), draft_vocab=100, block_size=4)
    found = draft_pass(config, rows=6, contexts=[10, 20], itemsize=2)
    layer = 128 * 64 + 64 * 64 + 256 * 64 + 64 * 128
    context_kv = 2 * 32
    weights = layer + 64 * 64 + context_kv * 64 + 100 * 64
    # norms of two blocks, of heads, of the end and of the context; the keys' own once more for the context
    assert found.weights == 2 * weights + 4 * (2 * 64 + 64 + 2 * 32 + 2 * 64)
    # the blocks' own are written, and read like the text's
    assert found.kv == (10 + 20 + 2 * 8) * context_kv * 2
    in_layer = 2 * (64 + 128 + 128 + 64) + 2 * 64 * 4 + 2 * (64 + 128) + 2 * (64 + 128) + 2 * (128 + 128)
    assert found.activations == 8 * (in_layer + 2 * (64 + 100)) + 6 * 2 * (64 + 2 * 64 + context_kv)
    assert found.rest == 8 * 2 * (2 * 64 + 100) + 6 * (2 * 2 * 64 + 2 * 2 * context_kv)
    # a text's ids, and where each was last
    assert lookup([10, 20]).total == 30 * 16


@pytest.mark.parametrize("name", TARGETS)
def test_a_draft_reads_all_of_its_weights(name: str) -> None:
    config = draft_shape(TARGETS[name])
    matrices = {key: torch.empty(shape, device="meta") for key, shape in config.shapes.items() if key != "d2t"}
    held = context_of(Checkpoint(config, matrices, {})).weights
    # norms are fp32 here, so a little more than two bytes a weight
    assert draft_pass(config, 1, [0], 2).weights == pytest.approx(2 * held, rel=1e-3)


@pytest.mark.parametrize(("name", "gigabytes"), [("SmolLM2-135M", 0.269), ("Qwen3-1.7B", 3.44), ("Qwen3-8B", 15.14)])
def test_weights_of_published_targets(name: str, gigabytes: float) -> None:
    """Bytes of bf16 weights a token reads, as models' cards and drafters-and-kernels.md 5.1 have them."""
    assert target_pass(TARGETS[name], 1, [], 2).weights / 1e9 == pytest.approx(gigabytes, rel=0.002)


def test_what_a_step_grows_with() -> None:
    spec = TARGETS["Qwen3-8B"]
    one = target_pass(spec, 1, [1000], 2)
    assert target_pass(spec, 1, [1000], 4).weights == pytest.approx(2 * one.weights, rel=1e-3)
    assert target_pass(spec, 16, [1000], 2).weights == one.weights
    # 64 rows of one request read its context once, those of 64 requests 64 contexts
    assert target_pass(spec, 64, [1000], 2).kv < 1.1 * one.kv
    assert target_pass(spec, 64, [1000] * 64, 2).kv == 64 * one.kv
    assert target_pass(replace(spec, kv_heads=32), 1, [1000], 2).kv == 4 * one.kv


def test_seconds() -> None:
    found = target_pass(TARGETS["Qwen3-8B"], 1, [0], 2)
    assert found.seconds(4e12) == found.total / 4e12


def test_products_make_up_the_weights() -> None:
    for spec in TARGETS.values():
        matrices = sum(outputs * inner * times for outputs, inner, times in products(spec).values())
        # an untied embedding is not multiplied with
        assert matrices == spec.parameters - (0 if spec.tied else spec.vocab * spec.hidden)


def test_numbers_that_are_too_far_apart_are_found() -> None:
    wanted = torch.tensor([1.0, 100.0])
    assert outside(wanted + torch.tensor([0.001, 0.1]), wanted, 1e-3, 1e-4) is None
    assert "1 of 2" in (outside(wanted + torch.tensor([0.002, 0.1]), wanted, 1e-3, 1e-4) or "")
    assert "2 of 2" in (outside(torch.full((2,), torch.nan), wanted, 1e-3, 1e-4) or "")
    assert "not torch.float32 [2]" in (outside(wanted[:1], wanted, 1e-3, 1e-4) or "")
