"""The published router's service YAML (NeMo Agent Toolkit), turned into our runtime config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.types import Json
from router_runtime.yaml_config import read_yaml, validate

OBJECTIVE = "nn_objective_fn"
ROUTER = "sfc_router"

Key: TypeAlias = tuple[str, ...]

_CARRIED = ("model_thresholds", "model_costs")


class NatConversion(NamedTuple):
    """A converted config.

    ``config`` is what ``RuntimeConfig`` accepts; ``without_counterpart`` are the dotted keys of the
    original that mean nothing here, in the order of the file.
    """

    config: dict[str, Json]
    without_counterpart: tuple[str, ...]


def convert_nat_config(
    path: str | Path, *, artifact: str | Path = "../router_artifacts/imported"
) -> NatConversion:
    """Convert the ``nn_objective_fn`` block of a service YAML.

    Thresholds and cost factors keep their names and their meaning. Which artifact they belong to is
    not in the original, whose service opens a fixed path.

    Parameters
    ----------
    path : path
        The YAML file.
    artifact : path
        Artifact folder to write into the config, relative to where that will lie.

    Raises
    ------
    ConfigError
        If the file is no YAML mapping, repeats a key, has no such block or several, or a threshold
        or cost is not what ``RuntimeConfig`` accepts.
    """
    file = Path(path)
    content = read_yaml(file)
    name, block = _objective(file, content.get("functions"))
    config: dict[str, Json] = {"artifact": str(artifact)}
    config |= {key: block[key] for key in _CARRIED if block.get(key) is not None}
    validate(RuntimeConfig, config, source=f"{file}, functions.{name}")
    understood: set[Key] = {("functions", name, key) for key in ("_type", *_CARRIED)}
    understood |= set(_router_keys(content, name))
    lost = tuple(".".join(key) for key in _leaves(content) if not _covered(key, understood))
    return NatConversion(config, lost)


def _objective(file: Path, functions: Json) -> tuple[str, Mapping[str, Json]]:
    blocks = functions if isinstance(functions, dict) else {}
    found = [
        (str(name), block)
        for name, block in blocks.items()
        if isinstance(block, dict) and block.get("_type") == OBJECTIVE
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{file}: expected one block of 'functions' with '_type: {OBJECTIVE}', found "
            f"{len(found)}. Give the service's YAML in which the thresholds stand."
        )
    return found[0]


def _router_keys(content: Mapping[str, Json], objective: str) -> Iterator[Key]:
    """Yield the keys of router blocks that use the objective: that is what our router does."""
    blocks: dict[Key, Json] = {("workflow",): content.get("workflow")}
    blocks |= {("functions", str(name)): block for name, block in content["functions"].items()}
    for where, block in blocks.items():
        if not isinstance(block, dict) or block.get("_type") != ROUTER:
            continue
        if block.get("objective_fn") == objective:
            yield (*where, "_type")
            yield (*where, "objective_fn")


def _leaves(value: Json, prefix: Key = ()) -> Iterator[Key]:
    if not isinstance(value, dict) or not value:
        yield prefix
        return
    for key, entry in value.items():
        yield from _leaves(entry, (*prefix, str(key)))


def _covered(key: Key, understood: set[Key]) -> bool:
    return any(key[: len(known)] == known for known in understood)
