"""First weights of a draft: what the copied layer computes is what the target's layer computes."""

from pathlib import Path

import pytest
import torch

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import make_batch
from redraft.drafts.training.eagle3_initial import initial_eagle3
from redraft.drafts.training.module import rope_for
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher

CPU = torch.device("cpu")
TEXT = Text(tuple(torch.randint(512, (24,), generator=torch.Generator().manual_seed(3)).tolist()), 2)
KEPT = list(range(0, 512, 7))


def start(folder: Path, family: str, copied: int = 1, scale: float = 1.0, **changes):
    make_tiny_target(folder, family)
    spec = read_spec(folder)
    teacher = TargetTeacher(folder, spec, "tiny", CPU, torch.float32)
    sizes = {
        **{name: getattr(spec, name) for name in ("hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab")},
        **{"norm_eps": spec.norm_eps, "rope_theta": spec.rope_theta, "taps": (0,), "target_layers": spec.layers},
        **{"draft_vocab": len(KEPT), "steps": 2},
    }
    config = Eagle3Config(**(sizes | changes))
    return initial_eagle3(config, teacher, Vocabulary(teacher, KEPT), copied, TEXT, 0, scale), teacher


def test_the_first_pass_is_the_targets_next_layer(tmp_path: Path) -> None:
    """With the layer that follows the tapped one, and after it the last norm, these are the target's own states."""
    module, teacher = start(tmp_path, "llama")
    with torch.no_grad():
        hidden = module.config.hidden
        module.fc.weight.copy_(torch.eye(hidden))
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(module.midlayer.self_attn, name).weight[:, :hidden] = 0  # the target's layer reads no embedding
        states = teacher.states(TEXT.tokens, (0,))
        batch = make_batch(2, teacher, [TEXT], [states], [TEXT.anchors])
        rope = rope_for(module.config, 60, CPU)
        made = module(batch.taps, batch.embedded, batch.start, teacher.embedding[batch.fed], rope)[0, :, 0]
    wanted = states.final[TEXT.anchors.start - 1 : TEXT.anchors.stop - 1]
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.lm_head(made), made @ teacher.head[KEPT].T)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_where_each_weight_comes_from(tmp_path: Path, family: str) -> None:
    module, teacher = start(tmp_path, family, copied=0, scale=0.5, taps=(1, 0), head_dim=16)
    made, hidden = module.state_dict(), module.config.hidden
    assert torch.equal(made["midlayer.hidden_norm.weight"], teacher.weight("model.layers.0.input_layernorm.weight"))
    down = teacher.weight("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(made["midlayer.mlp.down_proj.weight"], down * 0.5)
    assert torch.equal(made["midlayer.mlp.up_proj.weight"], teacher.weight("model.layers.0.mlp.up_proj.weight"))
    for name in ("q", "k", "v"):
        weight = made[f"midlayer.self_attn.{name}_proj.weight"]
        read = teacher.weight(f"model.layers.0.self_attn.{name}_proj.weight")
        assert 0 < weight[:, :hidden].abs().mean() < 0.2 * weight[:, hidden:].abs().mean()
        if family != "qwen3" or name == "v":
            assert torch.equal(weight[:, hidden:], read)
        else:
            assert torch.nn.functional.cosine_similarity(weight[:, hidden:], read).min() > 0.999, "only scaled"
    fused = made["fc.weight"]
    assert torch.equal(fused[:, :hidden], torch.eye(hidden)), "the deepest tap is the first here"
    assert 0 < fused[:, hidden:].abs().max() < 0.1


def test_norms_of_queries_and_keys_become_part_of_their_projections(tmp_path: Path) -> None:
    module, teacher = start(tmp_path, "qwen3")
    attention, config = module.midlayer.self_attn, module.config
    with torch.no_grad():
        feature = module.fc(teacher.states(TEXT.tokens, (0,)).taps)
        rows = module.midlayer.rows(feature, torch.zeros_like(feature))
        for project, name in ((attention.q_proj, "q_norm"), (attention.k_proj, "k_norm")):
            heads = project(rows).unflatten(-1, (-1, config.head_dim))
            wanted = teacher.weight(f"model.layers.1.self_attn.{name}.weight")
            # what the norm makes of unit size, ours are scaled to: on the whole text, not row by row
            size = (heads / wanted).square().mean((0, 2)).sqrt()
            torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copied": 2}, "layer 2 cannot be copied from a target of 2 layers"),
        ({"heads": 8}, "midlayer.self_attn.q_proj.weight would be"),
        ({"intermediate": 99}, "midlayer.mlp.gate_proj.weight would be"),
    ],
)
def test_what_cannot_be_copied_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        start(tmp_path, "llama", **changes)
