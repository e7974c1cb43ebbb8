"""The native engine's libraries: compiled where a compiler is, explained where none is, and never one that does not fit."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from charlm.errors import UsageError
from charlm.model.native import build as building
from charlm.model.native import interface, library
from charlm.model.native.build import LEVELS, Record, build, compile_one, find_compiler, fingerprint, flags_of, read_record

ROOT = Path(__file__).parents[3]
NAMES = [level.name for level in LEVELS]
SOURCE = """
#include <cstring>
#define EXPORT extern "C" __attribute__((visibility("default")))
#ifndef PROCESSOR
#define PROCESSOR 1
#endif
EXPORT int charlm_interface_version() { return VERSION; }
EXPORT int charlm_processor_has(const char*) { return PROCESSOR; }
EXPORT long long charlm_sizeof(const char* name) { SIZES return 0; }
EXPORT long long charlm_count(const char* name) { COUNTS return 0; }
EXPORT const char* name() { return CHARLM_ISA; }
#ifdef _OPENMP
EXPORT int threaded() { return 1; }
#endif
"""


def _trivial(version: int = library.INTERFACE, **changes: int) -> str:
    """The source of an engine that computes nothing; ``changes`` replace sizes of structures and counts of enumerations."""
    sizes = {kind.__name__: ctypes.sizeof(kind) for kind in interface.STRUCTURES}
    counts = {"Kind": len(interface.KINDS), "Rule": len(interface.RULES)}
    text = SOURCE.replace("VERSION", str(version))
    for place, values in (("SIZES", sizes), ("COUNTS", counts)):
        answers = (f'if (!strcmp(name, "{name}")) return {changes.get(name, value)};' for name, value in values.items())
        text = text.replace(place, " ".join(answers))
    return text


needs_compiler = pytest.mark.skipif(find_compiler()[0] is None, reason="no C++ compiler on this machine")
needs_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="no x86-64 processor")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHARLM_NO_NATIVE", "CHARLM_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with an engine that computes nothing."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "native.cpp").write_text(_trivial(), encoding="utf-8")
    return folder


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``fake_compiler(script)``: the only compiler that can be found is that shell script."""

    def install(script: str, name: str = "c++") -> Path:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(folder))
        return path

    return install


@pytest.fixture
def installed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``installed(flags=…)``: build the trivial engine and let :mod:`charlm.model.native.library` find it."""
    target = tmp_path / "lib"
    monkeypatch.setattr(library, "FOLDER", target)
    monkeypatch.setattr(library, "SOURCE", source)

    def install(levels: list[str] | None = None, flags: tuple[str, ...] = ()) -> Path:
        record = build(source, target, levels=levels, flags=flags)
        assert not record.reason
        return target

    return install


# -- building ----------------------------------------------------------------------------------------------------------


@needs_compiler
def test_every_instruction_set_becomes_a_library(source: Path, tmp_path: Path) -> None:
    """If this fails, an installation lacks the libraries, or the record does not say what is there."""
    target = tmp_path / "lib"
    record = build(source, target)
    assert record.levels["portable"] == "built"
    assert record.reason == ""
    assert record.compiler
    assert record.version
    assert list(record.levels) == NAMES
    assert read_record(target) == record
    assert {path.name for path in target.iterdir()} == {"build.json", *map(building.library_name, record.built)}
    for level in record.built:
        name = ctypes.CDLL(str(target / building.library_name(level))).name
        name.restype = ctypes.c_char_p
        assert name() == level.encode()
    assert hasattr(ctypes.CDLL(str(target / building.library_name("portable"))), "threaded") == record.openmp


@needs_compiler
def test_instruction_sets_of_another_architecture_are_named_and_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, an Arm machine tries x86 flags."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    record = build(source, tmp_path / "lib")
    assert record.built == ["portable"]
    assert record.levels["avx2"] == "needs x86_64, and this is aarch64"


def test_no_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an installation without a compiler ends, or does not say what is missing."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "/nonexistent/c++ 'unclosed")
    record = build(source, tmp_path / "lib")
    assert record.reason == "no C++ compiler was found (looked for $CXX, c++, g++, clang++)"
    assert set(record.levels.values()) == {record.reason}
    assert read_record(tmp_path / "lib") == record


def test_a_compiler_that_cannot_even_answer(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, a placeholder for a compiler (macOS has one) is taken for the reason that nothing compiles."""
    fake_compiler("echo no developer tools were found >&2; exit 1")
    assert build(source, tmp_path / "lib").reason == "c++ --version: no developer tools were found"


