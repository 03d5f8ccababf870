"""Rounds as a client may see them: ``include_rounds``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field

from redraft.server.detokenize import REPLACEMENT, Decoder
from redraft.server.engine.types import RoundOutput, TreeNode


class RoundToken(BaseModel):
    """A token that a round committed."""

    id: int = Field(description="The token's, in the target's vocabulary.")
    text: str = Field(
        description="What it adds to the text: nothing for the end of a turn, nor while a character is unfinished."
    )
    drafted: bool = Field(description="Whether the draft had proposed it; if not, it is the target's own.")


class RoundNode(BaseModel):
    """A drafted token that the target verified."""

    id: int = Field(description="The token's, in the target's vocabulary.")
    text: str = Field(description="As it reads behind its parent.")
    parent: int | None = Field(description="Place in `nodes`, lower than its own; null behind the text so far.")
    accepted: bool = Field(description="Whether it was committed.")
    score: float = Field(description="The draft's estimate that it is accepted, 0 to 1.")


class Round(BaseModel):
    """One round: draft, verify, accept, commit."""

    seconds: float = Field(
        description="From the request's submission until the round reached the server, by its clock."
    )
    tokens: list[RoundToken] = Field(
        description="What was committed; all rounds' texts, joined, are the reply's before a stop string is cut off."
    )
    nodes: list[RoundNode] = Field(description="The verified tree, at most 63 nodes, parents first.")


class RoundWriter:
    """Writes one choice's rounds."""

    def __init__(self, tokenizer: Decoder, anchor: int) -> None:
        """``anchor``: the prompt's last token."""
        self._tokenizer = tokenizer
        self._anchor = anchor

    def write(self, output: RoundOutput, pieces: Sequence[str], seconds: float) -> Round:
        """``output`` after ``seconds``; ``pieces`` are its tokens' texts, fewer where a stop string ended the reply."""
        tokens = [
            RoundToken(id=token, text=piece, drafted=number < output.accepted)
            for number, (token, piece) in enumerate(zip(output.tokens, pieces, strict=False))
        ]
        nodes = list(self._nodes(output.tree))
        self._anchor = output.tokens[-1]
        return Round(seconds=round(seconds, 6), tokens=tokens, nodes=nodes)

    def _nodes(self, tree: Sequence[TreeNode]) -> Iterator[RoundNode]:
        for node in tree:
            before = self._anchor if node.parent < 0 else tree[node.parent].token
            yield RoundNode(
                id=node.token,
                text=_behind(self._tokenizer, before, node.token),
                parent=None if node.parent < 0 else node.parent,
                accepted=node.accepted,
                score=round(node.score, 4),
            )


def _behind(tokenizer: Decoder, before: int, token: int) -> str:
    """What ``token`` looks like behind ``before``: some decoders strip a text's first space."""
    context, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    if not both.startswith(context):
        # the token ends a character
        context = context.rstrip(REPLACEMENT)
    return both[len(context) :]
