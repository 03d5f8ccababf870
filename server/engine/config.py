"""How an engine is set up.  Torch-free: the server process builds one and sends it to the engine's process."""

from __future__ import annotations

from dataclasses import dataclass

PAGE = 128
"""Cells in a page; equals ``kernels.tree_attention.CHUNK`` (asserted where both are known)."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What ``redraft serve`` and ``redraft generate`` hand to an engine."""

    target: str
    """Folder with config.json and safetensors."""
    target_name: str
    target_sha: str
    """Content hash of the weights."""
    draft: str | None = None
    """``ngram``, ``none``, a folder with a trained draft, or None: the shipped one of this target, else ``ngram``."""
    draft_why: str = "as asked"
    """How ``draft`` came to be chosen, for the operator."""
    draft_ngram: bool = True
    """Whether n-gram lookup adds to a trained draft's tree."""
    draft_branch: int | None = None
    """Tokens considered at each place of a trained draft's tree; 1 drafts chains, None takes what suits the draft."""
    draft_own_tokens: int = 0
    """Tokens of a request's own text that a block draft's pruned vocabulary lacks and that are candidates besides."""
    dtype: str = "auto"
    """``auto``, ``bf16``, ``fp16`` or ``fp32``."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    max_model_len: int | None = None
    """Longest prompt + output; None takes the target's context, less if memory does not hold it."""
    max_num_seqs: int = 8
    max_nodes: int | None = None
    """Drafted nodes per request and round; None takes what was measured best on this kind of device."""
    max_num_batched_tokens: int | None = None
    """Most rows in one pass of the target; None takes what suits the device."""
    speculation: str = "auto"
    """``auto``: as many nodes as pay at the moment; ``off``: none; a number: so many for every request."""
    prefix_caching: bool = True
    """Whether KV of one request may serve a later one that begins the same."""
    kv_pages: int | None = None
    """Pages of KV; None takes what memory holds."""
    gpu_memory_utilization: float = 0.9
    cuda_graphs: bool = True
    """Whether rounds are recorded and launched as graphs on a GPU."""
    self_check: bool = True
    measure_costs: bool = True
    """Whether drafting and prefill follow what passes cost; without, a request gets all nodes it may have."""