def test_a_compiler_that_fails_is_quoted(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, nobody learns why their compiler was no good, or a failing compiler ends the installation."""
    fake_compiler(
        '[ "$1" = --version ] && echo Fake 1.0 && exit 0; echo "in file x"; echo "fatal error: no such thing" >&2; exit 1'
    )
    record = build(source, tmp_path / "lib")
    assert record.version == "Fake 1.0"
    assert record.reason == "c++ cannot make a library: fatal error: no such thing"


def test_complaints_stay_short(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, a thousand lines of template errors end up in the record."""
    fake_compiler("for n in 1 2 3 4 5 6 7 8 9; do printf 'error: %0400d\\n' $n; done; exit 1")
    assert len(build(source, tmp_path / "lib").reason) < 600


def test_a_compiler_that_hangs_is_ended(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, an installation can wait for ever, or leaves processes of the compiler behind."""
    child = tmp_path / "child"
    fake_compiler(f'[ "$1" = --version ] && exit 0; /bin/sleep 60 & echo $! > {child}; wait')
    began = time.monotonic()
    record = build(source, tmp_path / "lib", limit=1)
    assert time.monotonic() - began < 10
    assert "took more than 1 s" in record.reason
    status = Path(f"/proc/{child.read_text().strip()}/stat")
    time.sleep(0.1)
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@needs_compiler
def test_a_compiler_without_openmp_still_builds(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, there is no native engine with Apple's compiler."""
    real, _ = find_compiler()
    assert real is not None
    path = os.environ["PATH"]
    fake_compiler(
        'for word; do [ "$word" = -fopenmp ] && echo "error: unsupported option -fopenmp" >&2 && exit 1; done\n'
        f'PATH="{path}" exec {real.command[0]} "$@"'
    )
    record = build(source, tmp_path / "lib", levels=["portable"])
    assert record.built == ["portable"]
    assert not record.openmp
    assert not hasattr(ctypes.CDLL(str(tmp_path / "lib" / "charlm_native_portable.so")), "threaded")


@needs_compiler
@needs_x86
def test_one_instruction_set_may_fail(source: Path, tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    """If this fails, an old compiler that does not know the newest instructions builds nothing at all."""
    real, _ = find_compiler()
    assert real is not None
    path = os.environ["PATH"]
    fake_compiler(
        'for word; do [ "$word" = -mamx-tile ] && echo "error: unrecognized option" >&2 && exit 1; done\n'
        f'PATH="{path}" exec {real.command[0]} "$@"'
    )
    record = build(source, tmp_path / "lib", levels=["portable", "amx"])
    assert record.reason == ""
    assert record.built == ["portable"]
    assert record.levels["amx"] == "error: unrecognized option"
    assert record.levels["avx2"] == "was not asked for"


def test_cxx_comes_first(fake_compiler: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, people cannot choose their compiler."""
    fake_compiler("echo ordinary", "c++")
    chosen = fake_compiler('echo "chosen $1"', "mine")
    assert find_compiler()[0] == building.Compiler((str(chosen.with_name("c++")),), "ordinary")
    monkeypatch.setenv("CXX", "mine --launcher")
    assert find_compiler()[0] == building.Compiler((str(chosen), "--launcher"), "chosen --launcher")


def test_left_out_on_request(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, CHARLM_NO_NATIVE=1 does not keep the compiler from running."""
    monkeypatch.setenv("CHARLM_NO_NATIVE", "1")
    monkeypatch.setattr(building, "find_compiler", lambda *_: pytest.fail("a compiler was looked for"))
    assert build(source, tmp_path / "lib").reason == "CHARLM_NO_NATIVE was set at installation"


def test_windows_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an installation on Windows ends with something obscure."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert build(source, tmp_path / "lib").reason == "GCC or Clang builds it, and this is Windows"


@needs_compiler
def test_a_failed_build_removes_the_earlier_libraries(source: Path, tmp_path: Path) -> None:
    """If this fails, libraries of another version stay in an editable installation."""
    target = tmp_path / "lib"
    assert build(source, target, levels=["portable"]).built == ["portable"]
    (source / "native.cpp").write_text("this is no C++;\n", encoding="utf-8")
    record = build(source, target, levels=["portable"])
    assert "native.cpp:1:1: error" in record.reason
    assert str(tmp_path) not in record.reason
    assert [path.name for path in target.iterdir()] == ["build.json"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written(place: str, source: Path, tmp_path: Path) -> None:
    """If this fails, a read-only folder ends the installation."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    record = build(source, tmp_path / place)
    assert record.reason
    assert not record.built


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    """If this fails, an incomplete source tree ends the installation."""
    record = build(tmp_path / "nowhere", tmp_path / "lib")
    assert record.reason
    assert read_record(tmp_path / "lib") == record


def test_the_fingerprint_follows_sources_and_flags(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a library that is out of date goes unnoticed."""
    seen = {fingerprint(source)}
    (source / "notes.txt").write_text("no matter", encoding="utf-8")
    assert fingerprint(source) in seen
    (source / "more.h").write_text("// matters\n", encoding="utf-8")
    seen.add(fingerprint(source))
    (source / "more.h").rename(source / "other.h")
    seen.add(fingerprint(source))
    monkeypatch.setattr(building, "COMMON", (*building.COMMON, "-g"))
    seen.add(fingerprint(source))
    assert len(seen) == 4


@needs_compiler
def test_one_library_with_flags_of_a_tests_own(source: Path, tmp_path: Path) -> None:
    """If this fails, tests cannot compile the engine with a sanitizer."""
    file = tmp_path / "own.so"
    assert compile_one(source, file, [*flags_of("portable"), "-DPROCESSOR=7"], openmp=False) == ""
    assert ctypes.CDLL(str(file)).charlm_processor_has(b"") == 7
    assert "error" in compile_one(source, file, ['-DCHARLM_ISA="x"', "-DVERSION=1", "-DPROCESSOR=)"])


# -- choosing ----------------------------------------------------------------------------------------------------------


@needs_compiler
def test_the_fastest_is_chosen_and_loaded_once(installed: Callable[..., Path]) -> None:
    """If this fails, a slower library than the processor can use is taken."""
    installed()
    assert library.reason() is None
    assert list(library.available()) == NAMES
    fastest = next(name for name, why in library.available().items() if not why)
    assert library.choose() == fastest
    assert library.load(fastest) is library.load(fastest)
    assert library.record() is not None


@needs_compiler
def test_a_processor_without_them_gets_the_portable_one(installed: Callable[..., Path]) -> None:
    """If this fails, a processor is given instructions that it does not have."""
    record = read_record(installed(flags=("-DPROCESSOR=0",)))
    assert library.choose() == "portable"
    for level in set(record.built) - {"portable"}:
        assert library.available()[level] == f"this processor has no {level}"
        with pytest.raises(UsageError, match=f"this processor has no {level}"):
            library.load(level)


@needs_compiler
def test_charlm_isa_forces_one(installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, CHARLM_ISA is ignored, or a wrong one is not explained."""
    installed(levels=["portable"])
    monkeypatch.setenv("CHARLM_ISA", "portable")
    assert library.choose() == "portable"
    monkeypatch.setenv("CHARLM_ISA", "sse9")
    with pytest.raises(UsageError, match=r"^CHARLM_ISA=sse9: there is no such .*expected one of those .*: portable$"):
        library.choose()
    monkeypatch.setenv("CHARLM_ISA", "avx2")
    with pytest.raises(UsageError, match=r"^CHARLM_ISA=avx2: was not built: was not asked for; expected .*: portable$"):
        library.choose()
    with pytest.raises(UsageError, match="there is no such instruction set"):
        library.load("sse9")


def _record(target: Path, **changes: Any) -> None:
    content = {"levels": dict.fromkeys(NAMES, "built"), "reason": "", "compiler": "c++", "version": "1"}
    content |= {"openmp": True, "seconds": 1.0, "fingerprint": ""} | changes
    target.mkdir(exist_ok=True)
    (target / "build.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the libraries are looked for: a folder that does not exist yet."""
    monkeypatch.setattr(library, "FOLDER", tmp_path / "lib")
    monkeypatch.setattr(library, "SOURCE", source)
    return tmp_path / "lib"


def test_a_source_tree_that_was_never_installed(place: Path) -> None:
    """If this fails, charlm on PYTHONPATH alone does not start, or does not say what to do."""
    expected = "the native engine has not been built here (pip install builds it)"
    assert library.reason() == expected
    assert library.available() == dict.fromkeys(NAMES, expected)
    assert library.record() is None
    with pytest.raises(UsageError, match="has not been built here"):
        library.choose()


def test_the_missing_compiler_is_named(place: Path) -> None:
    """If this fails, nobody learns that a compiler would make charlm faster."""
    _record(place, levels=dict.fromkeys(NAMES, "x"), reason="no C++ compiler was found (looked for $CXX)")
    assert library.reason() == (
        "the native engine was not built: no C++ compiler was found (looked for $CXX); install one and reinstall charlm"
    )


def test_a_long_reason_becomes_one_short_line(place: Path) -> None:
    """If this fails, a compiler's complaints flood the terminal."""
    _record(place, reason="error: broken\n" * 50)
    said = library.reason()
    assert said is not None
    assert "\n" not in said
    assert len(said) < 250


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"levels": 1, "reason": 2}', '"text"', "null", "\\xff"])
def test_a_record_of_another_version(content: str, place: Path) -> None:
    """If this fails, a record that an older charlm wrote ends the program."""
    place.mkdir()
    (place / "build.json").write_bytes(content.encode("latin-1"))
    assert library.reason() == "the native engine was built from another charlm; reinstall: pip install -e ."


def test_sources_newer_than_the_build(place: Path) -> None:
    """If this fails, an editable installation runs yesterday's engine after a pull."""
    _record(place, fingerprint="of other sources")
    assert library.reason() == "the native engine was built from another charlm; reinstall: pip install -e ."


def test_a_library_that_cannot_be_loaded(place: Path, source: Path) -> None:
    """If this fails, a damaged library ends the program."""
    _record(place, fingerprint=fingerprint(source))
    (place / "charlm_native_portable.so").write_bytes(b"no library")
    said = library.reason()
    assert said is not None
    assert said.startswith("the native engine cannot be loaded: ")
    assert set(library.available().values()) == {said}


@needs_compiler
@needs_x86
def test_one_library_that_cannot_be_loaded_is_passed_over(installed: Callable[..., Path]) -> None:
    """If this fails, one damaged library makes the others useless."""
    target = installed(levels=["portable", "avx2"])
    (target / "charlm_native_avx2.so").write_bytes(b"no library")
    assert library.choose() == "portable"
    assert library.available()["avx2"].startswith("the native engine cannot be loaded: ")


@needs_compiler
def test_without_the_portable_library_nothing_is_built(installed: Callable[..., Path]) -> None:
    """If this fails, nobody can be asked what the processor has."""
    (installed() / "charlm_native_portable.so").unlink()
    assert library.reason() == "the native engine has not been built here (pip install builds it)"


@needs_compiler
@pytest.mark.parametrize("change", ["return -1", "other function"])
def test_a_library_with_another_interface(
    change: str, source: Path, installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, functions are called that the library does not have or that mean something else."""
    text = _trivial(-1) if change == "return -1" else _trivial().replace("charlm_interface_version", "older")
    (source / "native.cpp").write_text(text, encoding="utf-8")
    installed(levels=["portable"])
    assert library.reason() == "the native engine was built from another charlm; reinstall: pip install -e ."


@needs_compiler
@pytest.mark.parametrize("name", [*(kind.__name__ for kind in interface.STRUCTURES), "Kind", "Rule"])
def test_a_library_with_another_layout_is_refused(name: str, source: Path, installed: Callable[..., Path]) -> None:
    """If this fails, C++ reads fields at wrong addresses, or runs a cell or an optimizer that it does not have."""
    (source / "native.cpp").write_text(_trivial(**{name: 8}), encoding="utf-8")
    installed(levels=["portable"])
    assert library.reason() == "the native engine was built from another charlm; reinstall: pip install -e ."
    assert set(library.available().values()) == {library.reason()}


# -- the wheel ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> Any:
    """The build hook over a source tree with the trivial engine; hatchling itself is not needed."""

    class Interface:
        def __init__(self, root: Path) -> None:
            self.root = str(root)
            silent = lambda *_: None  # noqa: E731
            self.app = SimpleNamespace(display_info=silent, display_warning=silent)

    module = ModuleType("hatchling.builders.hooks.plugin.interface")
    module.BuildHookInterface = Interface  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("charlm_hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    native = tmp_path / "tree" / script.NATIVE
    native.mkdir(parents=True)
    source.rename(native / "source")
    (native / "build.py").write_bytes(Path(building.__file__).read_bytes())
    return script.NativeBuildHook(tmp_path / "tree")


def _tree(hook: Any) -> set[str]:
    return {str(path.relative_to(hook.root)) for path in Path(hook.root).rglob("*") if path.is_file()}


@needs_compiler
def test_a_wheel_carries_the_libraries_and_names_its_platform(hook: Any) -> None:
    """If this fails, a wheel comes without its libraries, or is installed where they cannot run."""
    before = _tree(hook)
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize("standard", data)
    places = set(data["force_include"].values())
    assert {"charlm/model/native/lib/build.json", "charlm/model/native/lib/charlm_native_portable.so"} <= places
    assert all(Path(file).is_file() for file in data["force_include"])
    assert data["tag"].startswith("py3-none-")
    assert not data["tag"].endswith("any")
    assert data["pure_python"] is False
    hook.finalize("standard", data, "")
    assert not any(Path(file).exists() for file in data["force_include"])
    assert _tree(hook) == before


def test_a_wheel_without_libraries_runs_everywhere(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a wheel that holds Python alone is refused on other platforms, or does not say what is missing."""
    monkeypatch.setenv("CHARLM_NO_NATIVE", "1")
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize("standard", data)
    assert list(data["force_include"].values()) == ["charlm/model/native/lib/build.json"]
    assert "tag" not in data
    assert data["pure_python"] is True
    hook.finalize("standard", data, "")


@needs_compiler
def test_an_editable_installation_builds_in_the_tree(hook: Any) -> None:
    """If this fails, developers have no native engine."""
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize("editable", data)
    hook.finalize("editable", data, "")
    assert isinstance(read_record(Path(hook.root) / "charlm/model/native/lib"), Record)
    assert "charlm/model/native/lib/charlm_native_portable.so" in _tree(hook)
    assert data == {"force_include": {}, "pure_python": True}


def test_nothing_ends_an_installation(hook: Any) -> None:
    """If this fails, an error in the build itself makes charlm impossible to install."""
    (Path(hook.root) / "charlm/model/native/build.py").write_text("raise RuntimeError('broken')\n", encoding="utf-8")
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize("standard", data)
    hook.finalize("standard", data, "")
    assert data == {"force_include": {}, "pure_python": True}
