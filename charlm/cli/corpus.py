"""``charlm corpus``: list texts, show statistics, download, add and remove your own."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import completion
from charlm.cli.console import columns, download_progress, json_line, notice, out, table, visible_word
from charlm.cli.help import App

if TYPE_CHECKING:
    from charlm.data.cards import Card
    from charlm.data.encoded import Encoded
    from charlm.data.sources import Sources

corpus_app = App(help="Training texts: list, show, download, add and remove your own.")

_WIDE = 110  # columns, for a table with descriptions
_RARE = 10  # occurrences; a rarer character is shown by name, since it may be a mistake in the text
_NAMED = 60  # maximum number of characters shown by name

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@corpus_app.command("list")
def list_corpora(as_json: Json = False) -> None:
    """List the texts that a recipe can use by name.

    Examples:
        charlm corpus list
    """
    from charlm.data.cards import cards

    known = cards()
    if as_json:
        found = {
            name: {
                "description": card.description,
                "licence": card.licence,
                "bytes": card.bytes,
                "addresses": card.urls,
                "found": _location(name, card),
            }
            for name, card in known.items()
        }
        json_line(found)
        return
    rows = [[name, _size(card), _location(name, card), card.licence, card.description] for name, card in known.items()]
    if columns() >= _WIDE:
        table(None, ["name", "bytes", "found", "licence", "description"], rows)
    else:
        _print_narrow(rows)


def _print_narrow(rows: list[list[str]]) -> None:
    """For each text a line of facts and, below it, the description and the licence."""
    cells = [[visible_word(cell) for cell in row] for row in rows]
    width = max(len(name) for name, *_ in cells)
    out(f"{'name':<{width}}  {'bytes':>11}  found")
    for name, count, found, licence, description in cells:
        out(f"{name:<{width}}  {count:>11}  {found}")
        text = f"{description}. Licence: {licence}" if licence else description
        out(textwrap.fill(text, columns(), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))


@corpus_app.command()
def show(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH", autocompletion=completion.corpora, help="A card's name, or a file, folder or glob."
        ),
    ],
    unit: Annotated[str, typer.Option(help="char or byte, as data.unit of a recipe.")] = "char",
    encoding: Annotated[str, typer.Option(help="As data.encoding of a recipe.")] = "utf-8",
    newlines: Annotated[str, typer.Option(help="unix or keep, as data.newlines of a recipe.")] = "unix",
    normalise: Annotated[str | None, typer.Option(help="As data.normalise of a recipe. Default: from the card.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the files even if they look unchanged.")] = False,
    as_json: Json = False,
) -> None:
    """Show statistics of a text: size, characters, splits, compressed size.

    Examples:
        charlm corpus show time-machine
        charlm corpus show mine.txt --unit byte
    """
    from charlm.data.cards import cards
    from charlm.data.corpora import locate
    from charlm.data.encoding import encode
    from charlm.errors import UsageError

    for option, value, allowed in (("--unit", unit, ("char", "byte")), ("--newlines", newlines, ("unix", "keep"))):
        if value not in allowed:
            raise UsageError(f"{option} {value}: expected {' or '.join(allowed)}")
    with download_progress() as progress:
        sources = locate(corpus, Path.cwd(), verify=verify, progress=progress)
    for line in sources.notices:
        notice(line)
    if normalise is None:
        normalise = "none" if unit == "byte" else sources.normalise
    encoded = encode(sources, unit=unit, encoding=encoding, newlines=newlines, normalise=normalise, verify=verify)
    settings = {"unit": unit, "encoding": encoding, "newlines": newlines, "normalise": normalise}
    facts = _facts(sources, cards().get(sources.name) if sources.name == corpus else None, encoded, settings)
    if as_json:
        json_line(facts)
    else:
        _print(facts)


@corpus_app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.corpora, help="A card's name.")],
) -> None:
    """Download a text into the cache, verify it, and print its path.

    Examples:
        charlm corpus fetch shakespeare
    """
    from charlm.data.corpora import locate
    from charlm.errors import UsageError

    if not _is_name(name):
        raise UsageError(f"{name} is a path; expected the name of a corpus (charlm corpus list)")
    with download_progress() as progress:
        sources = locate(name, Path.cwd(), verify=True, progress=progress)
    for line in sources.notices:
        notice(line)
    path = sources.files[0].path
    if path is None:
        notice(f"the text of {name} is part of charlm; no download is needed")
    elif sources.is_collection:
        notice(f"{name} is the {sources.identity} on this machine; no download is needed")
    else:
        out(str(path))


@corpus_app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for recipes: lower-case letters, digits, -.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text; it is not copied.")],
    description: Annotated[str, typer.Option(help="One line about the text.")] = "",
    licence: Annotated[str, typer.Option(help="Terms of use.")] = "unknown",
    force: Annotated[bool, typer.Option("--force", help="Overwrite your card with this name.")] = False,
) -> None:
    """Give your own text a name that recipes can use.

    Examples:
        charlm corpus add mine mine.txt
        charlm corpus add poems poems.txt --description "My poems"
    """
    from charlm.config import path_of
    from charlm.data.cards import CardExistsError, add_card
    from charlm.errors import UsageError
    from charlm.yaml_text import dump_yaml

    try:
        card = add_card(name, path_of(str(file)), description=description, licence=licence, overwrite=force)
    except CardExistsError as error:
        raise UsageError(f"{error} (--force)") from None
    out(f"added the corpus {name}; use it in a recipe: `{dump_yaml({'corpus': name}).strip()}`")
    notice(f"card: {card}")


@corpus_app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that you gave to `charlm corpus add`.")],
) -> None:
    """Remove a name that you added. The text itself stays.

    Examples:
        charlm corpus remove mine
    """
    from charlm.data.cards import remove_card

    notice(f"removed the corpus {name}; its card was {remove_card(name)}")


def _is_name(corpus: str) -> bool:
    from charlm.config import is_path

    return not is_path(corpus)


def _size(card: Card) -> str:
    size = len(card.text.encode()) if card.text is not None else card.bytes
    return "" if size is None else f"{size:,}"


def _location(name: str, card: Card) -> str:
    """Where the text of a card is; nothing is read or verified."""
    from charlm.data.card_files import find
    from charlm.data.folders import cache_folder
    from charlm.errors import CorpusError

    if card.text is not None:
        return "in its card"
    if card.source is not None:
        return "this Python"
    try:
        path = find(name, card)
    except CorpusError:
        return f"gone: {card.path}"
    if path is None:
        return "to download"
    return "cache" if path.is_relative_to(cache_folder()) else str(path.parent)


def _facts(sources: Sources, card: Card | None, encoded: Encoded, settings: dict[str, str]) -> dict[str, Any]:
    from charlm.data.counts import count_symbols
    from charlm.data.facts import compressed_size, name_of
    from charlm.data.splits import DEFAULT_SPLIT, split_offsets

    unit = settings["unit"]
    counts = count_symbols(encoded, 0, encoded.characters)
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], encoded.alphabet[index]))
    symbols = [(int(encoded.alphabet[index]), int(counts[index])) for index in order]
    packed = compressed_size(encoded, unit)
    split = sources.split or DEFAULT_SPLIT
    return {
        "name": sources.name,
        "description": card.description if card else "",
        "licence": card.licence if card else "",
        "identity": sources.identity,
        "addresses": card.urls if card else [],
        "found": _folder_of(sources),
        "bytes": encoded.bytes,
        "characters": encoded.characters,
        "sha256": encoded.sha256,
        **settings,
        "files": len(sources.files) - len(encoded.skipped),
        "skipped": list(encoded.skipped),
        "crlf_read_as_lf": encoded.converted_line_ends,
        "byte_order_marks": encoded.byte_order_marks,
        "vocabulary_size": len(symbols),
        "vocabulary": [{"symbol": symbol, "name": name_of(symbol, unit), "count": count} for symbol, count in symbols],
        "split": split,
        "splits": {part: list(offsets) for part, offsets in split_offsets(encoded.characters, split).items()},
        "bits_per_character": packed.bits_per_character,
        "compressed_characters": packed.characters,
    }


def _folder_of(sources: Sources) -> str:
    path = sources.files[0].path
    if path is None:
        return "in its card"
    if not sources.is_collection:
        return str(path)
    return str(path.parents[sources.files[0].label.count("/")])


def _print(facts: dict[str, Any]) -> None:
    unit = "bytes" if facts["unit"] == "byte" else "characters"
    for key in ("name", "description", "licence", "identity", "found"):
        if facts[key]:
            out(f"{key + ':':<13}{visible_word(facts[key])}")
    for number, address in enumerate(facts["addresses"]):
        out(f"{'' if number else 'addresses:':<13}{address}")
    out(f"{'size:':<13}{facts['bytes']:,} bytes, {facts['characters']:,} {unit}, sha256 {facts['sha256']}")
    for line in _how_read(facts):
        out(f"{'':<13}{line}")
    _print_vocabulary(facts)
    parts = [f"{part} {start:,}–{stop:,}" for part, (start, stop) in facts["splits"].items()]
    split = [f"{part:g}" if part <= 1 else f"{part:,.0f}" for part in facts["split"]]
    out(f"{'split:':<13}{', '.join(parts)}  ({', '.join(split)})")
    packed = [f"{name} -9 {bits:.3f}" for name, bits in facts["bits_per_character"].items()]
    of = facts["compressed_characters"]
    only = "" if of == facts["characters"] else f"  (first {of:,} {unit})"
    out(f"{'compressed:':<13}{', '.join(packed)} bits per {unit[:-1]}{only}")


def _how_read(facts: dict[str, Any]) -> list[str]:
    """How the bytes became text: the settings, and every change."""
    lines = ["read as bytes"] if facts["unit"] == "byte" else [f"read as {facts['encoding']}"]
    if facts["normalise"] != "none":
        lines.append(f"normalised: {facts['normalise']}")
    if facts["crlf_read_as_lf"]:
        lines.append(f"{facts['crlf_read_as_lf']:,} CRLF or CR line ends converted to LF")
    if facts["byte_order_marks"]:
        lines.append(f"byte-order mark removed from {_files(facts['byte_order_marks'])}")
    if facts["files"] > 1 or facts["skipped"]:
        lines.append(f"from {_files(facts['files'])}")
    if skipped := facts["skipped"]:
        names = ", ".join(visible_word(name) for name in skipped[:5]) + (", …" if len(skipped) > 5 else "")
        lines.append(f"{_files(len(skipped))} skipped (empty or not text): {names}")
    return lines


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _print_vocabulary(facts: dict[str, Any]) -> None:
    """Frequent, visible characters on one line; then the rare and invisible ones by name."""
    from charlm.data.facts import is_visible

    symbols, unit = facts["vocabulary"], "bytes" if facts["unit"] == "byte" else "characters"
    plain: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    for each in symbols:
        by_itself = facts["unit"] == "char" and each["count"] >= _RARE and is_visible(each["symbol"])
        (plain if by_itself else named).append(each)
    out(f"{'vocabulary:':<13}{len(symbols):,} distinct {unit}")
    if plain:
        shown = [f"{chr(each['symbol'])} {each['count']:,}" for each in plain]
        out(f"{'':<13}{'  '.join(shown)}")
    for each in named[:_NAMED]:
        out(f"{'':<13}{each['name']} ({each['count']:,})")
    if len(named) > _NAMED:
        out(f"{'':<13}and {len(named) - _NAMED:,} more rare or invisible {unit} (all with --json)")
