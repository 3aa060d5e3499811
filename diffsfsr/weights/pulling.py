"""Bringing weights here: the licence is asked for once, the bytes are compared with their hash before they get their name."""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from diffsfsr.errors import InputError, NotReady
from diffsfsr.weights.contents import why_not
from diffsfsr.weights.download import Bound, discard, download, need_room
from diffsfsr.weights.places import file_sha256, find, remedy
from diffsfsr.weights.records import accept, accepted, home, locked, pin, pinned, unpinning
from diffsfsr.weights.zoo import Entry, entry

# Bytes that a file may have whose size is not known: weights, archives of them, settings and vocabularies.
_MOST, _MOST_ARCHIVE, _MOST_TEXT = 16 << 30, 1 << 30, 16 << 20
_ZIP_FAULTS = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error, struct.error)


def pull(name: str, mirror: str | None = None, accept_licence: bool = False) -> Path:
    """Bring the file of that name, and what must lie beside it, to DIFFSFSR_HOME/weights; a good copy here is returned as it is.

    Args:
        mirror: an http(s) address that serves `Entry.file` below it; default DIFFSFSR_WEIGHTS_MIRROR, else the entry's source.
        accept_licence: needed once where `Entry.commercial` is False; the acceptance is recorded.

    The bytes go to FILE.part, which a later call continues; the hash is compared before the rename, so that a reader
    sees a whole, right file or none. Raises InputError (name, mirror, licence, size, hash), NotReady (no address, network, disk).
    """
    return pull_all([name], mirror, accept_licence)[name]


def pull_all(names: Iterable[str], mirror: str | None = None, accept_licence: bool = False) -> dict[str, Path]:
    """`pull` of several: name -> path. Licences and addresses of all are looked at before the first byte of any."""
    names = list(dict.fromkeys(names))
    mirror = _checked(mirror or os.environ.get("DIFFSFSR_WEIGHTS_MIRROR"))
    missing = _missing(names)
    for row in missing:
        if not mirror and row.address is None:
            raise NotReady(f"{row.name} has no public address: {remedy(row)}")
    _ask([row for row in missing if not row.commercial], accept_licence)
    for row in missing:
        _bring(row, mirror)
    for archive in {_archive(row.source.partition("!")[0]) for row in missing if "!" in row.source}:
        with locked(archive.name):
            archive.unlink(missing_ok=True)
    return {name: path for name in names if (path := find(name))}


# --- what is needed ---------------------------------------------------------------------------------------------------


def _missing(names: list[str]) -> list[Entry]:
    """What has to be brought for these names. Raises InputError for a wrong file that would be found before the right one."""
    missing: dict[str, Entry] = {}
    for name in names:
        parts = [entry(part) for part in (*entry(name).beside, name)]
        path = find(name)
        folder = path.parents[len(Path(entry(name).file).parts) - 1] if path else home()
        wrong = [row for row in parts if not _is(row, folder / row.file)]
        if wrong and folder != home():
            hint = f"remove or replace it{unpinning(wrong[0])}"
            raise InputError(f"{folder / wrong[0].file} is not the {wrong[0].name} it should be, and is found first: {hint}")
        missing |= {row.name: row for row in wrong}
    return list(missing.values())


def _is(wanted: Entry, path: Path) -> bool:
    sha256 = pinned(wanted)  # first, so that a damaged record is named before anything is brought
    if not path.is_file() or wanted.size not in (None, path.stat().st_size):
        return False
    try:
        return sha256 is None or file_sha256(path) == sha256
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): see to its permissions and its disk, or remove it") from e


def _ask(restricted: list[Entry], accept_licence: bool) -> None:
    known = accepted() if restricted else {}
    new = [row for row in restricted if row.name not in known]
    if new and not accept_licence:
        kinds = itertools.groupby(new, lambda row: row.licence + (f" ({row.note})" if row.note else ""))
        terms = "; ".join(f"{', '.join(row.name for row in rows)}: {kind}" for kind, rows in kinds)
        raise InputError(f"not for commercial use: {terms}; say --accept-licence once to pull on these terms")
    if new:
        accept([row.name for row in new])


