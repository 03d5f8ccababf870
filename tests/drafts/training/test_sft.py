"""One step of a run: the loss it reports is the literal one, however the step is cut into passes."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.settings import SftSettings

KEPT = [0, 2, 3, 5, 7, 8, 11, 15, 19, 20, 21, 22, 28, 30, 31, 33, 36]


def weights(kind: str, q: list[float], known: list[bool], gamma: float, alpha: float) -> list[float]:
    if kind == "uniform":
        return [1.0] * len(q)
    if kind == "decay":
        return [math.exp(-k / gamma) for k in range(len(q))]
    smooth = [((1 - alpha) * p + alpha) * k for p, k in zip(q, known, strict=True)]
    return [sum(math.prod(smooth[: m + 1]) for m in range(j, len(q))) for j in range(len(q))]


@pytest.mark.parametrize("kept", [None, KEPT], ids=["whole", "pruned"])
@pytest.mark.parametrize("kind", ["dpace", "decay", "uniform"])
def test_the_loss_of_a_step_is_the_literal_one(make_run, tmp_path: Path, kind: str, kept) -> None:
    options = {"weights": kind, "gamma": 2.0, "alpha": 0.3, "soft": 0.4}
    # all texts and all anchors in one step, so that nothing depends on what was drawn
    run = make_run(tmp_path, batch=5, anchors=99, micro_batch=2, kept=kept, **options)
    ids = list(range(37)) if kept is None else kept
    total, places, first = 0.0, 0, []
    with torch.no_grad():
        for text in run.texts:
            states = run.cache.states(text)
            for anchor in text.anchors:
                mask = run.teacher.embedding[run.config.mask_token_id]
                block = torch.stack([run.teacher.embedding[text.tokens[anchor]], mask, mask, mask])
                hidden = run.module(states.taps[None], torch.tensor([[anchor]]), block[None, None], run.rope)[0, 0]
                q, known, losses = [], [], []
                for k, token in enumerate(text.tokens[anchor + 1 : anchor + 4]):
                    places += 1
                    known.append(token in ids)
                    if not known[-1]:
                        q.append(0.0)
                        losses.append(0.0)
                        continue
                    log_q = (run.teacher.head[ids] @ hidden[k]).double().log_softmax(0)
                    log_p = (run.teacher.head[ids] @ states.final[anchor + k]).double().log_softmax(0)
                    hard = -log_q[ids.index(token)].item()
                    q.append(math.exp(-hard))
                    losses.append(0.6 * hard + 0.4 * (log_p.exp() * (log_p - log_q)).sum().item())
                if known[0]:
                    first.append(math.log(q[0]))
                total += sum(w * x for w, x in zip(weights(kind, q, known, 2.0, 0.3), losses, strict=True))
    run.step()
    assert run.progress.loss == pytest.approx(total / places, rel=1e-5)
    assert run.progress.figures["first"] == pytest.approx(sum(first) / len(first), rel=1e-5)


def test_passes_of_a_step_add_up(make_run, tmp_path: Path) -> None:
    """Gradients of one text at a time are those of all texts padded together."""
    grads = []
    for size in (1, 2, 5):
        run = make_run(tmp_path / str(size), batch=5, micro_batch=size, clip=1e9)
        kept = {}
        run.optimiser.step = lambda share, run=run, kept=kept: kept.update(
            {name: p.grad.clone() for name, p in run.module.named_parameters()}
        )
        run.step()
        grads.append((kept, run.progress.loss, run.progress.norm))
    for kept, loss, norm in grads[1:]:
        assert loss == pytest.approx(grads[0][1], rel=1e-5)
        assert norm == pytest.approx(grads[0][2], rel=1e-4)
        for name, gradient in kept.items():
            torch.testing.assert_close(gradient, grads[0][0][name], rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(make_run, tmp_path: Path) -> None:
    run, seen = make_run(tmp_path, clip=0.01), []
    run.optimiser.step = lambda share: seen.append(
        torch.cat([p.grad.flatten() for p in run.module.parameters()]).norm().item()
    )
    run.step()
    assert run.progress.norm > 0.01
    assert seen == [pytest.approx(0.01, rel=1e-4)]


def test_every_pass_over_the_texts_reads_each_once(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    drawn = [text for step in range(10) for text in run._drawn(step)]
    passes = [drawn[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_training_in_bf16_on_a_cpu(make_run, tmp_path: Path) -> None:
    """``--dtype bf16``: the target's states and head are bf16, the draft's weights stay fp32."""
    run = make_run(tmp_path, dtype=torch.bfloat16)
    run.run(lambda progress: None, lambda: False, 2, 6)
    assert math.isfinite(run.progress.loss)
    assert run.module.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_in_what_was_asked_for_on_every_device(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype
) -> None:
    run = make_run(tmp_path, dtype=dtype)
    assert run.optimiser.parts[0].products == dtype, "Muon's"
    here = SimpleNamespace(device=torch.device(device), is_cuda=device == "cuda", dtype=dtype)
    monkeypatch.setattr(run, "teacher", SimpleNamespace(embedding=here))
    monkeypatch.setattr(torch, "autocast", lambda kind, to, enabled: (kind, to, enabled))
    assert run.mixed() == (device, torch.bfloat16, dtype == torch.bfloat16)
    assert run.products == dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": "sgd"}, "optimiser must be one of muon, adamw"),
        ({"weights": "late"}, "weights must be one of dpace, decay, uniform"),
        ({"block_size": 1}, "block_size must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"soft": 1.5}, "must lie in 0 ... 1"),
        ({"rate": 0.0}, "must be above 0"),
        ({"rate": math.nan}, "must be above 0"),
        ({"clip": math.nan}, "must be above 0"),
        ({"gamma": -1.0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be_trained(changes: dict, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        SftSettings(**changes)
