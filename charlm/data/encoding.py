"""Encodes a corpus as integers on disk, or finds it in the cache."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from charlm.data.cache import prune, remove_abandoned
from charlm.data.cache_entry import entry_path, install, load, write_description, write_ids
from charlm.data.encoded import Encoded, EncodingSettings, TextDigest
from charlm.data.fingerprint import Stamp, cache_sha256, cached_sha256, stamps
from charlm.data.folders import cache_part
from charlm.data.normalisation import normalisation
from charlm.data.records import RecordForm, RecordReader
from charlm.data.sources import Sources
from charlm.data.text_pass import hash_files
from charlm.data.verification import check_content, check_digest, check_size
from charlm.errors import CorpusError
from charlm.files import make_private_folder, temporary_sibling
from charlm.progress import Progress


def encode(
    sources: Sources,
    *,
    unit: str,
    encoding: str,
    newlines: str,
    normalise: str,
    records: str | None = None,
    verify: bool = False,
    recorded: TextDigest | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Return a corpus as integers, from the cache if it was encoded before.

    Args:
        sources: from :func:`charlm.data.corpora.locate`.
        unit: ``char`` or ``byte``.
        encoding: of the files, with ``char``. It does not apply to a text inside a card.
        newlines: ``unix`` converts CRLF and CR to LF; ``keep`` does not.
        normalise: a name of :data:`charlm.data.normalisation.NORMALISATIONS`.
        records: ``data.records``; ``None``: one stream.
        verify: hash the files and the cache entry even if they look unchanged.
        recorded: size and sha256 that a checkpoint expects; see :mod:`charlm.data.verification`.
        progress: counts bytes of the files.

    Raises:
        TextMismatchError: the files are not the ``recorded`` text.
        RecipeError: an unknown encoding or normalisation, or one that does not fit the unit.
        CorpusError: a file that cannot be read or is not text, a corpus without text, or a cache that cannot be written.
    """
    settings = EncodingSettings.validated(unit, encoding, newlines, normalise, records)
    paths = [file.path for file in sources.files if file.path is not None]
    began_ns = time.time_ns()
    seen = stamps(paths)
    if recorded is not None:
        check_size(sources, recorded)
    content = hash_files(sources, progress) if verify or not paths else cached_sha256(seen)
    if content is not None and (known := load(entry_path(content, sources, seen, settings), verify)) is not None:
        check_digest(sources, known.digest, recorded)
        cache_sha256(seen, content, began_ns=began_ns)
        return known
    if recorded is not None:
        check_content(sources, settings, recorded, progress)
    return _encode_into_cache(sources, settings, seen, began_ns, verify, recorded, progress)


def _encode_into_cache(
    sources: Sources,
    settings: EncodingSettings,
    seen: list[Stamp],
    began_ns: int,
    verify: bool,
    recorded: TextDigest | None,
    progress: Progress | None,
) -> Encoded:
    folder = cache_part("encodings")
    work = temporary_sibling(folder / "entry")
    try:
        remove_abandoned(folder)
        make_private_folder(work)
        found, meta = write_ids(work, sources, settings, progress)
        check_digest(sources, found.digest, recorded)
        if stamps([Path(stamp.path) for stamp in seen]) != seen:
            raise CorpusError(f"the corpus {sources.name} changed while it was read; start again when it is complete")
        entry = entry_path(found.content_sha256, sources, seen, settings)
        write_description(work, {**meta, "key": entry.name})
        install(work, entry, verify)
    except OSError as error:
        raise CorpusError(
            f"cannot write the encoded text to the cache {folder}: {error.strerror}; "
            "it needs about one byte per character; set CHARLM_CACHE to a writable folder with enough space"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    cache_sha256(seen, found.content_sha256, began_ns=began_ns)
    encoded = load(entry)
    if encoded is None:
        raise CorpusError(f"cannot read back the encoded text {entry}; remove that folder and start again")
    prune(keep=entry)
    return encoded


def preprocess(text: str, *, unit: str, newlines: str, normalise: str, records: str | None = None) -> str:
    """Change a string as :func:`encode` changes the text of a file: byte-order mark, line ends, normalisation, records."""
    if unit == "char":
        text = text.removeprefix("\ufeff")
        if newlines == "unix":
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = "".join(normalisation(normalise)([text]))
    form = RecordForm.of(records, unit)
    return text if form is None else "".join(RecordReader(form).characters([text], "the text", is_first=True))
