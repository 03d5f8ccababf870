"""Small things the engine's tests share: random targets of each family, chains and trees as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.checkpoint import write_draft
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.draft_config import DraftConfig
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.kernels.attention_cpu import FusedAttention
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.layer_torch import TorchOps
from redraft.kernels.rope import rope_table
from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import CHUNK, Attention, CpuAttention, TwinAttention
from redraft.server.engine import guiding
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import inverse_frequencies, read_spec
from redraft.server.engine.target.weights import load_weights

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3-rope": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True},
}


@pytest.fixture(scope="session")
def random_target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random two-layer checkpoint of a family, written by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            options = dict(FAMILIES[family])
            config = AutoConfig.for_model(
                options.pop("model_type"),
                hidden_size=64,
                intermediate_size=112,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=331,
                max_position_embeddings=1024,
                eos_token_id=2,
                **options,
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for name, parameter in model.named_parameters():
                # norms and biases start as ones and zeros, which would hide that they were swapped or dropped
                if "norm" in name or "bias" in name:
                    torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def quick_config(random_target: Callable[[str], Path]) -> Callable[..., EngineConfig]:
    """A config of the random Llama in fp32 on a CPU, which measures nothing when it starts."""

    def make(**changes: Any) -> EngineConfig:
        quick = {"dtype": "fp32", "device": "cpu", "self_check": False, "measure_costs": False}
        target = changes.pop("target", None) or str(random_target("llama"))
        return EngineConfig(target, "tiny", "0", **{**quick, **changes})

    return make


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks through grammars take the time that they need, or what is accepted would depend on who uses the machine."""
    monkeypatch.setattr(guiding, "MASK_SECONDS", math.inf)


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the benchmarks' tiny target of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_target(tmp_path_factory.mktemp("tiny") / family, family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def random_draft(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a random draft of ``kind``, "dflash" or "eagle3", for the target in a folder.

    Keywords change its config; ``kept`` are the token ids of a pruned vocabulary, ``card`` is its card, ``into`` names
    the folder.
    """

    def make(
        target: Path,
        *,
        kind: str = "dflash",
        kept: Sequence[int] | None = None,
        card: dict[str, Any] | None = None,
        into: Path | None = None,
        **changes: Any,
    ) -> Path:
        spec = read_spec(target)
        sizes: dict[str, Any] = {
            "hidden": spec.hidden,
            "intermediate": 48,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
            "vocab": spec.vocab,
            "norm_eps": spec.norm_eps,
            "rope_theta": spec.rope_theta,
            "taps": (0, 1),
            "target_layers": spec.layers,
        }
        config: DraftConfig
        if kind == "eagle3":
            sizes |= {"draft_vocab": spec.vocab if kept is None else len(kept), "steps": 5}
            config = Eagle3Config(**(sizes | changes))
        else:
            sizes |= {"layers": 2, "block_size": 6, "mask_token_id": 3, "draft_vocab": len(kept or ())}
            config = DFlashConfig(**(sizes | changes))
        generator = torch.Generator().manual_seed(1)
        weights = {}
        for name, shape in config.shapes.items():
            # norms of ones would hide that they were swapped
            mean, scale = (0.0, shape[1] ** -0.5) if len(shape) == 2 else (1.0, 0.3)
            weights[name] = torch.randn(shape, generator=generator) * scale + mean
        folder = into or tmp_path_factory.mktemp("drafts") / "random"
        write_draft(folder, config, weights, None if kept is None else tuple(kept), card or {})
        return folder

    return make


class Bench:
    """A target with a paged cache of its own for two slots, the second one's pages scattered."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        spec = read_spec(folder)
        self.target = Target(spec, load_weights(folder, spec, torch.device("cpu"), dtype), 1024)
        self.ops = self.target.ops
        plain = {"heads": spec.heads, "kv_heads": spec.kv_heads, "eps": spec.norm_eps}
        cos, sin = rope_table(torch.tensor(inverse_frequencies(spec)), 1024)
        self.torch_ops = TorchOps(cos, sin, **plain)
        self.page_table = torch.tensor([[1, 2, 3, 4], [9, 7, 5, 6], [0, 0, 0, 0]])
        self.kv = torch.zeros(spec.layers, 2, 10 * CHUNK, spec.kv_heads, spec.head_dim)

    def run(self, rows: Rows, kind: str = "fused") -> Tensor:
        """Hidden states [R, H]; KV is written.  ``kind`` names the attention and the ops between the products."""
        cell = cells(self.page_table, rows.slot, rows.position - rows.depth + rows.index, CHUNK)
        bound = int(rows.position.max()) + 1
        self.target.ops = self.ops if kind == "fused" else self.torch_ops
        attend: Attention
        if kind == "fused":
            library = load_fused()
            if library is None:
                pytest.skip("no C compiler here, so there are no fused kernels")
            attend = FusedAttention(library, rows, self.page_table, bound)
        else:
            attend = (
                TwinAttention(rows, self.page_table, bound) if kind == "twin" else CpuAttention(rows, self.page_table)
            )
        return self.target.forward(rows.token, rows.position, cell, self.kv, attend)

    def cached(self, slot: int, logical: Sequence[int]) -> Tensor:
        """KV of a slot's logical cells [L, 2, n, HKV, HD]."""
        at = torch.tensor(logical)
        return self.kv[:, :, cells(self.page_table, torch.full_like(at, slot), at, CHUNK)]


