"""The engine's nouns: what goes in, what comes out, and nothing that needs torch.

A *request* here is one choice of one prompt: the server turns ``n`` choices into ``n`` requests.  The engine knows
token ids only; text, stop strings and HTTP are the server's (docs/structure.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

MAX_LOGIT_BIAS = 512
"""Biased tokens of a request, at most."""
MAX_STOP_TOKENS = 64
"""End tokens that a request may name, at most."""

MAX_LOGPROBS = 20
"""Likeliest tokens that a request may have named with each of its own, at most."""


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
    presence_penalty: float = 0.0
    """Taken once from the logit of every token that was produced before."""
    frequency_penalty: float = 0.0
    """Taken from it for every time it was."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens of prompt or output, and multiplies others."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    min_tokens: int = 0
    """Tokens to produce before one may end the text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text, beside the target's own."""
    ignore_eos: bool = False
    """The target's own do not."""
    logprobs: int | None = None
    """Log-probability of each token, and of so many of the likeliest in its place; None for none."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens, the first left out; such a request must not reuse KV."""

    @property
    def penalised(self) -> bool:
        """Whether any penalty asks for counts."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    def ends(self, eos: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that end the text, each once; ``eos`` are the target's own."""
        own = () if self.ignore_eos else eos
        return tuple(dict.fromkeys((*own, *self.stop_token_ids)))

    def refusal(self, vocab: int) -> str | None:
        """Why an engine of ``vocab`` tokens cannot do this, or None."""
        shifts = (self.presence_penalty, self.frequency_penalty, *(value for _, value in self.logit_bias))
        # nan is in no range
        if not all(-100 <= shift <= 100 for shift in shifts):
            return "presence_penalty, frequency_penalty and the values of logit_bias must lie in -100 ... 100"
        if not 0.01 <= self.repetition_penalty <= 100:
            return f"repetition_penalty must lie in 0.01 ... 100, not be {self.repetition_penalty}"
        if not 0 <= self.min_tokens <= self.max_tokens:
            return f"min_tokens must lie in 0 ... {self.max_tokens} (max_tokens), not be {self.min_tokens}"
        biased = [token for token, _ in self.logit_bias]
        if len(biased) > MAX_LOGIT_BIAS or len(set(biased)) < len(biased):
            return f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, each once"
        for name, top in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if top is not None and not 0 <= top <= MAX_LOGPROBS:
                return f"{name} must lie in 0 ... {MAX_LOGPROBS}, not be {top}"
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            return f"stop_token_ids takes at most {MAX_STOP_TOKENS} tokens"
        if not all(0 <= token < vocab for token in (*biased, *self.stop_token_ids)):
            return f"token ids must lie in 0 ... {vocab - 1}"
        return None


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
    grammar: str | None = None
    """What the output has to follow, in llguidance's notation (grammar.py)."""
    cache_salt: str = ""
    """Only requests with the same salt share KV, so that no one's speed tells what others asked."""
    show_tree: bool = False
    """Whether its outputs carry the trees that were verified."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A drafted token that had a row in the target's pass."""

    token: int
    parent: int
    """Place among the round's nodes, lower than its own; -1 for the newest token before the round."""
    score: float
    """The draft's estimate that it is accepted, 0 ... 1."""
    accepted: bool


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, and others in its place: the target's, before temperature, penalties and bias."""

    logprob: float
    """May be -inf."""
    rank: int
    """1 for the likeliest token, ties by id."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, likeliest first."""


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
    queue_seconds: float = 0.0
    """With the request's first tokens: seconds that it waited to be admitted."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of ``tokens``, if the request asked."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """With the request's first tokens, if it asked: one for each token of the prompt but the first."""
    tree: tuple[TreeNode, ...] = ()
    """The round's nodes, if the request asked; ``drafted`` of them."""


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


PASS_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper edges of the classes in which passes are counted by size; a last class has what lies beyond."""


@dataclass(frozen=True, slots=True)
class PassStats:
    """What the target's passes came to since the start."""

    sizes: tuple[int, ...] = ()
    """Passes by tokens, those of prefill and those committed: one count for each class of ``PASS_EDGES``."""
    tokens: int = 0
    """In all of these."""
    rounds: tuple[int, ...] = ()
    """Rounds by verified rows, roots included and padding not; by the same classes."""
    rows: int = 0
    """In all of these."""
    nodes: int = 0
    """Drafted nodes that were verified, and how many of them grammars drafted."""
    forced: int = 0
    round_seconds: float = 0.0
    """That rounds took, by the device's clock, prefill in the same passes included; not those that were recorded, or
    run for the first time to be recorded next."""
    plain_seconds: float = 0.0
    """That the same tokens would have taken without drafts, by the measured costs; 0 where none were measured."""


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
    passes: PassStats = field(default_factory=PassStats)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that one engine step produced."""

    outputs: tuple[RoundOutput, ...] = ()
    stats: EngineStats = field(default_factory=EngineStats)
