"""The target's tokenizer and chat template, read from its folder without transformers (which would load torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from redraft.server.chat_template import ChatTemplate
from redraft.server.engine.types import RedraftError
from redraft.server.token_bytes import token_bytes_of

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TextTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.token_bytes = token_bytes_of(tokenizer)
        """Of an id the bytes that it stands for."""
        self.chat_template = chat_template
        """None when the checkpoint has none."""

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

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def skips(self, token: int) -> bool:
        """Whether ``decode`` leaves ``token`` out: a special one, or a row of the embedding that no token has."""
        return token in self._special or self._tokenizer.id_to_token(token) is None


def _chat_template(folder: Path) -> ChatTemplate | None:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    source = config.get("chat_template")
    if isinstance(source, list):
        # older checkpoints may name several templates
        source = {named["name"]: named["template"] for named in source}.get("default")
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        source = own_file.read_text()
    return None if source is None else ChatTemplate(source, _special_tokens(config))


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their names in templates; each is a text, or an object that holds one."""
    found = {name: config.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if text is not None}
