"""Writes ``docs/reference/``: every command and every config key, read from the code.

Run it (``make reference``) after a change of either; a test compares the pages with the code.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))

from command_pages import commands_page
from config_tables import Reference, Row, Section, introduction, kind_of, table

from router_runtime.config import RuntimeConfig
from router_runtime.experts.config import ExpertsConfig
from router_runtime.router_inference import CategoryConfig
from router_runtime.simulator.config import SimulatorConfig
from router_training.config import TrainingConfig
from router_training.labelling.config import LabelConfig
from router_training.make_prompted import MakePromptedConfig
from router_training.tiers import TiersConfig

REFERENCE: Final = Path(__file__).parent / "reference"


@dataclass(frozen=True)
class File:
    """A kind of config file.

    Parameters
    ----------
    name : str
        In a word or two.
    root : model class
        Validates it.
    read_by : str
        The commands that read it.
    example : str
        A commented one, in ``configs/``.
    """

    name: str
    root: type[BaseModel]
    read_by: str
    example: str


FILES: Final = (
    File(
        "runtime",
        RuntimeConfig,
        "`model-router route`, `serve`, `check-config` and all others "
        "with `--config`, `ModelRouter.from_config`",
        "router.yml",
    ),
    File(
        "training",
        TrainingConfig,
        "`router-train run` and its parts, `report`, `compare`, `leave-out`",
        "quickstart.yml",
    ),
    File(
        "labelling",
        LabelConfig,
        "`router-train label`, `collect`, `judge`, `audit`, `trust`",
        "label.yml",
    ),
    File(
        "experts",
        ExpertsConfig,
        "`model-router experts serve`, and targets of the kind `peft`",
        "experts-serve.yml",
    ),
    File("simulator", SimulatorConfig, "`model-router simulate`", "simulator.yml"),
    File("prompted", MakePromptedConfig, "`router-train make-prompted`", "prompted.yml"),
    File(
        "categories",
        CategoryConfig,
        "`router-train fit-sequence` and `route-sequence`",
        "router_config.yaml",
    ),
    File("tiers", TiersConfig, "`router-train make-tiers`", "tiers-tables.yml"),
)

DEFAULTS: Final = {
    (RuntimeConfig, "artifact"): "the base artifact",
    (TrainingConfig, "head"): "the default recipe's, see `RECIPE.md`",
}
"""Defaults that are said in words: one is a path on this machine, one would fill a page."""

HEAD: Final = """# Configuration

Every key of every config file, with its type, its default and what it means. This page is made from
the code (`make reference`).

- Files are YAML. A key that is not on this page is an error, as is one that is repeated; the
  message names the key.
- Paths are relative to the file that names them.
- `${NAME}` and `${NAME:-default}` in a value are filled from the environment when the file is read.
- Keys of providers and services are never written into a file: `api_key_env` and its like name the
  environment variable that holds one.
- A default in `code` is the value itself, *its defaults* those of the section that is linked.
  `NAME` in a heading stands for a name of yours, `[]` for each entry of a list.
"""


def configuration_page(reference: Reference) -> str:
    """Return the page of all config files; what is not described is left in ``reference``."""
    added = [(file, reference.add(file.root, file.name)) for file in FILES]
    parts = [HEAD]
    for file, sections in added:
        for section in sections:
            parts += _section(reference, section, file)
    return "\n".join(parts)


def _section(reference: Reference, section: Section, file: File) -> Iterator[str]:
    top = not section.place
    yield f"\n{'##' if top else '###'} {section.title}\n"
    if top:
        read = f"Read by {file.read_by}. An example with comments: `configs/{file.example}`."
        yield textwrap.fill(read, 100, break_long_words=False, break_on_hyphens=False) + "\n"
    if len(section.models) == 1:
        (model,) = section.models
        yield f"{introduction(model)}\n"
        yield from table(["key", "type", "default", "meaning"], map(_cells, reference.rows(model)))
        return
    rows = {
        model: [r for r in reference.rows(model) if r.key != "kind"] for model in section.models
    }
    first, *others = rows.values()
    common = [row for row in first if all(row in other for other in others)]
    yield f"`kind` is one of {len(rows)}:\n"
    yield from table(
        ["kind", "what it is"],
        ([f"`{kind_of(model)}`", introduction(model).replace("\n", " ")] for model in rows),
    )
    if common:
        yield "Whatever the kind:\n"
        yield from table(["key", "type", "default", "meaning"], map(_cells, common))
    for model, own in rows.items():
        if left := [row for row in own if row not in common]:
            yield f"`kind: {kind_of(model)}`:\n"
            yield from table(["key", "type", "default", "meaning"], map(_cells, left))


def _cells(row: Row) -> list[str]:
    return [f"`{row.key}`", row.kind, row.default, row.meaning]


def pages() -> tuple[dict[str, str], list[str]]:
    """Return the text of every page by file name, and what nothing describes."""
    reference = Reference(DEFAULTS)
    made = {
        "configuration.md": configuration_page(reference),
        "commands.md": commands_page(reference.undescribed),
    }
    tidy = {name: re.sub(r"\n{3,}", "\n\n", t.rstrip("\n") + "\n") for name, t in made.items()}
    return tidy, reference.undescribed


def main() -> None:
    """Write the pages."""
    made, undescribed = pages()
    if undescribed:
        sys.exit(f"Nothing describes {', '.join(undescribed)}.")
    REFERENCE.mkdir(exist_ok=True)
    for name, text in made.items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
