"""Compiles the native engine: the same C++ source once per instruction set, each into its own library.

Needs the standard library only: ``hatch_build.py`` runs this file at installation, when neither charlm nor torch can be
imported yet. No failure here stops an installation. Without a usable compiler the record says why, and charlm uses its
other engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ENTRY = "native.cpp"
RECORD = "build.json"
BUILT = "built"
SECONDS = 300.0
"""Time limit for compiling one library."""

_SECONDS_FOR_LITTLE = 30.0
"""Time limit for reporting the version or compiling three lines."""

COMPILERS = ("c++", "g++", "clang++")
COMMON = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
)


@dataclass(frozen=True)
class Level:
    """An instruction set: its name, the architectures that have it (empty: all), and the compiler flags."""

    name: str
    machines: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


_X86 = ("x86_64", "amd64")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *_AVX2)

LEVELS = (
    Level("amx", _X86, (*_AVX512, "-mamx-tile", "-mamx-bf16")),
    Level("avx512_bf16", _X86, (*_AVX512, "-mavx512bf16")),
    Level("avx512", _X86, _AVX512),
    Level("avx2", _X86, _AVX2),
    Level("portable"),
)
"""All instruction sets, the fastest first. ``portable`` runs on every processor of the architecture."""


@dataclass(frozen=True)
class Compiler:
    """A working compiler: its command and the line with its version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Record:
    """The outcome of a build.

    Attributes:
        levels: per instruction set ``built``, or why it was not built.
        reason: why there is no usable library at all; empty if there is one.
        compiler: the command of the compiler.
        version: the version that it reports.
        openmp: whether the libraries use several threads.
        seconds: the duration of the build.
        fingerprint: hash of the sources and flags, which detects an outdated build.
    """

    levels: dict[str, str]
    reason: str
    compiler: str
    version: str
    openmp: bool
    seconds: float
    fingerprint: str

    @property
    def built(self) -> list[str]:
        """The instruction sets that have a library, the fastest first."""
        return [level.name for level in LEVELS if self.levels.get(level.name) == BUILT]


def library_name(level: str) -> str:
    """The file name of an instruction set's library, the same on every system."""
    return f"charlm_native_{level}.so"


def flags_of(level: str) -> tuple[str, ...]:
    """The compiler flags of an instruction set, in addition to the common ones."""
    flags = next(known.flags for known in LEVELS if known.name == level)
    return (*flags, f'-DCHARLM_ISA="{level}"')


def fingerprint(source: Path) -> str:
    """Hash the sources and flags of a build; empty if there are no sources.

    Raises:
        OSError: a source cannot be read.
    """
    files = sorted(path for path in source.glob("*") if path.suffix in (".cpp", ".h", ".hpp", ".inc"))
    if not files:
        return ""
    digest = hashlib.sha256(json.dumps([COMMON, *([level.name, *flags_of(level.name)] for level in LEVELS)]).encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def read_record(target: Path) -> Record:
    """Read the record that :func:`build` left in a folder.

    Raises:
        FileNotFoundError: there is no record.
        OSError: the record cannot be read.
        ValueError: the record is not of this version.
    """
    content = json.loads((target / RECORD).read_text(encoding="utf-8"))
    try:
        record = Record(**content)
        usable = isinstance(record.levels, dict) and isinstance(record.reason, str)
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(f"{target / RECORD} is not a record of this version")
    return record


def find_compiler(limit: float = _SECONDS_FOR_LITTLE) -> tuple[Compiler | None, str]:
    """Find a working C++ compiler: ``$CXX``, then ``c++``, ``g++``, ``clang++``.

    Returns:
        The compiler and an empty string, or ``None`` and why there is none.
    """
    complaint = ""
    for text in (os.environ.get("CXX", ""), *COMPILERS):
        try:
            words = shlex.split(text)
        except ValueError:  # $CXX with an unclosed quotation mark
            continue
        path = shutil.which(words[0]) if words else None
        if path is None:
            continue
        command = (str(Path(path).absolute()), *words[1:])
        problem, output = _run([*command, "--version"], None, limit)
        if not problem:
            return Compiler(command, output.strip().partition("\n")[0]), ""
        complaint = complaint or f"{words[0]} --version: {problem}"
    return None, complaint or f"no C++ compiler was found (looked for $CXX, {', '.join(COMPILERS)})"


def compile_one(
    source: Path,
    target_file: Path,
    flags: Sequence[str],
    *,
    compiler: Compiler | None = None,
    openmp: bool = True,
    limit: float = SECONDS,
) -> str:
    """Compile one library, with ``flags`` after the common ones (``flags_of("avx2")``, or those of a test).

    Args:
        source: the folder with ``native.cpp``.
        compiler: the compiler; ``None``: find one.
        openmp: whether the compiler supports ``-fopenmp``.
        limit: seconds until a compiler that hangs is killed.

    Returns:
        Why it failed; empty if it succeeded.
    """
    if compiler is None:
        compiler, complaint = find_compiler(min(limit, _SECONDS_FOR_LITTLE))
        if compiler is None:
            return complaint
    every = [*COMMON, *(["-fopenmp"] if openmp else []), *flags]
    # A relative path keeps the location of the source out of messages and libraries.
    problem, _ = _run([*compiler.command, *every, "-o", str(target_file.absolute()), ENTRY], source, limit)
    return problem


def build(
    source: Path, target: Path, *, levels: Iterable[str] | None = None, flags: Sequence[str] = (), limit: float = SECONDS
) -> Record:
    """Compile the instruction sets and record the outcome of each. Never raises: the record holds errors.

    Afterwards ``target`` holds the libraries that the record names, and no others.

    Args:
        source: the folder with ``native.cpp``.
        target: folder for libraries and record; each file is written atomically.
        levels: names of instruction sets; ``None``: all of the architecture.
        flags: additional flags for every library.
        limit: time limit per library in seconds.
    """
    began = time.monotonic()
    wanted = {level.name for level in LEVELS} if levels is None else set(levels)
    found: dict[str, str] = {}
    compiler: Compiler | None = None
    openmp = False
    mark = ""
    try:
        mark = fingerprint(source)
        reason = _refusal()
        if not reason:
            compiler, reason = find_compiler(min(limit, _SECONDS_FOR_LITTLE))
        if compiler is not None:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=target) as folder:
                scratch = Path(folder)
                openmp, reason = _openmp(compiler, scratch, min(limit, _SECONDS_FOR_LITTLE))
                if not reason:
                    found = _compile_all(source, scratch, compiler, openmp, wanted, flags, limit)
                    reason = "" if found.get("portable") == BUILT else found.get("portable", "portable was not asked for")
                for name in [name for name, became in found.items() if became == BUILT]:
                    (scratch / library_name(name)).replace(target / library_name(name))
    except Exception as error:  # the installation continues after any error
        found, reason = {}, f"{type(error).__name__}: {error}"
    record = Record(
        levels={level.name: found.get(level.name, reason or "was not asked for") for level in LEVELS},
        reason=reason,
        compiler=shlex.join(compiler.command) if compiler else "",
        version=compiler.version if compiler else "",
        openmp=openmp,
        seconds=round(time.monotonic() - began, 2),
        fingerprint=mark,
    )
    _write(record, target)
    return record


