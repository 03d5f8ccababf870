"""A toy tokenizer, an engine that plays canned rounds, and a real uvicorn on a loopback port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from redraft.server.app import create_app
from redraft.server.engine.types import (
    EngineInfo,
    EngineStats,
    FinishReason,
    RedraftError,
    Request,
    RoundOutput,
    TokenLogprobs,
)
from redraft.server.observe import Traces
from redraft.server.serve import listen, uvicorn_config
from redraft.server.service import Service
from redraft.server.settings import ServerSettings
from redraft.server.text import TextTokenizer

END = "<|end|>"
MERGES = [("l", "l"), ("Ã", "¶"), ("æ", "Ĺ")]
"""In byte-level characters: "ll", the two bytes of "ö", and the first two of the three of "日"."""
TEMPLATE = """{%- for message in messages %}
{%- if message.role not in ["system", "user", "assistant"] %}{{ raise_exception("unknown role") }}{% endif %}
{{- "<" + message.role + ">" + message.content + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<assistant>" }}{% endif %}"""


def byte_level_tokenizer() -> Tokenizer:
    """256 byte tokens, a few merges, and one special token."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a checkpoint's folder has of text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    """The toy tokenizer as the server reads it."""
    return TextTokenizer.from_folder(tokenizer_folder)


SURE = TokenLogprobs(0.0, 1, ())


def scored(request: Request, output: RoundOutput, *, first: bool) -> RoundOutput:
    """``output`` with log-probabilities where ``request`` asks for them and the script has none."""
    if request.params.logprobs is not None and not output.logprobs:
        output = replace(output, logprobs=(SURE,) * len(output.tokens))
    if first and request.params.prompt_logprobs is not None and not output.prompt_logprobs:
        output = replace(output, prompt_logprobs=(SURE,) * (len(request.prompt) - 1))
    return output


@dataclass
class FakeEngine:
    """Plays ``script(request)``; a script's ``None`` means: wait until cancelled."""

    script: Callable[[Request], list[RoundOutput | None]]
    info: EngineInfo | None
    alive: bool = True
    stats: EngineStats = field(default_factory=lambda: EngineStats(running=2, waiting=3))
    pause: float = 0.0
    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set when a request has come to a ``None``."""
    freed: threading.Event = field(default_factory=threading.Event)
    """Set when a request was cancelled."""
    closed: bool = False

    async def generate(self, request: Request) -> AsyncGenerator[RoundOutput, None]:
        self.requests.append(request)
        self.started.set()
        finished = False
        try:
            script = self.script(request)
            for output in script:
                if output is None:
                    self.waiting.set()
                    await asyncio.Event().wait()
                else:
                    await asyncio.sleep(self.pause)
                    finished = output.finish_reason is not None
                    yield scored(request, output, first=output is script[0])
        finally:
            if not finished:
                self.cancelled.append(request.request_id)
                self.freed.set()

    async def wait_ready(self) -> EngineInfo:
        if self.info is None:
            raise RedraftError("the target does not fit")
        return self.info

    async def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Canned:
    """Makes engines over the toy tokenizer."""

    tokenizer: TextTokenizer
    info: EngineInfo

    def rounds(
        self,
        text: str,
        sizes: tuple[int, ...] = (1, 3, 2, 4),
        finish: FinishReason = FinishReason.STOP,
        drafted: int = 4,
        reused: int = 0,
    ) -> list[RoundOutput | None]:
        """``text`` in rounds of ``sizes`` tokens, over and over; ends with the end-of-turn token for STOP."""
        ids = list(self.tokenizer.encode(text))
        if finish is FinishReason.STOP:
            ids += self.info.eos_token_ids
        outputs: list[RoundOutput | None] = []
        while ids:
            size = sizes[len(outputs) % len(sizes)]
            tokens, ids = tuple(ids[:size]), ids[size:]
            outputs.append(
                RoundOutput(
                    "canned",
                    tokens,
                    accepted=len(tokens) - 1,
                    drafted=drafted,
                    finish_reason=None if ids else finish,
                    prompt_seconds=None if outputs else 0.001,
                    reused=0 if outputs else reused,
                )
            )
        return outputs

    def engine(self, text: str = "Hello, wörld! 日本語", **settings: object) -> FakeEngine:
        """An engine that answers ``text`` to everything."""
        rounds = {key: settings.pop(key) for key in ("sizes", "finish") if key in settings}
        return FakeEngine(lambda request: self.rounds(text, **rounds), self.info, **settings)

    def failure(self, error: str) -> RoundOutput:
        """What an engine says of a request that failed."""
        return RoundOutput("canned", finish_reason=FinishReason.ERROR, error=error)

    def scripted(self, script: Callable[[Request], list[RoundOutput | None]]) -> FakeEngine:
        """An engine that plays ``script``."""
        return FakeEngine(script, self.info)


@pytest.fixture(scope="session")
def canned(tokenizer: TextTokenizer) -> Canned:
    """See ``Canned``."""
    (end,) = tokenizer.encode(END)
    info = EngineInfo(
        target="toy",
        draft="canned-1",
        device="cpu",
        dtype="float32",
        vocab_size=end + 1,
        max_model_len=512,
        max_num_seqs=8,
        max_nodes=4,
        eos_token_ids=(end,),
        fingerprint="fp_toy",
    )
    return Canned(tokenizer, info)


@dataclass
class Running:
    """A server on a loopback port."""

    url: str
    listener: socket.socket
    service: Service
    http: httpx2.Client


Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def running(tokenizer: TextTokenizer) -> Start:
    """A context with a server in it; leaving it checks that the server closed its engine."""

    @contextmanager
    def start(
        engine: FakeEngine, text: TextTokenizer = tokenizer, traces: Traces | None = None, **options: Any
    ) -> Iterator[Running]:
        settings = ServerSettings("toy", port=0, **options)
        app = create_app(engine, text, settings, traces=traces)
        with listen(settings) as listener:
            server = uvicorn.Server(uvicorn_config(app))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                with httpx2.Client(base_url=url, timeout=20) as client:
                    yield Running(url, listener, app.state.service, client)
            finally:
                server.should_exit = True
                thread.join(20)
        assert not thread.is_alive()
        assert engine.closed

    return start


@pytest.fixture
def serve(running: Start) -> Iterator[Callable[..., Running]]:
    """Starts servers that last as long as the test."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(running(*args, **settings))


@pytest.fixture(scope="module")
def lasting(running: Start, canned: Canned) -> Iterator[Running]:
    """One server for all bad inputs of a file: what one of them breaks, the next test sees."""
    with running(canned.engine("fine")) as server:
        yield server


@pytest.fixture
def server(lasting: Running) -> Running:
    """A server whose engine answers anything that reaches it, and has seen nothing yet."""
    lasting.service.engine.requests.clear()
    return lasting


@pytest.fixture(scope="session")
def check() -> Callable[..., dict[str, object]]:
    """Checks that a reply is an error of OpenAI's form, of bounded size, about one parameter."""

    def checked(reply: httpx2.Response, status: int, param: str | None) -> dict[str, object]:
        assert reply.status_code == status, reply.text[:300]
        assert len(reply.content) < 16 * 1024
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param, error
        assert error["message"].isprintable()
        return error

    return checked


@pytest.fixture(scope="session")
def goes_on() -> Callable[[Running], None]:
    """Checks that a good request is still answered, and is the only one that the engine saw."""

    def checked(server: Running) -> None:
        reply = server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"})
        assert reply.json()["choices"][0]["text"] == "fine"
        assert len(server.service.engine.requests) == 1

    return checked
