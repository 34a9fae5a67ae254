"""Bytes of pictures that a data set of the hub keeps as files of its own.

``datasets`` hands such a picture on as a path into its cache, into an archive or to the hub. Only
those places are opened: a row must not name other files of this machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import DataError
from router_runtime.images import DEFAULT_LIMITS

_HUB: Final = "hf://datasets/"


class HubPictures:
    """Reads what rows of one data set point at.

    Parameters
    ----------
    path : str
        The hub id, or the local folder that is read like a hub data set.
    max_bytes : int
        Of one picture; a larger one is refused before it is read whole.
    """

    def __init__(self, path: str, *, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> None:
        config = importlib.import_module("datasets").config
        constants = importlib.import_module("huggingface_hub").constants
        local = [Path(path)] if Path(path).is_dir() else []
        caches = [Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
        self._roots = [root.resolve() for root in (*local, *caches)]
        self._remote = None if local else f"{_HUB}{path}"
        self._max_bytes = max_bytes

    def resolved(self, images: Iterable[Any]) -> list[Any]:
        """Return pictures, those given as a path of the data set's own as bytes.

        Raises
        ------
        DataError
            Such a path cannot be read, or has too many bytes.
        """
        return [self._resolved(image) for image in images]

    def _resolved(self, image: Any) -> Any:
        if not isinstance(image, Mapping) or image.get("bytes") is not None:
            return image
        path = image.get("path")
        if not isinstance(path, str) or not self._is_ours(path):
            return image
        try:
            with importlib.import_module("fsspec").open(path, "rb") as file:
                data = file.read(self._max_bytes + 1)
        except Exception as error:  # those of archives, of the hub and of the disk
            raise DataError(
                f"The picture's file cannot be read ({type(error).__name__}).", field="images"
            ) from error
        if len(data) > self._max_bytes:
            raise DataError(f"The picture has more than {self._max_bytes:,} bytes.", field="images")
        return data

    def _is_ours(self, path: str) -> bool:
        """Return whether the file, or the archive that holds it, belongs to the data set."""
        place = path.rpartition("::")[2]
        if place.startswith(_HUB):
            rest = None if self._remote is None else place.removeprefix(self._remote)
            return rest is not None and rest != place and rest[:1] in ("@", "/")
        if "://" in place:
            return False
        resolved = Path(place).resolve()
        return any(resolved.is_relative_to(root) for root in self._roots)
