"""Counted operations against torch's own count of what was dispatched."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from redraft.drafts.training.flops import Flops, draft_pass, draft_training, head_rows
from redraft.drafts.training.module import rope_for


@pytest.mark.parametrize(("layers", "causal"), [(1, False), (3, True)])
def test_a_draft_pass_and_its_gradients(make_config, random_module, layers: int, causal: bool) -> None:
    config = make_config(layers=layers, causal=causal)
    module, positions, anchors = random_module(config), 29, 7
    taps = torch.randn(1, positions, len(config.taps) * config.hidden)
    anchor = torch.arange(anchors).unsqueeze(0) + 2
    block = torch.randn(1, anchors, config.block_size, config.hidden)
    with FlopCounterMode(display=False) as forward:
        made = module(taps, anchor, block, rope_for(config, 60, torch.device("cpu")))
    assert forward.get_total_flops() == draft_pass(config, positions, anchors)
    with FlopCounterMode(display=False) as backward:
        made.sum().backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == draft_training(config, positions, anchors)


def test_head_and_sums(make_config) -> None:
    config = make_config(draft_vocab=13)
    hidden, head = torch.randn(5, config.hidden), torch.randn(13, config.hidden)
    with FlopCounterMode(display=False) as counter:
        (hidden @ head.T) @ head
    assert head_rows(config, 5, 2) == counter.get_total_flops()
    total = Flops(1, 2, 3) + Flops(head=4)
    assert (total, total.total) == (Flops(1, 2, 7), 10)
