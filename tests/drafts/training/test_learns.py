"""A target whose next token is a fixed permutation of the current one: a draft must learn to be right nearly always."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.initial import initial_module
from redraft.drafts.training.settings import SftSettings
from redraft.drafts.training.sft import Sft
from redraft.drafts.training.tap_cache import TapCache
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher

ORBIT = (17, 301, 44, 250, 9, 411, 128, 76, 333, 62, 205, 490, 151, 380, 29, 270)
"""The tokens of answers, each followed by the next, the last by the first."""
BLOCK = 5
STEPS = 50


def permuting_target(folder: Path) -> TargetTeacher:
    """A tiny Llama whose layers hardly matter and whose head finds, for every token's embedding, its successor."""
    make_tiny_target(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensors[name] * 0.01
    embedding = tensors["model.embed_tokens.weight"]
    head = torch.zeros_like(embedding)
    head[torch.tensor(ORBIT).roll(-1)] = embedding[torch.tensor(ORBIT)]
    tensors |= {"lm_head.weight": head, "model.norm.weight": torch.full((embedding.shape[1],), 3.0)}
    save_file(tensors, folder / "model.safetensors")
    return TargetTeacher(folder, read_spec(folder), "permuting", torch.device("cpu"), torch.float32)


def greedy_texts(teacher: TargetTeacher, count: int, seed: int) -> list[Text]:
    """Answers of the target to random prompts that end with a token of the orbit."""
    generator, texts = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        prompt = torch.randint(500, (3,), generator=generator).tolist()
        at = int(torch.randint(len(ORBIT), (1,), generator=generator))
        tokens = (*prompt, *(ORBIT[(at + i) % len(ORBIT)] for i in range(41)))
        chosen = (teacher.states(tokens, (1,)).final @ teacher.head.T).argmax(-1).tolist()
        assert tuple(chosen[3:-1]) == tokens[4:], "the text must be what the target says"
        texts.append(Text(tokens, 4))
    return texts


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_draft_of_a_predictable_target_is_nearly_always_right(tmp_path: Path, causal: bool) -> None:
    teacher = permuting_target(tmp_path / "target")
    spec = teacher.spec
    settings = SftSettings(
        layers=1,
        block_size=BLOCK,
        steps=STEPS,
        batch=8,
        micro_batch=8,
        anchors=24,
        rate=1e-2,
        warmup=5,
        causal=causal,
    )
    config = DFlashConfig(
        layers=1,
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab=spec.vocab,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        block_size=BLOCK,
        mask_token_id=1,
        taps=(0, 1),
        target_layers=spec.layers,
        causal=causal,
    )
    texts = greedy_texts(teacher, 64, seed=0)
    run = Sft(
        settings=settings,
        config=config,
        teacher=teacher,
        vocabulary=Vocabulary(teacher, sorted({*ORBIT, *range(400, 430)})),
        module=initial_module(config, teacher, (1,), texts[0], 0, 0.1),
        texts=texts,
        dev=greedy_texts(teacher, 4, seed=1),
        cache=TapCache(teacher, config.taps, None),
        out=tmp_path / "run",
    )
    assert run.measure(run.dev).tau < 1.5
    assert run.run(lambda progress: None, lambda: False, STEPS, STEPS)
    assert run.progress.tau is not None
    assert run.progress.tau > 0.8 * BLOCK
