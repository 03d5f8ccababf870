"""After a pass for which the device's memory did not suffice: fewer requests at once, until it does.

What a failed pass has written is not known, so all that ran give up their place and are computed again, half as many
at a time; nothing of their output changes by that (docs/structure.md).  A request for which there is no memory even
alone fails.  Torch-free.
"""

from __future__ import annotations

RECOVERY_STEPS = 64
"""Steps without trouble after which twice as many may run."""


class Relief:
    """How many requests may run at once."""

    def __init__(self, slots: int) -> None:
        self.most = slots
        self.failures = 0
        """Passes that failed since the start."""
        self._slots = slots
        self._calm = 0

    def failed(self, running: int, *, alone: bool) -> None:
        """A pass failed while so many ran; ``alone``: memory is short for one of them only."""
        self.failures += 1
        self._calm = 0
        self.most = self._slots if alone else max(running // 2, 1)

    def passed(self) -> None:
        """A step went well."""
        self._calm += 1
        if self.most < self._slots and self._calm >= RECOVERY_STEPS:
            self.most = min(2 * self.most, self._slots)
            self._calm = 0
