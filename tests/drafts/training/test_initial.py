"""A draft that starts from its target's layers computes what they would compute, from the same states."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.initial import initial_module
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher

SAMPLE = Text(tuple(range(40, 60)), 5)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def teacher(request, tmp_path_factory: pytest.TempPathFactory) -> TargetTeacher:
    folder = make_tiny_target(tmp_path_factory.mktemp("initial") / request.param, request.param)
    return TargetTeacher(folder, read_spec(folder), "tiny", torch.device("cpu"), torch.float32)


def config_for(teacher: TargetTeacher, **changes) -> DFlashConfig:
    spec = teacher.spec
    config = DFlashConfig(
        layers=2,
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab=spec.vocab,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        block_size=4,
        mask_token_id=1,
        taps=(1, 0),  # the deepest one first
        target_layers=spec.layers,
    )
    return replace(config, **changes)


def normed(teacher: TargetTeacher, x: Tensor, layer: int) -> Tensor:
    """What the target's layer feeds its projections, in fp64."""
    scale = teacher.weight(f"model.layers.{layer}.input_layernorm.weight").double()
    x = x.double()
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + teacher.spec.norm_eps) * scale


@pytest.mark.parametrize("copied", [(0, 1), (1, 0)])
def test_context_keys_and_values_are_those_of_the_copied_layers(teacher, copied: tuple[int, ...]) -> None:
    config = config_for(teacher)
    module = initial_module(config, teacher, copied, SAMPLE, 0, 0.1).double()
    state = teacher.states(SAMPLE.tokens, (1,)).taps
    taps = torch.cat((state, torch.zeros_like(state)), -1).double()
    with torch.no_grad():
        context = module.hidden_norm(module.fc(taps))
        for number, source in enumerate(copied):
            for name in ("k_proj", "v_proj"):
                made = getattr(module.layers[number].self_attn, name)(context)
                weight = teacher.weight(f"model.layers.{source}.self_attn.{name}.weight").double()
                # weights are fp32, and the norms are folded in fp32
                torch.testing.assert_close(made, normed(teacher, state, source) @ weight.T, rtol=1e-5, atol=1e-5)


def test_rows_of_a_block_meet_the_copied_layers_too(teacher) -> None:
    module = initial_module(config_for(teacher), teacher, (0, 1), SAMPLE, 0, 0.1).double()
    rows = teacher.embedding[:7].double()
    with torch.no_grad():
        for number, layer in enumerate(module.layers):
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = teacher.weight(f"model.layers.{number}.self_attn.{name}.weight").double()
                made = getattr(layer.self_attn, name)(layer.input_layernorm(rows))
                torch.testing.assert_close(made, normed(teacher, rows, number) @ weight.T, rtol=1e-5, atol=1e-5)


def test_the_rest_is_copied_and_outputs_are_small(teacher) -> None:
    module = initial_module(config_for(teacher), teacher, (1, 0), SAMPLE, 0, 0.25)
    weights = module.state_dict()
    assert torch.equal(weights["norm.weight"], teacher.weight("model.norm.weight"))
    for number, source in enumerate((1, 0)):
        for name, scale in (
            ("self_attn.o_proj", 0.25),
            ("mlp.down_proj", 0.25),
            ("mlp.gate_proj", 1.0),
            ("mlp.up_proj", 1.0),
            ("post_attention_layernorm", 1.0),
        ):
            expected = teacher.weight(f"model.layers.{source}.{name}.weight") * scale
            assert torch.equal(weights[f"layers.{number}.{name}.weight"], expected)
    width = teacher.spec.hidden
    assert torch.equal(weights["fc.weight"][:, :width], torch.eye(width))
    assert 0 < weights["fc.weight"][:, width:].std() < 0.03


def test_queries_and_keys_keep_their_size(teacher) -> None:
    """Qwen3's norms are copied; a Llama has none, and gets the mean size that its heads have on the sample."""
    config = config_for(teacher)
    module = initial_module(config, teacher, (0, 1), SAMPLE, 0, 0.1)
    taps = teacher.states(SAMPLE.tokens, config.taps).taps
    with torch.no_grad():
        context = module.hidden_norm(module.fc(taps))
        for number, layer in enumerate(module.layers):
            attention = layer.self_attn
            for name in ("q", "k"):
                norm = getattr(attention, f"{name}_norm").weight
                if teacher.spec.qk_norm:
                    assert torch.equal(norm, teacher.weight(f"model.layers.{number}.self_attn.{name}_norm.weight"))
                    continue
                heads = getattr(attention, f"{name}_proj")(context).view(-1, teacher.spec.head_dim)
                size = torch.stack([head.norm() / len(head) ** 0.5 for head in heads]).mean()
                torch.testing.assert_close(norm, size.expand(len(norm)))


def test_more_heads_of_keys_and_values_attend_alike(teacher) -> None:
    few, many = (
        initial_module(config_for(teacher, kv_heads=n, taps=(1,)), teacher, (0, 1), SAMPLE, 0, 0.1) for n in (2, 4)
    )
    taps, block = torch.randn(1, 6, 64), torch.randn(1, 2, 4, 64)
    angle = torch.arange(12)[:, None] * 100.0 ** -(torch.arange(8) / 8)
    rope = torch.cat((angle, angle), 1).cos()[:, None], torch.cat((-angle.sin(), angle.sin()), 1)[:, None]
    with torch.no_grad():
        one, other = (module(taps, torch.tensor([[2, 5]]), block, rope) for module in (few, many))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_seed_decides(teacher) -> None:
    made = [initial_module(config_for(teacher), teacher, (0, 1), SAMPLE, seed, 0.1).fc.weight for seed in (3, 3, 4)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("changes", "copied", "message"),
    [
        ({}, (0,), "2 layers cannot be copied from the target's \\[0\\]"),
        ({}, (0, 2), "2 layers cannot be copied"),
        ({}, (-1, 0), "2 layers cannot be copied"),
        ({"intermediate": 96}, (0, 1), "mlp.gate_proj.weight would be"),
        ({"kv_heads": 1}, (0, 1), "self_attn.k_proj.weight would be"),
        ({"head_dim": 8}, (0, 1), "a draft of these sizes cannot start"),
        ({"head_dim": 24}, (0, 1), "a draft of these sizes cannot start"),
        ({"hidden": 32}, (0, 1), "a draft of these sizes cannot start"),
    ],
)
def test_other_sizes_are_refused(teacher, changes: dict, copied: tuple[int, ...], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        initial_module(config_for(teacher, **changes), teacher, copied, SAMPLE, 0, 0.1)


def test_a_states_pass_is_the_decoder_of_transformers(tmp_path: Path) -> None:
    """Taps are the layers' outputs before the next layer, the last one's before the final norm; ``final`` after it."""
    from transformers import AutoModelForCausalLM

    folder = make_tiny_target(tmp_path / "llama")
    teacher = TargetTeacher(folder, read_spec(folder), "tiny", torch.device("cpu"), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        logits = model(torch.tensor([SAMPLE.tokens])).logits[0]
    made = teacher.states(SAMPLE.tokens, (1, 0))
    expected = torch.cat([outputs[1].view(20, 64), outputs[0].view(20, 64)], -1)
    torch.testing.assert_close(made.taps, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.final @ teacher.head.T, logits, rtol=1e-4, atol=1e-4)
