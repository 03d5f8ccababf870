"""What a block sees: the context strictly before its anchor, and itself as the switch says; nothing else."""

import pytest
import torch

from redraft.drafts.training.module import rope_for

SIZE, ANCHORS = 12, (0, 3, 4, 9)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


@pytest.fixture(params=[1, 2], ids=["one-layer", "two-layers"])
def draft(request, make_config, random_module):
    """``run(taps, block, causal)`` over one text with four blocks."""

    def run(taps, block, causal):
        config = make_config(causal=causal, layers=request.param)
        rope = rope_for(config, SIZE + config.block_size, torch.device("cpu"))
        return random_module(config)(taps, torch.tensor([ANCHORS]), block, rope)

    return run


def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, SIZE, 32, generator=generator), torch.randn(1, len(ANCHORS), 4, 16, generator=generator)


@CAUSAL
def test_context_from_the_anchor_on_changes_no_bit(draft, causal: bool) -> None:
    taps, block = inputs()
    before = draft(taps, block, causal)
    for position in range(SIZE):
        other = taps.clone()
        other[0, position] += 3.0
        after = draft(other, block, causal)
        same = [torch.equal(before[0, i], after[0, i]) for i in range(len(ANCHORS))]
        assert same == [position >= anchor for anchor in ANCHORS]


@CAUSAL
def test_other_blocks_change_no_bit(draft, causal: bool) -> None:
    taps, block = inputs()
    before = draft(taps, block, causal)
    for number in range(len(ANCHORS)):
        other = block.clone()
        other[0, number] += 1.0 + torch.rand(4, 16)
        after = draft(taps, other, causal)
        same = [torch.equal(before[0, i], after[0, i]) for i in range(len(ANCHORS))]
        assert same == [i != number for i in range(len(ANCHORS))]


@CAUSAL
def test_rows_of_a_block_see_one_another_as_the_switch_says(draft, causal: bool) -> None:
    taps, block = inputs()
    before = draft(taps, block, causal)[0, 1]
    for row in range(4):
        other = block.clone()
        other[0, 1, row] += torch.linspace(-1, 1, 16)
        after = draft(taps, other, causal)[0, 1]
        same = [torch.equal(before[i - 1], after[i - 1]) for i in range(1, 4)]
        assert same == [causal and i < row for i in range(1, 4)]


@CAUSAL
def test_gradients_reach_what_is_seen_and_nothing_else(draft, causal: bool) -> None:
    for number, anchor in enumerate(ANCHORS):
        for row in range(1, 4):
            taps, block = (t.requires_grad_() for t in inputs())
            out = draft(taps, block, causal)[0, number, row - 1]
            out.backward(torch.linspace(-1, 1, 16))
            reached = taps.grad[0].abs().amax(-1) > 0
            assert reached.tolist() == [position < anchor for position in range(SIZE)]
            inside = block.grad[0].abs().amax(-1) > 0
            expected = [[i == number and (not causal or r <= row) for r in range(4)] for i in range(len(ANCHORS))]
            assert inside.tolist() == expected
