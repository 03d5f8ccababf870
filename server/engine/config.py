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
    draft_branch: int = 8
    """Tokens considered at each place of a trained draft's block; 1 drafts chains."""
    dtype: str = "auto"
    """``auto``, ``bf16``, ``fp16`` or ``fp32``."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    max_model_len: int | None = None
    """Longest prompt + output; None takes the target's context, less if memory does not hold it."""
    max_num_seqs: int = 8
    max_nodes: int | None = None
    """Drafted nodes per request and round; None takes what was measured best on this kind of device."""
    gpu_memory_utilization: float = 0.9
    prefill_chunk: int = 256
    """Prompt rows in one pass."""
    self_check: bool = True
