"""Where the pictures of a data file lie: in the row, beside the file, or in tar files of a folder.

A folder of uncompressed ``*.tar`` files works like a folder of their members. Members are read by
name through an index of offsets; nothing is ever extracted, so a member called ``../../x`` or a
link harms nobody. Equal pictures share one ``Image``, and each is decoded once to prove that it
does.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from router_runtime.errors import DataError, QueryError
from router_runtime.images import DEFAULT_LIMITS, ImageLimits, load_image, verify
from router_runtime.prediction.encoders.pictures_ahead import map_ahead, processors
from router_runtime.types import Image

T = TypeVar("T")

PLACEHOLDER: Final = "<image>"
"""Stands in a conversation's text for the next picture."""


_ROWS_AHEAD: Final = 32


class _Member(NamedTuple):
    tar: Path
    offset: int
    size: int


class Pictures:
    """Turns what rows say about pictures into checked, shared ``Image`` objects.

    Parameters
    ----------
    root : Path
        Where relative paths and names start; paths that leave it are refused.
    limits : ImageLimits
        For every picture.
    """

    def __init__(self, root: Path, *, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._root = root
        self._limits = limits
        self._by_digest: dict[str, Image] = {}
        self._by_name: dict[str, Image] = {}

    def load(self, source: Any) -> Image:
        """Return the picture of one source.

        Parameters
        ----------
        source : str, bytes, Path, PIL.Image.Image, Image or mapping
            As in ``images.load_image``; a mapping is Hugging Face's ``{"bytes", "path"}``. A name
            that is no file under the root is looked up in the root's tar files, which are not
            opened before.

        Raises
        ------
        QueryError
            The picture is missing, not accepted or does not decode.
        """
        if isinstance(source, Image) and source.sha256 in self._by_digest:
            return self._by_digest[source.sha256]
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
            if source is None:
                raise QueryError("A picture's object has neither 'bytes' nor 'path'.")
        if isinstance(source, str) and len(source) < 1024:
            if source not in self._by_name:
                self._by_name[source] = self._loaded(self._member_bytes(source) or source)
            return self._by_name[source]
        return self._loaded(source)

    def ahead(
        self, rows: Iterable[T], sources: Callable[[T], Iterable[Any]]
    ) -> Generator[T, None, None]:
        """Yield the rows, while threads load the pictures of those that follow.

        ``load`` then finds them. What cannot be loaded is left to it, which tells.

        Parameters
        ----------
        rows : iterable
            Read some rows further than was yielded.
        sources : callable
            A row's pictures, as for ``load``.

        Notes
        -----
        Close the generator (``contextlib.closing``) where it may not be read to its end.
        """

        def prepared(row: T) -> T:
            for source in sources(row):
                with suppress(QueryError, DataError):
                    self.load(source)
            return row

        return map_ahead(prepared, rows, threads=processors(), ahead=_ROWS_AHEAD)

    def _loaded(self, source: Any) -> Image:
        image = load_image(source, limits=self._limits, base_dir=self._root)
        known = self._by_digest.get(image.sha256)
        if known is None:
            verify(image)
            known = self._by_digest.setdefault(image.sha256, image)
        return known

    def _member_bytes(self, name: str) -> bytes | None:
        if os.path.isfile(self._root / name):
            return None
        found = self._members.get(posixpath.normpath(name))
        if not found:
            return None
        if len(found) > 1:
            tars = " and ".join(member.tar.name for member in found[:2])
            raise QueryError(f"The picture {name!r} is in {tars}; names must be unique.")
        tar, offset, size = found[0]
        if size > self._limits.max_bytes:
            raise QueryError(
                f"The picture {name!r} has {size:,} bytes; at most {self._limits.max_bytes:,} are "
                "accepted."
            )
        with tar.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    @cached_property
    def _members(self) -> dict[str, tuple[_Member, ...]]:
        index: dict[str, tuple[_Member, ...]] = {}
        for path in sorted(self._root.glob("*.tar")):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isreg() and not member.issparse():
                            name = posixpath.normpath(member.name)
                            place = _Member(path, member.offset_data, member.size)
                            index[name] = (*index.get(name, ()), place)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise DataError(f"The tar file cannot be read: {error}.", file=str(path)) from error
        return index


def parts_of(text: str) -> list[dict[str, str]]:
    """Return a text as the parts of a message, with a picture for every ``PLACEHOLDER`` in it.

    Line breaks around a placeholder belong to it and go with it.
    """
    parts: list[dict[str, str]] = []
    for at, piece in enumerate(text.split(PLACEHOLDER)):
        if at:
            parts.append({"type": "image"})
        if said := piece.strip("\n"):
            parts.append({"type": "text", "text": said})
    return parts
