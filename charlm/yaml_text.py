"""Reads and writes the YAML 1.2 of recipes and cards.

``1e-3`` is a number. ``no``, ``on`` and ``12:30`` are strings. A key given twice is an error. PyYAML follows YAML 1.1, so its
scalar rules are replaced by those of the YAML 1.2 core schema (chapter 10.3.2).

Files are untrusted, and a few lines of YAML can describe gigabytes. Therefore size, nesting, aliases and the digits of a
number are limited.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from charlm.errors import RecipeError

MAX_CHARACTERS = 1_000_000
"""Longer texts are refused before they are parsed."""

_MAX_DEPTH = 50
_MAX_ALIASES = 10
_MAX_DIGITS = 100

_CORE_SCHEMA: list[tuple[str, str, list[str]]] = [
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # makes a list that contains itself an error
        self._depth = 0
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Build one node and those inside it, within the limits."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MAX_ALIASES:
                raise _error(f"more than {_MAX_ALIASES} aliases (*name); write the values instead", mark)
        if self._depth == _MAX_DEPTH:
            raise _error(f"nested more than {_MAX_DEPTH} levels deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _error(problem: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = _scalar(loader, node)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _error("a string contains half of a surrogate pair, which is not a character", node.start_mark)
    return text


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    found = {"true": True, "false": False}.get(_scalar(loader, node).lower())
    if found is None:
        raise _error(f"expected true or false, found {_scalar(loader, node)[:60]!r}", node.start_mark)
    return found


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = _scalar(loader, node)
    if len(text) > _MAX_DIGITS:
        raise _error(f"a number of {len(text):,} digits; expected at most {_MAX_DIGITS}", node.start_mark)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text, base)
    except ValueError:
        raise _error(f"expected an integer, found {text!r}", node.start_mark) from None


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = _scalar(loader, node)
    try:
        return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
    except ValueError:
        raise _error(f"expected a number, found {text[:60]!r}", node.start_mark) from None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _error("expected a mapping of keys to values", node.start_mark)
    seen: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise _error(f"expected a word as key, found {key!r}", key_node.start_mark)
        if key in seen:
            raise _error(f"the key {key!r} is given twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node)
    return seen


def _string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML treats U+0085 as a line end. It escapes it only in double quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _string)
_CONSTRUCTORS: dict[str, Any] = {
    "null": yaml.SafeLoader.construct_yaml_null, "bool": _bool, "int": _integer, "float": _float, "str": _text,
    "seq": yaml.SafeLoader.construct_yaml_seq, "map": _mapping,
}  # fmt: skip
for _tag, _construct in _CONSTRUCTORS.items():
    _Loader.yaml_constructors[f"tag:yaml.org,2002:{_tag}"] = _construct
_Loader.yaml_constructors[None] = yaml.SafeLoader.construct_undefined


def parse_yaml(text: str, origin: str) -> Any:
    """Read YAML 1.2 scalars, lists and mappings.

    Raises:
        RecipeError: not YAML, a key given twice, or a limit exceeded; names ``origin``, line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{origin} is too long for a recipe or a card; expected at most {MAX_CHARACTERS:,} characters")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{origin}{_place(error.problem_mark)}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: not YAML: {error}") from None
    except (ValueError, OverflowError) as error:  # PyYAML does not check the numbers in escapes and directives
        raise RecipeError(f"{origin}{_place(loader.get_mark() if loader else None)}: not YAML: {error}") from None


def _place(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def dump_yaml(value: Any) -> str:
    """YAML text from which :func:`parse_yaml` reads the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
