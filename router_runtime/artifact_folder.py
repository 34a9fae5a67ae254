"""The artifact folder as bytes: which files there are, read and replaced as a whole.

The manifest is written last and removed first, so that its existence means that the folder is
complete. What the files mean is not known here (``artifacts``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from router_runtime.errors import ArtifactError, ArtifactIntegrityError

MANIFEST = "manifest.json"
INCOMING = ".incoming"  # what a save has not finished; never read by a load
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_FILE_BYTES = 4 * 2**30


def write_files(target: Path, content: Mapping[str, bytes]) -> None:
    """Make ``content``, which includes the manifest, the files of ``target``.

    Raises
    ------
    ArtifactError
        If ``target`` is a file or holds files that are no artifact's, or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"'{target}' is a file; name a folder for the artifact.")
    try:
        _replace_files(target, content, _own_files(target))
    except OSError as error:
        raise ArtifactError(f"Cannot write artifact '{target}': {error}") from error


def _own_files(target: Path) -> set[str]:
    """Return the files in ``target`` that saving wrote; refuse any other."""
    if not target.exists():
        return set()
    present = {entry.name for entry in target.iterdir() if not entry.is_dir()}
    listed = {MANIFEST, *_listed(target / MANIFEST), *_listed(target / INCOMING / MANIFEST)}
    if foreign := sorted(present - listed):
        raise ArtifactError(
            f"'{target}' holds files that are not part of an artifact ({', '.join(foreign[:5])}); "
            "choose another output folder, or remove them."
        )
    return present


def _listed(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _replace_files(target: Path, content: Mapping[str, bytes], previous: set[str]) -> None:
    """Replace the files of ``previous`` by ``content``, the manifest last.

    While there is no manifest, the one in the subfolder lists what is or was an artifact's, so that
    the next save knows its own files again.
    """
    incoming = target / INCOMING
    fresh = incoming / "files"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        for name, data in content.items():
            _write_synced(fresh / name, data)
        owned = json.dumps({"files": sorted(previous | set(content))}).encode()
        _write_synced(fresh / INCOMING, owned)
        os.replace(fresh / INCOMING, incoming / MANIFEST)
        (target / MANIFEST).unlink(missing_ok=True)
        for name in previous - set(content):
            (target / name).unlink(missing_ok=True)
        for name in sorted(content, key=lambda name: name == MANIFEST):
            os.replace(fresh / name, target / name)
    finally:
        finished = (target / MANIFEST).exists()
        shutil.rmtree(incoming if finished else fresh, ignore_errors=True)


def replace_manifest(target: Path, text: bytes) -> None:
    """Put another manifest of the same files in the place of the present one, in one step.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    incoming = target / INCOMING
    try:
        incoming.mkdir(exist_ok=True)
        _write_synced(incoming / MANIFEST, text)
        os.replace(incoming / MANIFEST, target / MANIFEST)
        shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"Cannot write artifact '{target}': {error}") from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def find_folder(folder: str | Path) -> Path:
    """Return the complete artifact folder that a path names, or is in.

    Raises
    ------
    ArtifactError
        If there is none.
    """
    path = Path(folder)
    try:
        return _complete_folder(path)
    except OSError as error:
        raise ArtifactError(f"Artifact '{path}' cannot be read: {error}") from error


def _complete_folder(path: Path) -> Path:
    if path.suffix in (".pth", ".joblib", ".json") and not path.is_dir():
        path = path.parent
    if not path.is_dir():
        raise ArtifactError(
            f"Artifact folder '{path}' does not exist. Train one with: router-train run CONFIG"
        )
    if not (path / MANIFEST).is_file():
        legacy = " It looks like a folder of nn_router.pth files; convert it with: "
        legacy += f"model-router import-artifact {path} --output FOLDER"
        hint = legacy if list(path.glob("*.pth")) else ""
        raise ArtifactError(f"'{path}' has no {MANIFEST}: it is not a complete artifact.{hint}")
    return path


def manifest_bytes(path: Path) -> bytes:
    """Return the manifest of a folder."""
    try:
        return _read_bounded(path / MANIFEST, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ArtifactError(f"Artifact '{path}' cannot be read: {error}") from error


def checked_files(path: Path, digests: Mapping[str, str], *, manifest: bytes) -> dict[str, bytes]:
    """Read every listed file once, so that what is checked is what is used.

    Parameters
    ----------
    path : Path
        The folder.
    digests : mapping of name to hex sha256
        What ``manifest`` lists.
    manifest : bytes
        As read before; tells a folder that is being replaced from a damaged one.

    Raises
    ------
    ArtifactIntegrityError
        If a file is missing, changed, extra or too large.
    ArtifactError
        If the folder cannot be read, or was replaced meanwhile.
    """
    try:
        return _checked_files(path, digests)
    except (ArtifactIntegrityError, OSError) as error:
        if not (path / MANIFEST).is_file() or manifest_bytes(path) != manifest:
            message = f"Artifact '{path}' was replaced while it was read. Load it again."
            raise ArtifactError(message) from error
        if isinstance(error, ArtifactIntegrityError):
            raise
        raise ArtifactError(f"Artifact '{path}' cannot be read: {error}") from error


def _checked_files(path: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    present = {entry.name for entry in path.iterdir() if entry.is_file()} - {MANIFEST}
    if missing := sorted(set(digests) - present):
        raise ArtifactIntegrityError(f"Artifact '{path}': file '{missing[0]}' is missing.")
    if extra := sorted(present - set(digests)):
        raise ArtifactIntegrityError(
            f"Artifact '{path}': file '{extra[0]}' is not in its manifest. Remove it."
        )
    files = {}
    for name, digest in digests.items():
        data = _read_bounded(path / name, MAX_FILE_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactIntegrityError(
                f"Artifact '{path}': file '{name}' was changed after training. Restore or retrain."
            )
        files[name] = data
    return files


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise ArtifactIntegrityError(
                f"'{path}' has {size} bytes, more than the {limit} that are read. Restore or "
                "retrain."
            )
        return stream.read(size)