def _checked(mirror: str | None) -> str | None:
    """The mirror's address without a last slash. Raises InputError for one below which there can be no files."""
    if not mirror:
        return None
    shown, do = repr(mirror.rpartition("@")[2]), "correct --mirror or DIFFSFSR_WEIGHTS_MIRROR"
    try:
        parts = urlsplit(mirror)
        host = (parts.hostname or "").encode("idna")
        whole = mirror.isascii() and mirror.isprintable() and " " not in mirror and parts.port != 0
        if not whole or parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
            raise ValueError("it needs a host, a port that can be, and neither name, query nor spaces")
    except ValueError as e:
        raise InputError(f"mirror {shown} is not an http or https address ({e}): {do}") from e
    return mirror.rstrip("/")


# --- bringing one file ------------------------------------------------------------------------------------------------


def _bring(wanted: Entry, mirror: str | None) -> None:
    """One file to its place under its own lock: of two processes the second finds what the first brought."""
    final = home() / wanted.file
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(wanted.name):
        if _is(wanted, final):
            return
        part = final.with_name(final.name + ".part")
        if mirror or "!" not in wanted.source:
            url = f"{mirror}/{wanted.file}" if mirror else wanted.source
            download(url, part, _bound(wanted))
            return _admit(wanted, part, final, url)
        url, _, member = wanted.source.partition("!")
        with locked(_archive(url).name):
            _extract(_fetched(url), member, part, wanted)
            _admit(wanted, part, final, wanted.source)


def _admit(wanted: Entry, part: Path, final: Path, url: str) -> None:
    """Give a whole file its name if it is the right one; pin it where nothing said which is right."""
    found, sha256 = file_sha256(part), pinned(wanted)
    if sha256 not in (None, found):
        discard(part)
        _archive(url.partition("!")[0]).unlink(missing_ok=True)
        hint = f"nothing was kept; use another mirror{unpinning(wanted)}"
        raise InputError(f"{url} gave a file with sha256 {found} where {wanted.name} has {sha256}: {hint}")
    if sha256 is None:
        if why := why_not(part, wanted.file):
            discard(part)
            _archive(url.partition("!")[0]).unlink(missing_ok=True)
            raise InputError(f"what {url} gave for {Path(wanted.file).name} {why}: nothing was kept; use another mirror")
        pin(wanted.name, found, part.stat().st_size, url)
    os.replace(part, final)
    discard(part)


def _bound(wanted: Entry) -> Bound:
    return Bound(_MOST_TEXT if wanted.file.endswith((".json", ".txt")) else _MOST, wanted.size)


# --- archives ---------------------------------------------------------------------------------------------------------


def _archive(url: str) -> Path:
    return home() / ".archives" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.zip"


def _fetched(url: str) -> Path:
    """The archive, whole; it stays until the pull has ended, for other members may be wanted."""
    archive = _archive(url)
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        part = archive.with_name(archive.name + ".part")
        download(url, part, Bound(_MOST_ARCHIVE))
        os.replace(part, archive)
        discard(part)
    return archive


def _extract(archive: Path, member: str, part: Path, wanted: Entry) -> None:
    """Stream one member of a zip archive to `part`; names and paths inside an archive never become paths here."""
    try:
        with zipfile.ZipFile(archive) as z:
            info = z.getinfo(_member(z.namelist(), member))
            _bound(wanted).refuse(wanted.source, info.file_size)
            need_room(part, info.file_size)
            with z.open(info) as source, open(part, "wb") as f:
                while block := source.read(1 << 20):  # never more than file_size, whatever the archive holds
                    f.write(block)
                f.flush()
                os.fsync(f.fileno())
    except (*_ZIP_FAULTS, InputError) as e:
        archive.unlink()
        discard(part)
        if isinstance(e, InputError):
            raise
        raise InputError(f"{wanted.source} is not a readable member of a zip archive ({e}): nothing was kept; use a mirror") from e


def _member(names: list[str], wanted: str) -> str:
    """The member of that path, else the only one of that file name: packs were republished with and without a folder."""
    found = [n for n in names if n == wanted] or [n for n in names if n.rpartition("/")[2] == wanted.rpartition("/")[2]]
    if len(found) != 1:
        raise ValueError(f"{len(found)} members are named {wanted}")
    return found[0]
