"""What the tests of EAGLE-3's training share: small drafts and runs, and a chain derived token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3 import Eagle3
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.tap_cache import TapCache

VOCAB, HIDDEN = 37, 16
KEPT = (0, 2, 3, 5, 7, 8, 11, 15, 19, 20, 21, 22, 28, 30, 31, 33, 36)
SMALL: dict[str, Any] = {
    "depth": 4,
    "steps": 6,
    "batch": 3,
    "micro_batch": 2,
    "rate": 1e-2,
    "warmup": 2,
    "decay_share": 0.5,
}


@pytest.fixture
def eagle3_config() -> Callable[..., Eagle3Config]:
    """A draft of the toy target; grouped heads whose width is not the hidden size."""

    def make(**changes: Any) -> Eagle3Config:
        sizes: dict[str, Any] = {
            "hidden": HIDDEN,
            "intermediate": 24,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 6,
            "vocab": VOCAB,
            "norm_eps": 1e-5,
            "rope_theta": 50.0,
            "taps": (0, 2, 3),
            "target_layers": 6,
            "draft_vocab": len(KEPT),
            "steps": 4,
        }
        return Eagle3Config(**(sizes | changes))

    return make


@pytest.fixture
def random_eagle3() -> Callable[..., Eagle3Module]:
    """A draft whose norms are random too: scales of one would hide that they were swapped."""

    def make(config: Eagle3Config, seed: int = 0) -> Eagle3Module:
        torch.manual_seed(seed)
        module = Eagle3Module(config)
        for name, parameter in module.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            else:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        return module

    return make


@pytest.fixture
def make_eagle3_run(
    toy: Any,
    eagle3_config: Callable[..., Eagle3Config],
    random_eagle3: Callable[..., Eagle3Module],
    make_texts: Callable[..., list[Text]],
) -> Callable[..., Eagle3]:
    """A run of a few steps in ``out``; ``states`` is the folder of the kept states, ``kept`` the draft's vocabulary."""

    def make(
        out: Path,
        *,
        states: Path | None = None,
        texts: list[Text] | None = None,
        dev: list[Text] | None = None,
        target: int = 0,
        kept: Sequence[int] | None = KEPT,
        **changes: Any,
    ) -> Eagle3:
        settings = Eagle3Settings(**(SMALL | changes))
        teacher = toy(seed=target)
        config = eagle3_config(steps=settings.depth, draft_vocab=VOCAB if kept is None else len(kept))
        return Eagle3(
            settings=settings,
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, kept),
            module=random_eagle3(config),
            texts=make_texts((3, 9), (1, 12), (6, 5), (2, 14), (4, 7)) if texts is None else texts,
            dev=make_texts((2, 10), (5, 6), seed=1) if dev is None else dev,
            cache=TapCache(teacher, config.taps, states),
            out=out,
        )

    return make


class Literal:
    """A chain as the paper draws it: one token after the other, one head after the other."""

    def __init__(self, module: Eagle3Module, embedding: Tensor) -> None:
        self.config, self.embedding = module.config, embedding
        self.weights = dict(module.named_parameters())

    def of(self, name: str, x: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"] @ x

    def norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean() + self.config.norm_eps).sqrt() * self.weights[f"{name}.weight"]

    def turned(self, head: Tensor, position: int) -> Tensor:
        half = len(head) // 2
        made = list(head.unbind())
        for i in range(half):
            angle = torch.tensor(position * self.config.rope_theta ** (-2 * i / len(head)))
            a, b = head[i], head[i + half]
            made[i] = a * angle.cos() - b * angle.sin()
            made[i + half] = b * angle.cos() + a * angle.sin()
        return torch.stack(made)

    def row(self, token: int, feature: Tensor) -> Tensor:
        return torch.cat(
            (
                self.norm("midlayer.input_layernorm", self.embedding[token]),
                self.norm("midlayer.hidden_norm", feature),
            )
        )

    def key_value(self, row: Tensor, position: int) -> tuple[list[Tensor], list[Tensor]]:
        shape = (self.config.kv_heads, self.config.head_dim)
        keys = self.of("midlayer.self_attn.k_proj", row).view(shape)
        return [self.turned(key, position) for key in keys], list(self.of("midlayer.self_attn.v_proj", row).view(shape))

    def chain(self, tokens: Sequence[int], taps: Tensor, anchor: int, fed: Sequence[int] | None = None) -> list[Tensor]:
        """Normed states of the passes from ``anchor``; ``fed``: tokens behind it, None for its own greedy ones.

        ``tokens`` and ``taps`` [S, n * H] are of the text up to the anchor at least.
        """
        seen = [
            self.key_value(self.row(tokens[j + 1], self.of("fc", taps[j])), j) for j in range(anchor)
        ]  # pair j: the feature of token j and the token after it
        feature, token, made = self.of("fc", taps[anchor - 1]), tokens[anchor], []
        for i in range(self.config.steps):
            row, position = self.row(token, feature), anchor - 1 + i
            if i > 0:
                seen.append(self.key_value(row, position))
            feature = feature + self.of("midlayer.self_attn.o_proj", self.attend(row, position, seen))
            x = self.norm("midlayer.post_attention_layernorm", feature)
            gate, up = self.of("midlayer.mlp.gate_proj", x), self.of("midlayer.mlp.up_proj", x)
            feature = feature + self.of("midlayer.mlp.down_proj", torch.nn.functional.silu(gate) * up)
            made.append(self.norm("norm", feature))
            if i + 1 < self.config.steps:
                token = self.drafted(made[-1]) if fed is None else fed[i]
        return made

    def attend(self, row: Tensor, position: int, seen: Sequence[tuple[list[Tensor], list[Tensor]]]) -> Tensor:
        config = self.config
        queries = self.of("midlayer.self_attn.q_proj", row).view(config.heads, config.head_dim)
        out = []
        for number, query in enumerate(queries):
            group = number // (config.heads // config.kv_heads)
            query = self.turned(query, position)
            score = torch.stack([query @ keys[group] for keys, _ in seen]) * config.head_dim**-0.5
            weight = score.softmax(0)
            out.append(sum(w * values[group] for w, (_, values) in zip(weight, seen, strict=True)))
        return torch.cat(out)

    kept: Sequence[int] = KEPT

    def drafted(self, normed: Tensor) -> int:
        return self.kept[int(self.of("lm_head", normed).argmax())]


@pytest.fixture
def literal() -> type[Literal]:
    return Literal
