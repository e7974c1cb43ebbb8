"""A writing session: one loaded model, prompt after prompt, and texts that can be continued. It knows no terminal.

A text is drawn as by ``charlm sample``: the same prompt, seed and settings give the same characters.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from charlm.data.vocabulary import utf8_bytes
from charlm.errors import UsageError
from charlm.loaded import Model
from charlm.sampling import SamplingParams, generate, opening, truncate_at_stop


@dataclass(frozen=True)
class Settings:
    """How texts are drawn.

    Attributes:
        temperature, top_k, top_p: see :class:`charlm.sampling.SamplingParams`.
        length: new characters per text (bytes, with ``data.unit: byte``); 0: until interrupted or stopped.
        stop: a text ends before this one; empty: only ``length`` ends it.
        seed: of every new prompt; ``None``: a new one is drawn for each.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    length: int = 500
    stop: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        _ = self.params  # checks them
        utf8_bytes(self.stop, "stop")
        for name, value in (("length", self.length), ("seed", self.seed)):
            if value is not None and value < 0:
                raise UsageError(f"{value}: expected 0 or more", parameter=name)

    @property
    def params(self) -> SamplingParams:
        """The options of the draw."""
        return SamplingParams(self.temperature, self.top_k, self.top_p)


@dataclass(eq=False)
class Text:
    """A text of a session.

    Attributes:
        prompt: what it continues.
        seed, number: its random sequence, or that of its latest continuation; see :func:`charlm.sampling.generate`.
        drawn: the new characters so far, in UTF-8.
    """

    prompt: str
    seed: int
    number: int
    drawn: bytearray = field(default_factory=bytearray)

    @property
    def whole(self) -> bytes:
        """The prompt and the new characters."""
        return utf8_bytes(self.prompt) + self.drawn


class Session:
    """Draws texts with one model, and keeps them.

    :meth:`write`, :meth:`again` and :meth:`more` return an iterator of characters in UTF-8, drawn as they are consumed.
    Consume one at a time. Errors in a prompt are raised at once, before anything is drawn.

    Args:
        model: is not changed.
        settings: of the next text; assign others at any time.

    Attributes:
        texts: all texts so far.
        is_interrupted: whether :meth:`interrupt` has ended the last text.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.settings = settings
        self.texts: list[Text] = []
        self.is_interrupted = False
        self._model = model
        self._context: list[int] = []  # every id of the last text that the model has read or drawn
        self._ids: Iterator[int] | None = None  # continues it; None: broken off by an error
        self._drawn_with = settings
        self._held = bytearray()  # drawn but not yet yielded: the stop text, or a part of it

    def write(self, prompt: str) -> Iterator[bytes]:
        """Begin a text.

        Args:
            prompt: text to continue; empty: see :func:`charlm.sampling.opening`.

        Raises:
            UsageError: the prompt has characters outside the vocabulary.
        """
        seed = self.settings.seed
        return self._begin(prompt, secrets.randbelow(2**31) if seed is None else seed, 0)

    def again(self) -> Iterator[bytes]:
        """Begin another text with the last prompt and the next random sequence.

        Raises:
            UsageError: there is no text yet.
        """
        last = self._last()
        return self._begin(last.prompt, *self._next_sequence(last))

    def more(self) -> Iterator[bytes]:
        """Continue the last text, from the kept state. A record that has ended continues only if the settings have
        changed.

        If it ended before a stop text, that comes first: the model has drawn it. If the temperature, top-k, top-p or
        the seed has changed, the model reads the text again and draws from the next random sequence.

        Raises:
            UsageError: there is no text yet.
        """
        last = self._last()
        now, before = self.settings, self._drawn_with
        if self._ids is None or (now.params, now.seed) != (before.params, before.seed):
            last.seed, last.number = self._next_sequence(last)
            self._generate(last)
        held = bytes(self._held)
        self._held.clear()
        return self._draw(last, held)

    def interrupt(self) -> None:
        """End the text that is being drawn after the present character; :meth:`more` continues it."""
        self.is_interrupted = True

    def _last(self) -> Text:
        if not self.texts:
            raise UsageError("there is no text yet; write a prompt first")
        return self.texts[-1]

    def _next_sequence(self, last: Text) -> tuple[int, int]:
        """The next number of the same seed; another seed starts with number 0."""
        seed = self.settings.seed
        return (last.seed, last.number + 1) if seed in (None, last.seed) else (seed, 0)

    def _begin(self, prompt: str, seed: int, number: int) -> Iterator[bytes]:
        vocabulary = self._model.vocabulary
        context = vocabulary.encode(self._model.as_prompt(prompt))
        if vocabulary.separator is None:  # else `generate` reads the separator first, always
            context = opening(vocabulary, context)
        text = Text(prompt, seed, number)
        self.texts.append(text)
        self._context = context
        self._held.clear()
        self._generate(text)
        return self._draw(text, b"")

    def _generate(self, text: Text) -> None:
        model, now = self._model, self.settings
        self._ids = generate(model.network, model.vocabulary, tuple(self._context), now.params, text.seed, text.number)
        self._drawn_with = now

    def _draw(self, text: Text, held: bytes) -> Iterator[bytes]:
        self.is_interrupted = False
        stop = utf8_bytes(self.settings.stop)
        return self._kept(text, held, truncate_at_stop(self._characters(self.settings.length), stop))

    def _kept(self, text: Text, held: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if held:
            text.drawn += held
            yield held
        for piece in pieces:
            text.drawn += piece
            del self._held[: len(piece)]
            yield piece

    def _characters(self, length: int) -> Iterator[bytes]:
        ids, vocabulary = self._ids, self._model.vocabulary
        assert ids is not None
        count = 0
        while not self.is_interrupted and (count < length or length == 0):
            try:
                index = next(ids, None)
            except BaseException:
                self._ids = None
                raise
            if index is None:  # the record has ended
                return
            count += 1
            self._context.append(index)
            self._held += (piece := vocabulary.bytes_of(index))
            yield piece
