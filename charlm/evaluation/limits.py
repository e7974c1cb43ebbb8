"""Numbers that the help of the commands shows too. Imports nothing, so that help does not wait for torch."""

from __future__ import annotations

CHUNK = 1024
"""Characters per call; no result depends on it."""

JUDGED_CHARACTERS = 200_000
"""Of all samples that are judged together, at most."""
