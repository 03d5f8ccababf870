"""Temperatures per depth against a literal sum over every drafted place."""

from pathlib import Path

import torch

from redraft.drafts.training.calibrate import GRID

KEPT = [0, 2, 3, 5, 7, 8, 11, 15, 19, 20, 21, 22, 28, 30, 31, 33, 36]


def test_each_depth_takes_the_likeliest_temperature(make_run, make_texts, tmp_path: Path) -> None:
    dev = make_texts((2, 24), (5, 20), (3, 30), seed=3)
    run = make_run(tmp_path, kept=KEPT, texts=dev, dev=dev, steps=30)
    run.run(lambda progress: None, lambda: False, 99, 99)  # a draft that knows nothing wants the largest everywhere
    total = torch.zeros(3, len(GRID), dtype=torch.float64)
    with torch.no_grad():
        for text in run.dev:
            states = run.cache.states(text)
            for anchor in text.anchors:
                mask = run.teacher.embedding[run.config.mask_token_id]
                block = torch.stack([run.teacher.embedding[text.tokens[anchor]], mask, mask, mask])
                hidden = run.module(states.taps[None], torch.tensor([[anchor]]), block[None, None], run.rope)[0, 0]
                before = 1.0
                for k, token in enumerate(text.tokens[anchor + 1 : anchor + 4]):
                    if token not in KEPT:
                        break
                    logits = (run.vocabulary.head @ hidden[k]).double()
                    for i, temperature in enumerate(GRID):
                        total[k, i] += before * (logits / temperature).log_softmax(0)[KEPT.index(token)].item()
                    before *= logits.softmax(0)[KEPT.index(token)].item()
    made = run.temperatures()
    assert made == tuple(round(GRID[best], 3) for best in total.argmax(1).tolist())
    assert len(set(made)) > 1, "one answer for all depths would show little"
