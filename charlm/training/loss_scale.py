"""The loss scale of fp16 training."""

from __future__ import annotations


class LossScale:
    """fp16 only: gradients below 6e-8 would vanish, so the loss is multiplied by a power of two (Micikevicius 2018).

    Where a gradient overflows, the step is left out and the scale halved; after ``GROW_AFTER`` good steps it doubles.
    """

    GROW_AFTER = 1000

    def __init__(self, enabled: bool, scale: float = 2.0**12, good_steps: int = 0) -> None:
        self.enabled = enabled
        self.scale = scale if enabled else 1.0
        self.good_steps = good_steps

    def overflowed(self) -> bool:
        """Halve the scale. Returns whether the step may simply be left out: not once the scale has come down to 1."""
        if self.scale <= 1:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def succeeded(self) -> None:
        """Count a good step."""
        self.good_steps += 1
        if self.enabled and self.good_steps >= self.GROW_AFTER:
            self.scale, self.good_steps = min(self.scale * 2, 2.0**24), 0
