"""Counts of symbols: right in every block, stored for large texts, and counted again if the stored ones are damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charlm.data import counts as module
from charlm.data.counts import count_symbols
from charlm.data.encoded import Encoded
from charlm.errors import CorpusError

TEXT = "".join(chr(97 + (i * i + i // 7) % 20) for i in range(1000))


@pytest.fixture
def encoded(tmp_path: Path, texts: Any) -> Encoded:
    """A file of 1,000 letters, encoded."""
    return texts.encode(texts.write(tmp_path, TEXT.encode()))


@pytest.mark.parametrize("block", [7, 1 << 22])
def test_counting_in_blocks(encoded: Encoded, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """If this fails, the vocabulary of a text larger than one block is wrong."""
    monkeypatch.setattr(module, "_BLOCK", block)
    found = dict(zip(encoded.alphabet.tolist(), count_symbols(encoded, 100, 350).tolist(), strict=True))
    assert found == {ord(c): TEXT[100:350].count(c) for c in set(TEXT)}


def test_counts_of_a_large_text_are_stored(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, every run counts a large text again, or uses the counts of another part."""
    plain = [count_symbols(encoded, 0, 800).tolist(), count_symbols(encoded, 10, 700).tolist()]
    monkeypatch.setattr(module, "_STORE_FROM", 1)
    first = [count_symbols(encoded, 0, 800).tolist(), count_symbols(encoded, 10, 700).tolist()]
    with monkeypatch.context() as patch:
        patch.setattr(np, "bincount", None)  # counting is now impossible
        assert [count_symbols(encoded, 0, 800).tolist(), count_symbols(encoded, 10, 700).tolist()] == first == plain


@pytest.mark.parametrize("damage", ["empty", "truncated", "no header", "other type", "other shape", "negative", "other sum"])
def test_damaged_counts_are_counted_again(encoded: Encoded, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """If this fails, a damaged counts file stops charlm, or changes the vocabulary."""
    monkeypatch.setattr(module, "_STORE_FROM", 1)
    right = count_symbols(encoded, 0, 800)
    path = Path(str(encoded.ids.filename)).with_name("counts-0-800.npy")  # type: ignore[attr-defined]
    whole = path.read_bytes()
    if damage in ("empty", "truncated", "no header"):
        path.write_bytes({"empty": b"", "truncated": whole[:-3], "no header": b"x" * len(whole)}[damage])
    else:
        changed = {
            "other type": right.astype(np.float64),
            "other shape": right.reshape(1, -1),
            "negative": right + (np.arange(len(right)) == 0) * 900 - (np.arange(len(right)) == 1) * 900,
            "other sum": right + 1,
        }[damage]
        np.save(path, changed)
    assert count_symbols(encoded, 0, 800).tolist() == right.tolist()
    assert path.read_bytes() == whole


def test_counts_work_with_a_read_only_cache(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a large text in a read-only cache cannot be used, or a pruned entry is recreated without its ids."""
    monkeypatch.setattr(module, "_STORE_FROM", 1)
    entry = Path(str(encoded.ids.filename)).parent  # type: ignore[attr-defined]

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "whole_file", refuse)
        assert count_symbols(encoded, 0, 800).sum() == 800
    entry.rename(entry.with_name("elsewhere"))
    assert count_symbols(encoded, 0, 700).sum() == 700
    assert not entry.exists()
    entry.with_name("elsewhere").rename(entry)


def test_ids_outside_the_alphabet_are_reported_as_damage(encoded: Encoded) -> None:
    """If this fails, a damaged cache causes a traceback."""
    damaged = replace(encoded, ids=np.array([0, 250], dtype=np.uint8))
    with pytest.raises(CorpusError, match=r"damaged.*verify"):
        count_symbols(damaged, 0, 2)
