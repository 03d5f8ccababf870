"""The target's tokenizer and chat template, read from its folder without transformers (which would load torch)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from redraft.server.chat_template import ChatTemplate
from redraft.server.engine.types import RedraftError
from redraft.server.token_bytes import token_bytes_of

INFILL = (
    # StarCoder, SmolLM, Granite; Qwen; DeepSeek-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
"""Tokens before what comes first, before what comes last, and before what is to be made between them."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TextTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}
        self.token_bytes = token_bytes_of(tokenizer)
        """Of an id the bytes that it stands for."""
        self.chat_template = chat_template
        """None when the checkpoint has none."""
        known = ([number for text in texts if (number := self.token_id(text)) is not None] for texts in INFILL)
        self._infilling = next((numbers for numbers in known if len(numbers) == len(INFILL[0])), None)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read ``tokenizer.json``, and the chat template from where hub checkpoints keep it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise RedraftError(f"{folder} has no tokenizer.json; only targets with a fast tokenizer can be served.")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, _chat_template(folder))

    def encode(self, text: str, *, special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of ``text``; ``special_tokens`` adds those that the tokenizer puts around a text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def special_id(self, text: str) -> int | None:
        """The special token that ``text`` is; None where it is text like any other."""
        return next((number for number, content in self._special.items() if content == text), None)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def skips(self, token: int) -> bool:
        """Whether ``decode`` leaves ``token`` out: a special one, or a row of the embedding that no token has."""
        return token in self._special or self._tokenizer.id_to_token(token) is None

    def token(self, token: int) -> str | None:
        """How the vocabulary writes ``token``; None for a row of the embedding that no token has."""
        return self._tokenizer.id_to_token(token)

    def token_id(self, text: str) -> int | None:
        """The token that the vocabulary writes ``text``, if one does."""
        return self._tokenizer.token_to_id(text)

    @property
    def infills(self) -> bool:
        """Whether the vocabulary has tokens for infilling."""
        return self._infilling is not None

    def infill(self, before: Sequence[int], behind: Sequence[int], *, special_tokens: bool) -> tuple[int, ...]:
        """A prompt for what comes between two texts; only where ``infills``."""
        assert self._infilling is not None
        first, last, middle = self._infilling
        return (*self.encode("", special_tokens=special_tokens), first, *before, last, *behind, middle)

    def showing(self, special: Collection[str] | None) -> ShownTokens:
        """A decoder that shows the special tokens written as in ``special``; None shows all of them."""
        hidden = [number for number, text in self._special.items() if special is not None and text not in special]
        return ShownTokens(self._tokenizer, frozenset(hidden))


class ShownTokens:
    """Decodes as the tokenizer does, but leaves out ``hidden`` only."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``."""
        # what tokenizers does for skip_special_tokens, with another list: hidden tokens go before the others are joined
        return self._tokenizer.decode([token for token in ids if token not in self._hidden], skip_special_tokens=False)

    def skips(self, token: int) -> bool:
        """Whether ``decode`` leaves ``token`` out."""
        return token in self._hidden or self._tokenizer.id_to_token(token) is None


def _chat_template(folder: Path) -> ChatTemplate | None:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    source = config.get("chat_template")
    if isinstance(source, list):
        # older checkpoints may name several templates
        source = _one_of({named["name"]: named["template"] for named in source})
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        source = own_file.read_text()
    return None if source is None else ChatTemplate(source, _special_tokens(config))


def _one_of(named: Mapping[str, str]) -> str | None:
    """The template for chats; where there is another for tools, as with Hermes 2 Pro, one that is either."""
    default, tools = named.get("default"), named.get("tool_use")
    if default is None or tools is None:
        return default
    # a template's last line feed is not shown; an empty expression keeps a first one from being taken for a block's end
    parts = ["{{ '' }}" + source.removesuffix("\n") for source in (tools, default)]
    return "{% if tools %}" + "{% else %}".join(parts) + "{% endif %}"


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their names in templates; each is a text, or an object that holds one."""
    found = {name: config.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if text is not None}
