"""Many adapters on one base model, of which each row of a batch uses its own.

``attaching`` holds them on the weights; several pools may share these. PEFT's own ways to serve
adapters were measured and left: ``set_adapter`` visits every matrix of every adapter (0.3 ms a
layer with 64 of them) and serves one adapter at a time, and the hooks of its ``generate`` stay
behind when it fails.

PEFT's restrictions on mixed batches hold: plain LoRA only. And a layer must see the rows: the
vision part sees pictures, so a batch with an adapter on it has that adapter alone (``alone``).

A pool belongs to one thread, but for ``cards``, ``knows`` and ``read``, which any thread may call.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError
from router_runtime.experts.adapter_folder import AdapterFolder, read_adapter
from router_runtime.experts.attaching import NO_ADAPTER, Attachment
from router_runtime.experts.base_model import BaseModel
from router_runtime.experts.fitting import check_fit, needs_own_batch


@dataclass(frozen=True)
class AdapterCard:
    """What a pool knows of one adapter.

    Parameters
    ----------
    name : str
    path : Path
    n_bytes : int
        Of its matrices in memory.
    alone : bool
        No other adapter is in its batches: it adapts what does not see their rows.
    inner : str or None
        What PEFT calls it; None while it is not in memory.
    """

    name: str
    path: Path
    n_bytes: int
    alone: bool
    inner: str | None


class AdapterPool:
    """The adapters of one base model.

    Parameters
    ----------
    base : BaseModel
        Its weights may be those of other pools as well.
    base_name : str or None
        What the base model alone is called; no adapter may have that name.
    root : Path or None
        Folder below which adapters must lie.
    max_bytes : int or None
        Memory that the adapters may take together.
    evict : bool
        Beyond it, put the least recently used back to disk instead of refusing the new one.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        base_name: str | None = None,
        root: Path | None = None,
        max_bytes: int | None = None,
        evict: bool = False,
    ) -> None:
        self.base = base
        self.base_name = base_name or base.name
        self._root = root
        self._max_bytes = max_bytes
        self._evict = evict
        self._cards: dict[str, AdapterCard] = {}  # least recently used first
        self._attached: set[str] = set()
        self._leave = weakref.finalize(self, _leave, base.attached, self._attached)

    @property
    def cards(self) -> tuple[AdapterCard, ...]:
        """The adapters, by name."""
        return tuple(sorted(self._cards.copy().values(), key=lambda card: card.name))

    @property
    def n_bytes(self) -> int:
        """Memory that the adapters take now."""
        return sum(card.n_bytes for card in self.cards if card.inner is not None)

    def knows(self, name: str) -> bool:
        """Return whether there is an adapter of that name."""
        return name in self._cards

    def is_alone(self, name: str | None) -> bool:
        """Return whether batches with this adapter have no other."""
        return name is not None and self._cards[name].alone

    def read(self, name: str, path: str | Path) -> AdapterFolder:
        """Read an adapter and check that it fits; nothing changes yet.

        Raises
        ------
        ConfigError
            Its name is taken or not allowed, or it lies where it may not.
        ArtifactError
            It cannot be served, or not on this base.
        """
        self._check_free(name)
        folder = read_adapter(name, path, root=self._root)
        check_fit(folder, self.base.shape)
        return folder

    def add(self, folder: AdapterFolder) -> AdapterCard:
        """Take an adapter that ``read`` returned into memory.

        Raises
        ------
        ConfigError
            Its name is taken, or there is no room for it.
        ArtifactIntegrityError
            Its numbers are not finite.
        """
        self._check_free(folder.name)
        card = AdapterCard(
            name=folder.name,
            path=folder.path,
            n_bytes=folder.n_parameters * self.base.dtype.itemsize,
            alone=needs_own_batch(folder, self.base.shape),
            inner=None,
        )
        self._make_room((card,))
        card = self._attach(card, folder)
        self._cards = {**self._cards, card.name: card}
        return card

    def remove(self, name: str) -> None:
        """Forget an adapter; its folder stays.

        Raises
        ------
        ConfigError
            There is none of that name.
        """
        card = self._cards.get(name)
        if card is None:
            raise ConfigError(f"There is no adapter '{name}' ({self._known()}).")
        self._cards = {key: value for key, value in self._cards.items() if key != name}
        self._detach(card)

    def fits_together(self, names: Sequence[str | None]) -> bool:
        """Return whether these adapters can be in memory, and in a batch, at once."""
        cards = [self._cards[name] for name in set(names) if name is not None]
        if any(card.alone for card in cards) and len(set(names)) > 1:
            return False
        return self._max_bytes is None or sum(c.n_bytes for c in cards) <= self._max_bytes

    def close(self) -> None:
        """Take all adapters off the base, which others may go on using."""
        self._cards = {}
        self._leave()
        with self.base.attached.turn():
            pass

    @contextmanager
    def using(self, names: Sequence[str | None], *, short: bool = False) -> Iterator[Any]:
        """Give each row of a batch its adapter, None the base model alone; yields the model.

        Adapters that were put back to disk are loaded again. Nobody else calls the model
        meanwhile, but in the pauses of a turn that is not ``short``.

        Raises
        ------
        ConfigError
            There is no adapter of that name.
        ArtifactError
            The folder of an adapter that was put back to disk is no longer what it was.
        """
        with self.base.attached.turn(short=short):
            self._bring([name for name in dict.fromkeys(names) if name is not None])
            inner = [NO_ADAPTER if name is None else self._cards[name].inner for name in names]
            with self.base.attached.rows([str(row) for row in inner]) as model:
                yield model

    def _bring(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._cards:
                raise ConfigError(f"There is no adapter '{name}' ({self._known()}).")
        wanted = [self._cards[name] for name in names]
        missing = [card for card in wanted if card.inner is None]
        self._make_room(missing, keep=names)
        for card in missing:
            folder = read_adapter(card.name, card.path, root=self._root)
            check_fit(folder, self.base.shape)
            if folder.n_parameters * self.base.dtype.itemsize != card.n_bytes:
                raise ArtifactError(
                    f"Adapter '{card.name}' in {card.path} is another than the one that was "
                    "added. Remove it and add it again."
                )
            self._cards[card.name] = self._attach(card, folder)
        cards = self._cards.copy()
        for name in names:
            cards[name] = cards.pop(name)  # now the most recently used
        self._cards = cards

    def _make_room(self, cards: Sequence[AdapterCard], *, keep: Sequence[str] = ()) -> None:
        if self._max_bytes is None or not cards:
            return
        needed = sum(card.n_bytes for card in cards)
        if self._evict:
            for card in list(self._cards.values()):
                if self.n_bytes + needed <= self._max_bytes:
                    return
                if card.inner is not None and card.name not in keep:
                    self._detach(card)
                    self._cards[card.name] = replace(card, inner=None)
        if self.n_bytes + needed > self._max_bytes:
            remedy = "Remove adapters, raise it" + ("" if self._evict else ", or set 'evict'")
            raise ConfigError(
                f"Adapter '{cards[0].name}' needs {_mb(needed)} beside {_mb(self.n_bytes)} in use, "
                f"but 'max_adapter_mb' is {_mb(self._max_bytes)}. {remedy}."
            )

    def _attach(self, card: AdapterCard, folder: AdapterFolder) -> AdapterCard:
        inner = self.base.attached.add(folder.modules, self._tensors(folder))
        self._attached.add(inner)
        return replace(card, inner=inner)

    def _tensors(self, folder: AdapterFolder) -> Mapping[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for key, tensor in safetensors.torch.load(folder.data).items():
            found[key] = tensor.to(device=self.base.device, dtype=self.base.dtype, copy=True)
            if not torch.isfinite(found[key]).all():
                raise ArtifactIntegrityError(
                    f"Adapter '{folder.name}': its tensor '{key}' has numbers that are not finite "
                    f"in {self.base.dtype}. Train it again, or serve the base in float32."
                )
        return found

    def _detach(self, card: AdapterCard) -> None:
        if card.inner is not None:
            self.base.attached.drop(card.inner)
            self._attached.discard(card.inner)

    def _check_free(self, name: str) -> None:
        if name == self.base_name:
            raise ConfigError(f"'{name}' is the base model's name; give the adapter another.")
        if name in self._cards:
            raise ConfigError(
                f"There is already an adapter '{name}'. Remove it first, or choose another name."
            )

    def _known(self) -> str:
        return "known: " + (", ".join(sorted(self._cards)) or "none")


def _leave(attached: Attachment, inner: set[str]) -> None:
    """Also called where a pool is forgotten: in any thread, at any time."""
    while inner:
        attached.leave(inner.pop())


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.2f} MB"
