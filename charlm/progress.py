"""The progress callback that every long operation accepts: download, encoding, evaluation, sampling."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called as ``progress(done, total)``. Both count the operation's own unit, such as bytes or characters.

``total`` is ``None`` if it is unknown. The callback may raise to cancel the operation.
"""
