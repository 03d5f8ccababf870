"""What a draft believes of every row (kernels/marginals.py), and how much of it makes the tree."""

from __future__ import annotations

from redraft.kernels.marginals import Noise, marginals

__all__ = ["BRANCH", "Noise", "marginals"]

BRANCH = 8
"""Tokens kept of every row, of which the tree is made."""
