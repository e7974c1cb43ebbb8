"""A writing session without a terminal: the texts of ``charlm sample``, continued from the kept state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import charlm
from charlm.errors import UsageError
from charlm.loaded import Model
from charlm.sampling import generate
from charlm.writing import Session, Settings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, english: Callable[..., str]) -> dict[str, Model]:
    """A model of characters and one of bytes."""
    folder = tmp_path_factory.mktemp("writing")
    (folder / "text.txt").write_text(english(3000), encoding="utf-8")
    overrides = {"model.hidden": 8, "train.total_steps": 20, "train.batch": 4, "train.seq_length": 16, "sample.every": 20}
    opened = {}
    for unit in ("char", "byte"):
        charlm.train(str(folder / "text.txt"), overrides | {"data.unit": unit}, out=str(folder / unit))
        opened[unit] = charlm.load(folder / unit)
    return opened


@pytest.fixture
def model(models: dict[str, Model]) -> Model:
    """The model of characters."""
    return models["char"]


def _session(model: Model, **settings: Any) -> Session:
    return Session(model, Settings(**{"length": 40, "seed": 1} | settings))


def _joined(pieces: Iterator[bytes]) -> str:
    return b"".join(pieces).decode()


def _numbered(model: Model, prompt: str, number: int, length: int = 40, temperature: float = 0.8) -> str:
    params = Settings(temperature=temperature).params
    ids = generate(model.network, model.vocabulary, model.vocabulary.encode(prompt), params, 1, number)
    return model.vocabulary.decode(next(ids) for _ in range(length))


@pytest.mark.parametrize("prompt", ["", "the king"])
def test_a_text_is_that_of_sample(model: Model, prompt: str) -> None:
    """If this fails, a text that somebody liked cannot be drawn again with ``charlm sample``."""
    assert _joined(_session(model).write(prompt)) == model.sample(prompt, 40, seed=1)


def test_again_draws_the_next_sample_of_the_prompt(model: Model) -> None:
    """If this fails, ``/again`` repeats a text, or a text that ``--num`` does not have."""
    session = _session(model)
    texts = [_joined(session.write("the")), _joined(session.again()), _joined(session.again())]
    assert texts == [_numbered(model, "the", number) for number in range(3)]
    assert _joined(session.write("the")) == texts[0]
    session.settings = replace(session.settings, seed=2)
    assert _joined(session.again()) == model.sample("the", 40, seed=2)


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_more_continues_as_if_the_text_had_been_longer(
    models: dict[str, Model], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a continuation has a seam: characters lost or repeated, another state, or the text is read again."""
    model = models[unit]
    session = _session(model)
    begun = b"".join(session.write("the"))
    monkeypatch.setattr("charlm.sampling.prefill", None)
    drawn = begun + b"".join(session.more()) + b"".join(session.more())
    monkeypatch.undo()
    ids = generate(model.network, model.vocabulary, model.vocabulary.encode("the"), Settings().params, 1)
    assert drawn == b"".join(model.vocabulary.bytes_of(next(ids)) for _ in range(120))
    assert session.texts[0].whole == b"the" + drawn


def test_more_with_another_temperature_reads_the_text_again(model: Model) -> None:
    """If this fails, a new temperature is ignored in a continuation, or the text before it is forgotten."""
    session = _session(model)
    begun = _joined(session.write("the"))
    session.settings = replace(session.settings, temperature=0)
    assert _joined(session.more()) == _numbered(model, "the" + begun, 1, temperature=0)
    session.settings = replace(session.settings, length=5)
    assert len(_joined(session.more())) == 5


def test_a_stop_text_is_left_out_and_comes_first_in_the_continuation(model: Model) -> None:
    """If this fails, a stop text is written, or characters that the model has drawn are lost."""
    whole = model.sample("the", 200, seed=1)
    stop = whole[20:22]
    session = _session(model, stop=stop, length=0)
    begun = _joined(session.write("the"))
    assert begun == whole[: whole.index(stop)]
    session.settings = replace(session.settings, stop="", length=30)
    assert begun + _joined(session.more()) == whole[: len(begun) + len(stop) + 30]


def test_an_interrupted_text_is_continued(model: Model) -> None:
    """If this fails, Ctrl-C does not end a text, or costs characters of it."""
    session = _session(model, length=0, stop="no such text")
    drawn = b""
    for piece in session.write("the"):
        drawn += piece
        if len(drawn) >= 25:
            session.interrupt()
    session.settings = replace(session.settings, length=30)
    drawn += b"".join(session.more())
    assert drawn.decode() == model.sample("the", len(drawn), seed=1)
    assert not session.is_interrupted


def test_an_error_inside_the_draw_leaves_a_text_that_can_be_continued(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a second Ctrl-C makes ``/more`` fail or write nothing."""

    def broken(*arguments: Any) -> Iterator[int]:
        yield from list(model.vocabulary.encode("abc"))
        raise KeyboardInterrupt

    session = _session(model)
    with monkeypatch.context() as patch:
        patch.setattr("charlm.writing.generate", broken)
        with contextlib.suppress(KeyboardInterrupt):
            list(session.write("the"))
    assert session.texts[0].drawn == b"abc"
    assert _joined(session.more()) == _numbered(model, "theabc", 1)


def test_without_a_seed_each_prompt_gets_its_own(model: Model) -> None:
    """If this fails, random texts repeat themselves, or the seed that is shown does not give the text."""
    session = _session(model, seed=None)
    first, second = _joined(session.write("the")), _joined(session.write("the"))
    assert first != second
    assert second == model.sample("the", 40, seed=session.texts[1].seed)
    session.again()
    assert (session.texts[2].seed, session.texts[2].number) == (session.texts[1].seed, 1)


def test_errors_come_before_anything_is_drawn(model: Model) -> None:
    """If this fails, a bad prompt or setting leaves a text behind, or ends with a traceback."""
    session = _session(model)
    for call in (session.again, session.more):
        with pytest.raises(UsageError, match="no text yet"):
            call()
    with pytest.raises(UsageError, match=r"U\+65E5"):
        session.write("日")
    assert session.texts == []
    wrong: dict[str, Any] = {"top_k": -1, "top_p": 0.0, "temperature": -1.0, "length": -1, "seed": -1, "stop": "\ud83d"}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=name):
            Settings(**{name: value})


def test_windows_line_ends_of_a_prompt_read_as_the_corpus_was(model: Model, tmp_path: Path) -> None:
    """If this fails, a pasted prompt from Windows is refused, or gives another text than ``charlm sample``."""
    assert _joined(_session(model).write("the\r\nking")) == model.sample("the\r\nking", 40, seed=1)
