"""The engine's nouns: what goes in, what comes out, and nothing that needs torch.

A *request* here is one choice of one prompt: the server turns ``n`` choices into ``n`` requests.  The engine knows
token ids only; text, stop strings and HTTP are the server's (docs/structure.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class RedraftError(Exception):
    """Something the user can mend; the message says what is wrong and what to do.  Shown without a traceback."""


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where they have one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the target's next token is chosen.  The draft never enters here (docs/structure.md, promise 1)."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    seed: int = 0
    """64 bits, signed or unsigned; keys the noise together with position and token id."""


@dataclass(frozen=True, slots=True)
class Request:
    """One choice to be decoded."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    max_nodes: int | None = None
    """Most drafted nodes to verify in a round; 0 decodes plainly, None leaves it to the engine."""
    reuse: bool = True
    """Whether KV may come from earlier requests, and go to later ones."""
    cache_salt: str = ""
    """Only requests with the same salt share KV, so that no one's speed tells what others asked."""


@dataclass(frozen=True, slots=True)
class RoundOutput:
    """What one round committed for one request."""

    request_id: str
    tokens: tuple[int, ...] = ()
    """Committed tokens in order, the end-of-turn token included when it was produced."""
    accepted: int = 0
    """How many of ``tokens`` were drafted."""
    drafted: int = 0
    """Nodes verified for this request in this round, the root not counted."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Set with ``FinishReason.ERROR``."""
    prompt_seconds: float | None = None
    """With the request's first tokens: seconds spent in its prefill."""
    reused: int = 0
    """With the request's first tokens: prompt tokens whose KV was there already."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once it is ready."""

    target: str
    """Name shown to clients."""
    draft: str
    """Name and version, e.g. ``ngram-1``; ``none`` for plain decoding."""
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_nodes: int
    """Drafted nodes that each way of drafting proposes for a request; how many of them a round verifies varies."""
    eos_token_ids: tuple[int, ...]
    fingerprint: str
    """Names the class within which output is bit for bit reproducible: weights, dtype, kernels, architecture."""
    notes: tuple[str, ...] = ()
    """Lines for the operator: device chosen and why, draft chosen and why, what the self-check found."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of the engine at one moment."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0
    pages_kept: int = 0
    """Free, but known to hold the beginning of some text."""
    preemptions: int = 0
    """Since the start, as the counts that follow."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Of ``prompt_tokens``, how many were found computed."""
    out_of_memory: int = 0
    """Passes for which the device's memory did not suffice."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that one engine step produced."""

    outputs: tuple[RoundOutput, ...] = ()
    stats: EngineStats = field(default_factory=EngineStats)
