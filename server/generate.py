"""``redraft generate``: one answer from an engine in this process, streamed, and the figures of how it came about."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from redraft.server.detokenize import Detokenizer
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError, Request, RoundOutput, SamplingParams
from redraft.server.text import TextTokenizer

BAR = 40
"""Characters of the histogram's longest bar."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user typed and how it is to be read."""

    text: str
    system: str | None = None
    raw: bool = False
    """Without the chat template."""

    def encode(self, tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Token ids; raises ``RedraftError`` when the target has no chat template to put them into."""
        if self.raw:
            return tokenizer.encode(self.text)
        if tokenizer.chat_template is None:
            raise RedraftError("this target has no chat template; give --raw to continue the prompt as it is")
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        text = tokenizer.chat_template.render([*messages, {"role": "user", "content": self.text}])
        # the template writes the special tokens itself
        return tokenizer.encode(text, special_tokens=False)


@dataclass(slots=True)
class Tally:
    """Rounds of one request, counted."""

    accepted: Counter[int] = field(default_factory=Counter)
    """Rounds by how many drafted tokens they accepted."""
    tokens: int = 0
    drafted: int = 0
    prompt_seconds: float = 0.0

    def add(self, output: RoundOutput) -> None:
        self.accepted[output.accepted] += 1
        self.tokens += len(output.tokens)
        self.drafted += output.drafted
        self.prompt_seconds += output.prompt_seconds or 0.0

    def report(self, seconds: float, draft: str) -> str:
        """Lines for people: tokens per second of decoding (prefill not counted), τ, accepted lengths.

        ``seconds`` is the time from submission to the last token.
        """
        rounds = self.accepted.total()
        decoding = max(seconds - self.prompt_seconds, 1e-9)
        kept = sum(length * count for length, count in self.accepted.items())
        # a round that ends a request may commit fewer tokens than it accepted plus one
        lines = [
            f"{self.tokens} tokens in {decoding:.2f} s after {self.prompt_seconds:.2f} s of prefill: "
            f"{self.tokens / decoding:.1f} tokens/s",
            f"draft {draft}: τ = {self.tokens / rounds:.2f} tokens a round over {rounds} rounds; "
            f"{kept} of {self.drafted} drafted tokens accepted",
        ]
        most = max(self.accepted.values())
        for length in range(max(self.accepted) + 1):
            count = self.accepted[length]
            bar = "█" * round(BAR * count / most)
            lines.append(f"  accepted {length:2}  {count:5} rounds  {100 * count / rounds:5.1f} %  {bar}")
        return "\n".join(lines)


def generate(config: EngineConfig, prompt: Prompt, params: SamplingParams) -> None:
    """Stream the answer to stdout and its figures to stderr; raises ``RedraftError`` when it cannot be had."""
    tokenizer = TextTokenizer.from_folder(Path(config.target))
    ids = prompt.encode(tokenizer)
    engine = build_engine(config)
    started = time.perf_counter()
    tally = _stream(engine, tokenizer, Request("generate", ids, params))
    say("\n" + tally.report(time.perf_counter() - started, engine.info.draft))


def _stream(engine: Engine, tokenizer: TextTokenizer, request: Request) -> Tally:
    tally = Tally()
    detokenizer = Detokenizer(tokenizer)
    engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            if output.error is not None:
                raise RedraftError(output.error)
            tally.add(output)
            shown = (token for token in output.tokens if token not in engine.info.eos_token_ids)
            _write("".join(detokenizer.push(token) for token in shown))
    _write(detokenizer.finish() + "\n")
    return tally


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
