"""Who is measured by ``bench load``: two engines in processes of their own, or servers that run already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from redraft.benchmarks.load_clients import Client, EngineUnderLoad
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.progress import say
from redraft.server.engine.remote import RemoteEngine
from redraft.server.engine.types import EngineInfo, RedraftError

SPARE_PAGES = 2
"""Per request, beside prompt and answer: what is drafted ahead, and the page that is begun."""
FACTS = ("target", "draft", "device", "dtype", "max_model_len", "max_num_seqs", "max_nodes", "fingerprint", "notes")


@dataclass(frozen=True, slots=True)
class Contest:
    """The clients of a run by side, and what is to be said of them."""

    clients: Mapping[str, Client]
    facts: Callable[[], dict[str, Any]]
    """For the JSON; what a server takes is known only once it was asked."""
    target: str
    """For people."""
    draft: str | None = None
    """None where it is a server's secret."""
    gpu: str | None = None


@asynccontextmanager
async def engines(config: EngineConfig, prompts: Sequence[str], max_tokens: int) -> AsyncIterator[Contest]:
    """Two engines with the same target: one as configured, one that drafts nothing.  An idle one costs no time.

    Raises ``RedraftError`` when one cannot start or the target has no chat template.
    """
    encode = _encoder(config, prompts)
    longest = max(len(encode(prompt)) for prompt in prompts)
    # all that these requests need and no more, or the first engine would leave no memory to the second
    config = replace(config, kv_pages=config.max_num_seqs * (-(-(longest + max_tokens) // PAGE) + SPARE_PAGES))
    share = config.gpu_memory_utilization
    sides = {
        # the second one's share counts what the first one holds
        "plain": replace(config, draft="none", draft_why="to compare with", gpu_memory_utilization=share / 2),
        "speculative": config,
    }
    clients: dict[str, Client] = {}
    facts: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        for side, own in sides.items():
            engine = RemoteEngine(own)
            stack.push_async_callback(engine.close)
            info = await engine.wait_ready()
            say(f"{side}: {info.target}, draft {info.draft}")
            clients[side] = EngineUnderLoad(engine, encode)
            facts[side] = {name: value for name, value in asdict(info).items() if name in FACTS}
        known = facts["speculative"] | {"target_sha": config.target_sha, "plain": facts["plain"]}
        yield Contest(clients, lambda: known, info.target, info.draft, _gpu(info))


def _encoder(config: EngineConfig, prompts: Sequence[str]) -> Callable[[str], tuple[int, ...]]:
    from redraft.server.text import TextTokenizer

    tokenizer = TextTokenizer.from_folder(Path(config.target))
    template = tokenizer.chat_template
    if template is None:
        raise RedraftError(f"{config.target_name} has no chat template; measure a target that has one")
    # once: tokenising while engines are timed would take their cores
    known = {
        # the template writes the special tokens itself
        prompt: tokenizer.encode(template.render([{"role": "user", "content": prompt}]), special_tokens=False)
        for prompt in prompts
    }
    return known.__getitem__


def _gpu(info: EngineInfo) -> str | None:
    if info.device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


@asynccontextmanager
async def servers(
    url: str | None, plain_url: str | None, model: str | None, api_key: str | None
) -> AsyncIterator[Contest]:
    """Servers that run already; a side without a URL is not measured."""
    from redraft.benchmarks.load_server import ServerUnderLoad

    async with AsyncExitStack() as stack:
        clients = {
            side: await stack.enter_async_context(ServerUnderLoad(address, model, api_key))
            for side, address in (("plain", plain_url), ("speculative", url))
            if address
        }
        names = {side: server.model for side, server in clients.items()}

        def facts() -> dict[str, Any]:
            asked = {side: server.extras for side, server in clients.items()}
            return {"url": url, "plain_url": plain_url, "model": names, "extras": asked}

        yield Contest(clients, facts, ", ".join(sorted({str(name) for name in names.values()})))
