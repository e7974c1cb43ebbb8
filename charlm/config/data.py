"""The section ``data`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from charlm.config.values import FIXED, PathText, Section, check_split


class SplitFiles(Section):
    """Separate texts for validation and test; the whole corpus is then training text."""

    validation: PathText | None = None
    """Validation text."""
    test: PathText | None = None
    """Test text, read only when you evaluate on it."""


Split = Annotated[list[Annotated[float, Field(le=1e15)]] | SplitFiles, Field(union_mode="smart")]


class DataSection(Section):
    """How text becomes a sequence of symbols."""

    unit: Annotated[Literal["char", "byte"], Field(json_schema_extra=FIXED)] = "char"
    """One symbol is a Unicode code point (`char`) or a byte (`byte`: any file, no unknown symbols)."""
    encoding: Annotated[str, Field(json_schema_extra=FIXED)] = "utf-8"
    """Encoding of the files if `unit` is `char`. An invalid byte is an error that gives its offset."""
    newlines: Annotated[Literal["unix", "keep"], Field(json_schema_extra=FIXED)] = "unix"
    """`unix` converts CRLF and CR to LF and reports how many; `keep` leaves them. A byte-order mark is always removed."""
    normalise: Annotated[str | None, Field(json_schema_extra=FIXED)] = None
    """A named normalisation: `none`, `d2l-lines`, `d2l-whole` or `spaced`. Unset: from the corpus card."""
    records: Annotated[str | None, Field(min_length=1, max_length=1000, json_schema_extra=FIXED)] = None
    """Where independent samples, such as names or poems, begin and end; the state is reset there. `line`: each line is one.
    `file`: each file is one. Any other value is the text between two records, such as `"\\n\\n"`. Unset: one stream."""
    split: Annotated[Split | None, Field(json_schema_extra=FIXED)] = None
    """Training, validation, test: fractions `[0.9, 0.05, 0.05]`, counts `[10000, 5000, 0]`, or files. Unset: from the corpus
    card."""
    unknown: Annotated[Literal["map", "error"], Field(json_schema_extra=FIXED)] = "map"
    """Characters outside the vocabulary: `map` reads them as `<unk>` and counts them, `error` refuses the text."""
    min_count: Annotated[int, Field(ge=1, le=10**9, json_schema_extra=FIXED)] = 1
    """Characters that occur less often than this in the training text become `<unk>`."""
    unknown_rate: Annotated[float, Field(ge=0, le=1, json_schema_extra=FIXED)] = 0.1
    """Probability, per epoch, of reading a character that occurs once in the training text as `<unk>`. This trains `<unk>`."""

    @field_validator("split")
    @classmethod
    def _split_is_possible(cls, split: list[float] | SplitFiles | None) -> list[float] | SplitFiles | None:
        if isinstance(split, list):
            check_split(split)
        return split

    @model_validator(mode="after")
    def _separator_can_occur(self) -> DataSection:
        if self.unit == "char" and self.newlines == "unix" and "\r" in (self.records or ""):
            raise ValueError("records: newlines: unix converts CRLF to LF before the text is cut; write \\n for a line end")
        return self
