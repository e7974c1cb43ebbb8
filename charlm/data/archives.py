"""Reads named files out of a downloaded archive: .zip, .tar.gz or .gz, recognised by content.

Members are read as streams and never written under their own names, so absolute paths, ``..`` and links in an archive have
no effect. The caller limits the length of the result.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

_BLOCK = 1 << 18  # bytes
_TAR_LIMIT = 1 << 29  # bytes of an uncompressed tar file, in a temporary file
_TAR_MAGIC = slice(257, 262)  # where a tar file has the word "ustar"

_DAMAGE = (EOFError, RuntimeError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile)
"""What the standard library raises for a damaged, encrypted or unsupported archive."""


class _Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class ArchiveError(ValueError):
    """A file is not an archive, is damaged, or does not contain a member."""


def unpack(archive: BinaryIO, members: Sequence[str], scratch: Path) -> Iterator[bytes]:
    """Yield the bytes of the members, one member after the other, in blocks.

    Args:
        archive: the archive, seekable. A .gz without a tar file inside is its only member, under any name.
        members: names without a folder; a member may be in any folder of the archive.
        scratch: folder of a temporary file without a name, for the tar file of a .tar.gz.

    Raises:
        ArchiveError: this is not an archive, it is damaged, it has no such member, or its tar file is larger than 512 MiB.
        OSError: it cannot be read, or the temporary file cannot be written.
    """
    try:
        if zipfile.is_zipfile(archive):
            yield from _from_zip(archive, members)
        elif _has_gzip_mark(archive):
            yield from _from_gzip(archive, members, scratch)
        else:
            raise ArchiveError("neither a .zip nor a .gz file")
    except _DAMAGE as error:
        raise ArchiveError(f"damaged or unsupported archive: {error}") from None


def _from_zip(archive: BinaryIO, members: Sequence[str]) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as opened:
        files = {_base(each.filename): each for each in opened.infolist() if not each.is_dir()}
        for name in members:
            if name not in files:
                raise ArchiveError(f"the archive has no file {name}")
            with opened.open(files[name]) as member:
                yield from _blocks(member)


def _from_gzip(archive: BinaryIO, members: Sequence[str], scratch: Path) -> Iterator[bytes]:
    archive.seek(0)
    with gzip.open(archive, "rb") as stream:
        is_tar = stream.read(512)[_TAR_MAGIC] == b"ustar"
        stream.seek(0)
        if is_tar:
            yield from _from_tar(stream, members, scratch)
        elif len(members) == 1:
            yield from _blocks(stream)
        else:
            raise ArchiveError(f"a .gz of a single file, expected {len(members)} files")


def _from_tar(stream: _Readable, members: Sequence[str], scratch: Path) -> Iterator[bytes]:
    # The order of the members can differ from the order in the archive, so it is unpacked first.
    with tempfile.TemporaryFile(dir=scratch) as plain:
        for block in _blocks(stream):
            if plain.tell() + len(block) > _TAR_LIMIT:
                raise ArchiveError(f"the tar file has more than {_TAR_LIMIT >> 20} MiB")
            plain.write(block)
        plain.seek(0)
        with tarfile.open(fileobj=plain, mode="r:") as opened:
            files = {_base(each.name): each for each in opened if each.isreg()}
            for name in members:
                if name not in files:
                    raise ArchiveError(f"the archive has no file {name}")
                with cast(IO[bytes], opened.extractfile(files[name])) as member:  # not None for a regular file
                    yield from _blocks(member)


def _has_gzip_mark(archive: BinaryIO) -> bool:
    archive.seek(0)
    return archive.read(2) == b"\x1f\x8b"


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _blocks(stream: _Readable) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block
