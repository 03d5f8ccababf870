"""Counted operations against torch's own count of what was dispatched."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from redraft.drafts.training.eagle3_flops import chains_pass, chains_training
from redraft.drafts.training.module import rope_for


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_unrolling_and_its_gradients(eagle3_config, random_eagle3, steps: int) -> None:
    config = eagle3_config(steps=steps)
    module, pairs, chains = random_eagle3(config), 29, 7
    taps, embedded = torch.randn(1, pairs, 3 * config.hidden), torch.randn(1, pairs, config.hidden)
    fed, start = torch.randn(1, chains, steps, config.hidden), torch.arange(chains).unsqueeze(0) + 2
    with FlopCounterMode(display=False) as forward:
        made = module(taps, embedded, start, fed, rope_for(config, 60, torch.device("cpu")))
    assert forward.get_total_flops() == chains_pass(config, pairs, chains)
    with FlopCounterMode(display=False) as backward:
        made.sum().backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == chains_training(config, pairs, chains)


@pytest.mark.parametrize("kept", [(0, 3, 5, 9), None], ids=["pruned", "whole"])
def test_a_whole_step(make_eagle3_run, make_texts, tmp_path: Path, kept) -> None:
    """Texts of one length: padded to a longest, passes cost what their shapes say, which is counted, too."""
    run = make_eagle3_run(tmp_path, texts=make_texts((3, 9), (5, 7)), batch=2, micro_batch=2, kept=kept)
    run.cache.fill(run.texts)
    with FlopCounterMode(display=False) as counter:
        made = run.teach(run.texts, torch.Generator())
    assert made.flops.draft + made.flops.head == counter.get_total_flops()
    assert made.flops.target == 1000 * 24
    assert made.flops.head > 0
