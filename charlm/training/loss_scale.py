"""The loss scale of fp16 training."""

from __future__ import annotations


class LossScale:
    """Multiplies the loss by a power of two, since fp16 gradients below 6e-8 underflow (Micikevicius et al. 2018).

    If a gradient overflows, the step is skipped and the scale is halved. After ``GROW_AFTER`` good steps, it is doubled.

    Args:
        enabled: false for other precisions; the scale is then 1.
        scale: to start with.
        good_steps: since the scale last changed.
    """

    GROW_AFTER = 1000
    LARGEST = 2.0**24

    def __init__(self, enabled: bool, scale: float = 2.0**12, good_steps: int = 0) -> None:
        self.enabled = enabled
        self.scale = scale if enabled else 1.0
        self.good_steps = good_steps

    def overflowed(self) -> bool:
        """Halve the scale. Returns whether the step may be skipped; at a scale of 1, the training has diverged."""
        if self.scale <= 1:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def succeeded(self) -> None:
        """Count a good step."""
        self.good_steps += 1
        if self.enabled and self.good_steps >= self.GROW_AFTER:
            self.scale, self.good_steps = min(self.scale * 2, self.LARGEST), 0
