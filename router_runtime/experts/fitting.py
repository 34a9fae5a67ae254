"""Whether an adapter fits a base model, decided from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router_runtime.errors import ArtifactError
from router_runtime.experts.adapter_folder import AdapterFolder

_SHOWN = 4


@dataclass(frozen=True)
class BaseShape:
    """What an adapter must fit.

    Parameters
    ----------
    name : str
        The base model, as messages name it.
    known_as : tuple of str
        Names under which adapters may know it.
    linears : mapping
        (in_features, out_features) of every linear module by its name.
    others : frozenset of str
        Names of the modules that are not linear.
    row_parts : tuple of str
        Prefixes of the modules whose inputs are the rows of a batch: the language model. What sees
        pictures does not see rows.
    """

    name: str
    known_as: tuple[str, ...]
    linears: Mapping[str, tuple[int, int]]
    others: frozenset[str] = frozenset()
    row_parts: tuple[str, ...] = ()


def check_fit(adapter: AdapterFolder, base: BaseShape) -> None:
    """Refuse an adapter that was made for another model.

    Raises
    ------
    ArtifactError
        It names another base, adapts a module that the base does not have or cannot adapt, or one
        of another shape; the message names both.
    """
    who = f"Adapter '{adapter.name}'"
    if adapter.base_model is not None and not _same(adapter.base_model, base):
        raise ArtifactError(
            f"{who} was trained on '{adapter.base_model}', but the base model is '{base.name}'. "
            "Serve it on its own base; if the two are one model under two names, list the "
            "adapter's in 'base.known_as'."
        )
    unknown = [name for name in adapter.target_modules if not _present(name, base)]
    unknown += [name for name in adapter.modules if name not in base.linears]
    if unknown:
        other = [name for name in unknown if name in base.others]
        raise ArtifactError(
            f"{who} adapts {_listed(unknown)}, which '{base.name}' does not have"
            + (" as linear modules." if len(other) == len(unknown) else ".")
            + " It was made for another model, or with another version of its code."
        )
    for name, module in adapter.modules.items():
        found = (module.in_features, module.out_features)
        if found != base.linears[name]:
            raise ArtifactError(
                f"{who} adapts '{name}' as {found[0]} -> {found[1]}, but in '{base.name}' it is "
                f"{base.linears[name][0]} -> {base.linears[name][1]}. It was made for another "
                "model."
            )
    for name in adapter.target_modules:
        if not any(_ends(module, name) for module in adapter.modules):
            raise ArtifactError(
                f"{who} names the target module '{name}' but holds no weights for it. Save it "
                "again."
            )


def needs_own_batch(adapter: AdapterFolder, base: BaseShape) -> bool:
    """Return whether it adapts a module that does not see the rows of a batch."""
    return not all(module.startswith(base.row_parts) for module in adapter.modules)


def _same(name: str, base: BaseShape) -> bool:
    return _last_part(name) in {_last_part(known) for known in (base.name, *base.known_as)}


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith("." + name)


def _present(name: str, base: BaseShape) -> bool:
    return any(_ends(module, name) for module in base.linears)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name:.80}'" for name in dict.fromkeys(names[:_SHOWN]))
    more = len(names) - _SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
