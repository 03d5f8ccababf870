"""A target whose next token is a fixed permutation of the current one: a draft must learn to be right nearly always."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3 import Eagle3
from redraft.drafts.training.eagle3_initial import initial_eagle3
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.tap_cache import TapCache
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher

ORBIT = (17, 301, 44, 250, 9, 411, 128, 76, 333, 62, 205, 490, 151, 380, 29, 270)
"""The tokens of answers, each followed by the next, the last by the first."""
DEPTH, STEPS = 4, 50


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


def test_a_draft_of_a_predictable_target_is_nearly_always_right(tmp_path: Path) -> None:
    teacher = permuting_target(tmp_path / "target")
    spec = teacher.spec
    kept = sorted({*ORBIT, *range(400, 430)})
    settings = Eagle3Settings(steps=STEPS, batch=8, micro_batch=8, depth=DEPTH, rate=1e-2, warmup=5)
    config = Eagle3Config(
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab=spec.vocab,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        taps=(0, 1),
        target_layers=spec.layers,
        draft_vocab=len(kept),
        steps=DEPTH,
    )
    texts, vocabulary = greedy_texts(teacher, 64, seed=0), Vocabulary(teacher, kept)
    run = Eagle3(
        settings=settings,
        config=config,
        teacher=teacher,
        vocabulary=vocabulary,
        module=initial_eagle3(config, teacher, vocabulary, 1, texts[0], 0, 1.0),
        texts=texts,
        dev=greedy_texts(teacher, 4, seed=1),
        cache=TapCache(teacher, config.taps, None),
        out=tmp_path / "run",
    )
    assert run.measure(run.dev).tau < 1.5
    assert run.run(lambda progress: None, lambda: False, STEPS, STEPS)
    assert run.progress.tau is not None
    assert run.progress.tau > 0.8 * (DEPTH + 1)
    assert run.progress.figures[f"alpha_{DEPTH - 1}"] > 0.8
