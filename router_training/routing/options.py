"""What ``generate-routing-data`` is asked for, and the options whose names contain an adapter's.

::

    --<adapter>-dataset PATH       --<adapter>-image-root FOLDER
    --train-samples-<adapter> N    --eval-samples-<adapter> N
    --train-images-<adapter> N     --eval-images-<adapter> N

An adapter is whatever has a data set. Numbers with an adapter's name go before those without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router_runtime.errors import ConfigError

_NAME: Final = r"(?P<adapter>[A-Za-z0-9][A-Za-z0-9._-]*)"
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "train_samples": re.compile(rf"--train-samples-{_NAME}"),
    "eval_samples": re.compile(rf"--eval-samples-{_NAME}"),
    "train_images": re.compile(rf"--train-images-{_NAME}"),
    "eval_images": re.compile(rf"--eval-images-{_NAME}"),
    "dataset": re.compile(rf"--{_NAME}-dataset"),
    "image_root": re.compile(rf"--{_NAME}-image-root"),
}
_KNOWN: Final = (
    "--<adapter>-dataset PATH, --<adapter>-image-root FOLDER, --train-samples-<adapter> N, "
    "--train-images-<adapter> N, --eval-samples-<adapter> N, --eval-images-<adapter> N; see --help"
)


@dataclass(frozen=True)
class Quota:
    """How much of one adapter goes to a part.

    Parameters
    ----------
    samples : int or None
        Rows; None: all that there are.
    images : int or None
        Different pictures that these rows may show; None: any number.
    """

    samples: int | None = None
    images: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it says nothing."""
        return self.samples is None and self.images is None


@dataclass(frozen=True)
class AdapterOptions:
    """One adapter's data set, and how much of it is wanted.

    Parameters
    ----------
    adapter : str
        The adapter's name, and later the candidate's.
    dataset : str
        As ``data.path`` of labelling: a file, a folder or a hub id.
    image_root : Path or None
        Where the rows' paths of pictures start; None: beside the file.
    train : Quota
        Of ``train.jsonl`` and ``val.jsonl`` together.
    held_out : Quota
        Of ``eval.jsonl``; nothing is held out where it says nothing.
    """

    adapter: str
    dataset: str
    image_root: Path | None = None
    train: Quota = Quota()
    held_out: Quota = Quota()


def parse_adapters(
    arguments: Sequence[str], *, train: Quota = Quota(), held_out: Quota = Quota()
) -> tuple[AdapterOptions, ...]:
    """Return the adapters that a command line names, in the order of their data sets.

    Parameters
    ----------
    arguments : sequence of str
        Words such as ``--calendar-dataset``, ``PATH`` or ``--calendar-dataset=PATH``.
    train, held_out : Quota
        For adapters that have none of their own.

    Raises
    ------
    ConfigError
        A word that is none of the known forms, a repeated one, a number below 1, fewer than two
        adapters, or an option of an adapter without a data set.
    """
    given: dict[tuple[str, str], str] = {}
    for option, value in _options(arguments):
        kind, adapter = _kind_of(option)
        if (adapter, kind) in given:
            raise ConfigError(f"{option} is given twice; keep one.")
        given[adapter, kind] = value
    adapters = [adapter for adapter, kind in given if kind == "dataset"]
    if stray := [adapter for adapter, _ in given if adapter not in adapters]:
        raise ConfigError(f"Adapter '{stray[0]}' has no data set; add --{stray[0]}-dataset PATH.")
    if len(adapters) < 2:
        raise ConfigError(
            "Routing needs the data sets of at least two adapters; add --<adapter>-dataset PATH."
        )
    return tuple(
        AdapterOptions(
            adapter,
            given[adapter, "dataset"],
            _folder(given.get((adapter, "image_root"))),
            _quota(given, adapter, "train", train),
            _quota(given, adapter, "eval", held_out),
        )
        for adapter in adapters
    )


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        _kind_of(option)
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"{option} needs a value.")
            value = following
        if not value:
            raise ConfigError(f"{option} needs a value.")
        yield option, value


def _kind_of(option: str) -> tuple[str, str]:
    for kind, form in _FORMS.items():
        if found := form.fullmatch(option):
            return kind, found["adapter"]
    raise ConfigError(f"'{option}' is no known option. Known: {_KNOWN}.")


def _folder(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _quota(
    given: Mapping[tuple[str, str], str], adapter: str, part: str, otherwise: Quota
) -> Quota:
    def number(unit: str, default: int | None) -> int | None:
        text = given.get((adapter, f"{part}_{unit}"))
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise ConfigError(
                f"--{part}-{unit}-{adapter} is '{text}'; it must be a whole number from 1."
            )
        return int(text)

    return Quota(number("samples", otherwise.samples), number("images", otherwise.images))
