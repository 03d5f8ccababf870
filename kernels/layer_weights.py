"""What a decoder layer is made of, the target's or a draft's, and how it runs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from redraft.kernels.linear import Linear


class LayerWeights(Protocol):
    """Norms are fp32; H hidden size, I intermediate size, HD head size."""

    @property
    def input_norm(self) -> Tensor:
        """[H]"""

    @property
    def qkv(self) -> Linear:
        """Queries, keys and values in one product."""

    @property
    def qk_norm(self) -> Tensor | None:
        """[HQ + HKV, HD] scale of queries' and keys' norms, or None for none."""

    @property
    def output(self) -> Linear: ...

    @property
    def post_norm(self) -> Tensor:
        """[H]"""

    @property
    def gate_up(self) -> Linear:
        """Gate and up in one product."""

    @property
    def down(self) -> Linear: ...