def _refusal() -> str:
    """Why no build is attempted; empty: build."""
    if os.environ.get("CHARLM_NO_NATIVE", "0") not in ("", "0"):
        return "CHARLM_NO_NATIVE was set at installation"
    if sys.platform == "win32":
        return "GCC or Clang builds it, and this is Windows"
    return ""


def _openmp(compiler: Compiler, scratch: Path, limit: float) -> tuple[bool, str]:
    """Whether the compiler supports OpenMP (Apple's does not), and why it cannot build a library at all."""
    file = scratch / ENTRY
    file.write_text('#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n', encoding="utf-8")
    if not compile_one(scratch, scratch / "probe.so", (), compiler=compiler, limit=limit):
        return True, ""
    file.write_text('extern "C" int threads() { return 1; }\n', encoding="utf-8")
    problem = compile_one(scratch, scratch / "probe.so", (), compiler=compiler, openmp=False, limit=limit)
    return False, f"{Path(compiler.command[0]).name} cannot make a library: {problem}" if problem else ""


def _compile_all(
    source: Path, scratch: Path, compiler: Compiler, openmp: bool, wanted: set[str], flags: Sequence[str], limit: float
) -> dict[str, str]:
    """Compile the requested instruction sets in parallel; return ``built`` or the reason per name."""
    machine = platform.machine().lower()

    def one(level: Level) -> str:
        if level.machines and machine not in level.machines:
            return f"needs {level.machines[0]}, and this is {machine}"
        file = scratch / library_name(level.name)
        every = (*flags_of(level.name), *flags)
        return compile_one(source, file, every, compiler=compiler, openmp=openmp, limit=limit) or BUILT

    chosen = [level for level in LEVELS if level.name in wanted]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            return dict(zip((level.name for level in chosen), pool.map(one, chosen), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(record: Record, target: Path) -> None:
    """Write the record and remove libraries that it does not name. Ignores errors of the file system."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in {level.name for level in LEVELS} - set(record.built):
            (target / library_name(name)).unlink(missing_ok=True)
        whole = target / f".building-{os.getpid()}"
        whole.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        whole.replace(target / RECORD)
    except OSError:
        pass


def _run(command: Sequence[str], folder: Path | None, limit: float) -> tuple[str, str]:
    """Run a command with a time limit.

    Returns:
        Why it failed (empty: it succeeded), and its output.
    """
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"it cannot be run: {error.strerror or error}", ""
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"took more than {limit:g} s", ""
        finally:
            if process.returncode is None:  # timeout or interrupt: kill the processes of the compiler too
                _end(process)
        printed.seek(0)
        output = printed.read().decode("utf-8", errors="replace")
    return ("" if status == 0 else _gist(output) or f"ended with status {status}"), output


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, AttributeError):
        process.kill()
    process.wait()


def _gist(output: str) -> str:
    """Summarise the output of a compiler on one line: the first errors, or else the last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|undefined|cannot", line, re.IGNORECASE)]
    return "; ".join(errors[:3] or lines[-3:])[:500]