@pytest.fixture
def keep_caches(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], list[tuple[Tensor, Tensor]]]:
    """Of an engine a list that gets the target's and the draft's KV of every request that leaves, by logical cell.

    Pages are taken as they are left, and nobody finds them afterwards: every request computes its own.
    """

    def keep(engine: Engine) -> list[tuple[Tensor, Tensor]]:
        kept: list[tuple[Tensor, Tensor]] = []
        state = engine.state
        release = state.release

        def noting(slot: int) -> None:
            pages = [page for page in state.page_table[slot].tolist() if page]
            cell = torch.cat([torch.arange(page * CHUNK, (page + 1) * CHUNK) for page in pages])
            kept.append((state.kv[:, :, cell], state.draft_kv[:, :, cell]))
            engine.scheduler.pool.forget()
            release(slot)

        monkeypatch.setattr(state, "release", noting)
        return kept

    return keep


@pytest.fixture
def bench() -> type[Bench]:
    return Bench


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """Rows of trees: ``make_rows([(slot, start, tokens, parents), ...], padding=n)``; parents None means a chain."""

    def make(trees: Sequence[tuple[int, int, Sequence[int], Sequence[int] | None]], padding: int = 0) -> Rows:
        token, slot, position, depth, parent, index, paths = [], [], [], [], [], [], []
        first, count = [0, 0, 0], [0, 0, 0]
        for number, start, tokens, parents in sorted(trees, key=lambda tree: tree[0]):
            begin = len(token)
            first[number], count[number] = begin, len(tokens)
            own: list[list[int]] = []
            for i, t in enumerate(tokens):
                above = 0 if i == 0 else (i - 1 if parents is None else parents[i])
                own.append([*own[above], i] if i else [0])
                token.append(t)
                slot.append(number)
                depth.append(len(own[i]) - 1)
                position.append(start + depth[-1])
                parent.append(begin + above)
                index.append(i)
            paths += own
        for _ in range(padding):
            parent.append(len(token))
            for values, value in ((token, 0), (slot, 2), (position, 0), (depth, 0), (index, 0)):
                values.append(value)
            paths.append([0])
        width = max(len(path) for path in paths)
        table = torch.tensor([path + [-1] * (width - len(path)) for path in paths])
        lists = (token, slot, position, depth, parent, index)
        return Rows(*map(torch.tensor, lists), table, torch.tensor(first), torch.tensor(count))

    return make


@pytest.fixture(autouse=True)
def _inference(one_thread: None) -> Any:
    """As the engine runs."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _sound_accounts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """After every test the accounts of every engine that ran in it are in order, and an idle one holds nothing."""
    engines: list[Engine] = []
    step = Engine.step

    def noted(self: Engine) -> Any:
        if self not in engines:
            engines.append(self)
        return step(self)

    monkeypatch.setattr(Engine, "step", noted)
    yield
    for engine in engines:
        engine.scheduler.check_integrity()
        assert engine.busy or engine.scheduler.stats().pages_used == 0
