"""Chooses the library of the native engine for this processor, and loads it."""

from __future__ import annotations

import ctypes
import os
import textwrap
from functools import cache
from pathlib import Path

import torch  # noqa: F401 - before the libraries, so that they share its OpenMP and its number of threads

from charlm.errors import UsageError
from charlm.model.native import interface
from charlm.model.native.build import BUILT, LEVELS, Record, fingerprint, library_name, read_record

INTERFACE = 5
"""The version of the C functions. Each library reports its own."""

FOLDER = Path(__file__).with_name("lib")
SOURCE = Path(__file__).with_name("source")

_NOT_HERE = "the native engine has not been built here (pip install builds it)"
_OTHER = "the native engine was built from another charlm; reinstall: pip install -e ."


def reason() -> str | None:
    """Return one line that says why the native engine cannot be used here; ``None``: it can."""
    return _reason(FOLDER, SOURCE)


def available() -> dict[str, str]:
    """Return for each instruction set, the fastest first, why its library cannot be used here; empty: it can."""
    return {level.name: _why_not(level.name, FOLDER, SOURCE) for level in LEVELS}


def choose() -> str:
    """Return the fastest instruction set that can be used here, or the one that ``CHARLM_ISA`` names.

    Raises:
        UsageError: ``CHARLM_ISA`` names one that cannot be used, or no instruction set can be used.
    """
    forced = os.environ.get("CHARLM_ISA", "")
    why_not = available()
    usable = [name for name, why in why_not.items() if not why]
    if forced:
        problem = why_not.get(forced, "there is no such instruction set")
        if problem:
            rest = f"; expected one of those that can be used here: {', '.join(usable)}" if usable else ""
            raise UsageError(f"CHARLM_ISA={forced}: {problem}{rest}")
        return forced
    if not usable:
        raise UsageError(reason() or "the native engine cannot be used here")
    return usable[0]


def load(level: str) -> ctypes.CDLL:
    """Return the library of an instruction set, loaded once per process.

    Raises:
        UsageError: it cannot be used here.
    """
    problem = available().get(level, "there is no such instruction set")
    if problem:
        raise UsageError(f"instruction set {level}: {problem}")
    return _open(FOLDER / library_name(level))


def current() -> ctypes.CDLL:
    """Return the library of the chosen instruction set."""
    forced = os.environ.get("CHARLM_ISA", "")
    if forced not in _current:
        _current[forced] = load(choose())
    return _current[forced]


_current: dict[str, ctypes.CDLL] = {}


def record() -> Record | None:
    """Return the record of the build: compiler and instruction sets; ``None`` if nothing was built."""
    try:
        return read_record(FOLDER)
    except (OSError, ValueError):
        return None


@cache
def _reason(folder: Path, source: Path) -> str | None:
    """Compute :func:`reason` once per process: the answer must not change in the middle of a run."""
    try:
        built = read_record(folder)
    except FileNotFoundError:
        return _NOT_HERE
    except (OSError, ValueError):
        return _OTHER
    if built.reason:
        hint = "; install one and reinstall charlm" if built.reason.startswith("no C++ compiler") else ""
        return f"the native engine was not built: {textwrap.shorten(built.reason, 200)}{hint}"
    try:
        current = fingerprint(source)
    except OSError:
        current = ""
    if current not in ("", built.fingerprint):
        return _OTHER
    portable = folder / library_name("portable")
    return (_trial(portable) or None) if portable.is_file() else _NOT_HERE


@cache
def _why_not(level: str, folder: Path, source: Path) -> str:
    """Why the library of an instruction set cannot be used here; empty: it can."""
    problem = _reason(folder, source)
    if problem:
        return problem
    if level == "portable":
        return ""
    became = read_record(folder).levels.get(level, "not known to the build")
    if became != BUILT:
        return f"was not built: {became}"
    portable = _open(folder / library_name("portable"))
    if not portable.charlm_processor_has(level.encode()):
        return f"this processor has no {level}"
    return _trial(folder / library_name(level))


def _trial(file: Path) -> str:
    """Why a library cannot be loaded, or does not match this version of charlm; empty: it can be used."""
    try:
        library = _open(file)
        if library.charlm_interface_version() != INTERFACE:
            return _OTHER
        sizes = {kind.__name__: library.charlm_sizeof(kind.__name__.encode()) for kind in interface.STRUCTURES}
        counts = [library.charlm_count(name) for name in (b"Kind", b"Rule")]
    except OSError as error:
        return f"the native engine cannot be loaded: {textwrap.shorten(str(error), 200)}"
    except AttributeError:
        return _OTHER
    expected = {kind.__name__: ctypes.sizeof(kind) for kind in interface.STRUCTURES}
    matches = sizes == expected and counts == [len(interface.KINDS), len(interface.RULES)]
    return "" if matches else _OTHER


@cache
def _open(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    library.charlm_interface_version.argtypes = []
    library.charlm_interface_version.restype = ctypes.c_int
    library.charlm_processor_has.argtypes = [ctypes.c_char_p]
    library.charlm_processor_has.restype = ctypes.c_int
    for function in (library.charlm_sizeof, library.charlm_count):
        function.argtypes = [ctypes.c_char_p]
        function.restype = ctypes.c_int64
    return library
