"""What the tests of training share: a frozen target made of a few tensors, texts, and small runs over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.settings import SftSettings
from redraft.drafts.training.sft import Sft
from redraft.drafts.training.tap_cache import TapCache
from redraft.drafts.training.teacher import Branch, States

VOCAB, HIDDEN = 37, 16
SMALL: dict[str, Any] = {
    "layers": 2,
    "block_size": 4,
    "taps": (1, 3),
    "vocab": 0,
    "mask_token_id": 5,
    "steps": 6,
    "batch": 3,
    "micro_batch": 2,
    "anchors": 4,
    "rate": 1e-2,
    "warmup": 2,
    "decay_share": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """All of them."""


class ToyTeacher:
    """Causal states from running means of embeddings: every position and every tap differs."""

    def __init__(
        self, vocab: int = VOCAB, hidden: int = HIDDEN, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.identity = f"toy-{seed}"
        self.embedding = torch.randn(vocab, hidden, generator=generator).to(dtype)
        self.head = torch.randn(vocab, hidden, generator=generator).to(dtype)
        self.reads = 0

    def states(self, tokens: Sequence[int], taps: tuple[int, ...]) -> States:
        self.reads += 1
        token = self.embedding[list(tokens)]
        mean = token.cumsum(0) / torch.arange(1, len(tokens) + 1).unsqueeze(1)
        tapped = [torch.tanh(mean * (tap + 1)) + token / (tap + 1) for tap in taps]
        return States(torch.cat(tapped, -1), functional.rms_norm(token + mean, (token.shape[1],)))

    def states_of(self, texts: Sequence[Sequence[int]], taps: tuple[int, ...]) -> list[States]:
        return [self.states(tokens, taps) for tokens in texts]

    def behind(self, texts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]) -> list[Tensor]:
        return [self._behind(tokens, some) for tokens, some in zip(texts, branches, strict=True)]

    def _behind(self, tokens: Sequence[int], branches: Sequence[Branch]) -> Tensor:
        if not branches:
            return self.head[:0]
        whole = [self.states((*tokens[: branch.at], *branch.tokens), (1,)).final for branch in branches]
        return torch.cat([final[-len(branch.tokens) :] for final, branch in zip(whole, branches, strict=True)])

    def flops(self, rows: int, behind: int = 0) -> int:
        return 1000 * (rows + behind)

    def weight(self, name: str) -> Tensor:
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return False


@pytest.fixture
def toy() -> type[ToyTeacher]:
    return ToyTeacher


@pytest.fixture
def make_config() -> Callable[..., DFlashConfig]:
    """A draft of the toy target; grouped heads whose width is not the hidden size."""

    def make(**changes: Any) -> DFlashConfig:
        sizes: dict[str, Any] = {
            "layers": 2,
            "hidden": HIDDEN,
            "intermediate": 24,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 6,
            "vocab": VOCAB,
            "norm_eps": 1e-5,
            "rope_theta": 50.0,
            "block_size": 4,
            "mask_token_id": 5,
            "taps": (1, 3),
            "target_layers": 6,
        }
        return DFlashConfig(**(sizes | changes))

    return make


@pytest.fixture
def random_module() -> Callable[..., DFlashModule]:
    """A draft whose norms are random too: scales of one would hide that they were swapped."""

    def make(config: DFlashConfig, seed: int = 0) -> DFlashModule:
        torch.manual_seed(seed)
        module = DFlashModule(config)
        for name, parameter in module.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            else:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        return module

    return make


@pytest.fixture
def make_texts() -> Callable[..., list[Text]]:
    """Random texts of the given (prompt, response) lengths."""

    def make(*lengths: tuple[int, int], seed: int = 0, vocab: int = VOCAB) -> list[Text]:
        generator = torch.Generator().manual_seed(seed)
        return [
            Text(tuple(torch.randint(vocab, (prompt + response,), generator=generator).tolist()), prompt)
            for prompt, response in lengths
        ]

    return make


@pytest.fixture
def make_run(
    make_config: Callable[..., DFlashConfig],
    random_module: Callable[..., DFlashModule],
    make_texts: Callable[..., list[Text]],
) -> Callable[..., Sft]:
    """A run of a few steps in ``out``; ``states`` is the folder of the kept states, ``kept`` a pruned vocabulary."""

    def make(
        out: Path,
        *,
        states: Path | None = None,
        texts: list[Text] | None = None,
        dev: list[Text] | None = None,
        target: int = 0,
        dtype: torch.dtype = torch.float32,
        kept: Sequence[int] | None = None,
        **changes: Any,
    ) -> Sft:
        settings = SftSettings(**(SMALL | changes))
        teacher = ToyTeacher(seed=target, dtype=dtype)
        sizes = {"layers": settings.layers, "block_size": settings.block_size, "causal": settings.causal}
        config = make_config(**sizes, draft_vocab=len(kept or ()))
        return Sft(
            settings=settings,
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, kept),
            module=random_module(config),
            texts=make_texts((3, 9), (1, 12), (6, 5), (2, 14), (4, 7)) if texts is None else texts,
            dev=make_texts((2, 10), (5, 6), seed=1) if dev is None else dev,
            cache=TapCache(teacher, config.taps, states),
            out=out,
        )

    return make
