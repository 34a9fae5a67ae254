"""Adapters on one base model: their matrices side by side, and one turn at a time.

PEFT's layers hold the matrices of all adapters side by side. Which of them a row uses is told to
each layer when it is called (PEFT's ``adapter_names``), by a hook that stays; so nothing is
switched between requests, and one batch holds rows of several adapters.

Whoever calls the model, or changes what is attached, has the ``turn``. An answer takes a turn of
many tokens, and ``pause`` between two of them lets a short one in: a router on the experts' own
base waits for a token, not for an answer.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

# First, since it makes torchvision importable, which peft imports.
from router_runtime.weights import torch_setup  # isort: skip

import peft
import torch
from peft.tuners.lora import LoraLayer, LoraModel

from router_runtime.errors import ArtifactError
from router_runtime.experts.adapter_folder import AdaptedModule

__all__ = ["NO_ADAPTER", "Attachment", "torch_setup"]

NO_ADAPTER: Final = "__base__"  # PEFT's word


class Attachment:
    """What is attached to one base model, by all that share its weights.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.tuner: Any = None
        self._hooked: set[str] = set()
        self._rows: list[str] = [NO_ADAPTER]
        self._made = 0
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._depth = 0
        self._hurried = 0
        self._left: deque[str] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a short turn."""
        return self._hurried

    @contextmanager
    def turn(self, *, short: bool = False) -> Iterator[None]:
        """Have the model to oneself; a thread that has it already goes on.

        Parameters
        ----------
        short : bool
            Go before turns that are not, and into their pauses.
        """
        self._take(short)
        try:
            while self._depth == 1 and self._left:
                self.drop(self._left.popleft())
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify_all()

    def _take(self, short: bool) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner == me:
                self._depth += 1
                return
            self._hurried += short
            try:
                while self._owner is not None or (self._hurried and not short):
                    self._changed.wait()
            finally:
                self._hurried -= short
            self._owner, self._depth = me, 1

    def pause(self) -> None:
        """Let those with a short turn who wait now have it; called by the owner of a long one.

        What the model keeps between two calls of one answer is put back afterwards.
        """
        if not self._hurried:
            return
        rows, kept = self._rows, _remembered(self._model)
        with self._changed:
            me, depth = self._owner, self._depth
            self._owner, self._depth = None, 0
            self._changed.notify_all()
            while self._owner is not None or self._hurried:
                self._changed.wait()
            self._owner, self._depth = me, depth
        self._rows = rows
        for module, value in kept:
            module.rope_deltas = value

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[Any]:
        """Give each row of a batch what ``add`` returned, or ``NO_ADAPTER``; yields the model."""
        before, self._rows = self._rows, list(names)
        try:
            yield self._model
        finally:
            self._rows = before

    def forget(self) -> None:
        """Drop what the model keeps of pictures from call to call, before a prompt of another."""
        for module, _ in _remembered(self._model):
            module.rope_deltas = None

    def add(self, modules: Mapping[str, AdaptedModule], tensors: Mapping[str, torch.Tensor]) -> str:
        """Attach matrices, of the model's device and type; returns what they are called here.

        Raises
        ------
        ArtifactError
            A module cannot be told apart from another.
        """
        with self.turn():
            self._made += 1
            inner = f"expert_{self._made}"  # PEFT allows no '.', and never meets one twice
            try:
                self._inject(inner, list(modules))
                for name, module in modules.items():
                    layer = self._model.get_submodule(name)
                    for half in ("A", "B"):
                        weight = tensors[f"base_model.model.{name}.lora_{half}.weight"]
                        matrix = getattr(layer, f"lora_{half}")[inner]
                        matrix.weight = torch.nn.Parameter(weight, requires_grad=False)
                    layer.scaling[inner] = module.scale
            except BaseException:
                with suppress(Exception):
                    self.drop(inner)
                raise
            return inner

    def leave(self, inner: str) -> None:
        """Take off what ``add`` attached, with the next turn; waits for nobody."""
        self._left.append(inner)

    def drop(self, inner: str) -> None:
        """Take off what ``add`` attached."""
        with self.turn():
            if self.tuner is not None and inner in self.tuner.peft_config:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PEFT tells which adapter is active instead
                    self.tuner.set_adapter([])
                    self.tuner.delete_adapter(inner)

    def _inject(self, inner: str, modules: list[str]) -> None:
        config = peft.LoraConfig(r=1, target_modules=modules, inference_mode=True)
        if self.tuner is None:
            self.tuner = LoraModel(self._model, {inner: config}, inner, low_cpu_mem_usage=True)
        else:
            self.tuner.peft_config[inner] = config
            self.tuner.inject_adapter(self._model, inner, low_cpu_mem_usage=True)
        reached = set()
        for name, module in self._model.named_modules():
            if isinstance(module, torch.nn.Module) and isinstance(module, LoraLayer):
                if name not in self._hooked:
                    module.register_forward_pre_hook(self._tell, with_kwargs=True)
                    self._hooked.add(name)
                if inner in module.lora_A:
                    reached.add(name)
        if extra := reached ^ set(modules):
            raise ArtifactError(
                f"The module '{min(extra)}' cannot be told apart from another of the same name."
            )

    def _tell(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tell a layer the adapter of each row.

        What sees no rows can only be told one adapter for all, and is never given a guess.
        """
        rows, n = self._rows, len(args[0])
        if n != len(rows):
            own = {row for row in rows if row in layer.lora_A}
            if own and len(set(rows)) > 1:
                raise RuntimeError("this layer does not see the rows of the batch")
            rows = [rows[0] if own else NO_ADAPTER] * n
        kwargs["adapter_names"] = rows
        return args, kwargs


def _remembered(model: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a model that keep where a picture's tokens end (Qwen-VL), and that."""
    return [
        (module, module.rope_deltas)
        for module in model.modules()
        if getattr(module, "rope_deltas", None) is not None
    ]
