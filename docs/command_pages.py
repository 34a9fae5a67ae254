"""The page of every command with its options, read from the programs' own objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer
from config_tables import table
from typer.main import get_command

import router_runtime.cli
import router_training.cli
from router_runtime import cli_examples
from router_runtime.console import EXIT_STATUSES
from router_training import cli_examples as training_examples

HEAD: Final = """---
run: false
---

# Commands

Every command of the two programs, with its arguments and options. This page is made from the code
(`make reference`). `--help` says the same in a terminal; `--install-completion` lets the shell
complete commands and options. `model-router evaluate` is `router-train evaluate`.

Exit status, of every command:

"""

_EXTRA: Final = re.compile(
    r"(?:^|\s+)\[(?P<extra>(?:required|default: |[\d.]*<?=?x[<>]=?)[^\[]*)\]$"
)
_KINDS: Final = {
    "str": "text",
    "path": "path",
    "int": "integer",
    "int range": "integer",
    "float": "number",
    "float range": "number",
    "date": "date",
}


def commands_page(undescribed: list[str]) -> str:
    """Return the page; options without help are added to ``undescribed``."""
    lines = [HEAD.rstrip("\n"), ""]
    lines += table(["status", "what it says"], ([f"{s}", t] for s, t in EXIT_STATUSES.items()))
    runtime = get_command(router_runtime.cli.app)
    training = get_command(router_training.cli.app)
    examples = cli_examples.EXAMPLES
    lines += _program("model-router", runtime, examples, undescribed)
    lines += _program("router-train", training, training_examples.EXAMPLES, undescribed)
    return "\n".join(lines)


def _program(
    name: str, program: Any, examples: Mapping[str, Any], undescribed: list[str]
) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield f"{program.help.strip()}\n"
    for path, command in _commands(program, ()):
        yield f"\n### {name} {path}\n"
        yield from _command(f"{name} {path}", command, undescribed)
        if shown := examples.get(path):
            yield "```bash"
            for line, says in shown:
                yield f"# {says}\n{line}"
            yield "```\n"


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        elif not command.hidden:
            yield " ".join((*path, name)), command


def _command(line: str, command: Any, undescribed: list[str]) -> Iterator[str]:
    if not command.help:
        undescribed.append(line)
    yield f"{_markdown(inspect.cleandoc(command.help or ''))}\n"
    context = typer.Context(command, info_name=line)
    rows = []
    for parameter in command.params:
        shown = parameter.get_help_record(context)
        if shown is None:  # hidden
            continue
        names, value = _name_and_value(shown[0])
        said, default = _told(shown[1])
        if not said:
            undescribed.append(f"{line} {names[0]}")
        rows.append([", ".join(f"`{name}`" for name in names), value, default, _markdown(said)])
    if rows:
        yield from table(["argument or option", "value", "default", "meaning"], iter(rows))


def _name_and_value(shown: str) -> tuple[list[str], str]:
    """Split ``--image <list[Path]>`` into its names and, in a word, what is given."""
    names, _, value = shown.removesuffix(">").partition(" <")
    kind = value.lower()
    if kind.startswith("list["):
        kind = kind.removeprefix("list[").removesuffix("]")
    if kind.startswith("%y"):
        kind = "date"
    words = _KINDS.get(kind) or ", ".join(f"`{choice}`" for choice in kind.split("|") if choice)
    return re.split(r", | / ", names), words or "flag"


def _told(text: str) -> tuple[str, str]:
    """Split a help text from what is said at its end of default and bounds."""
    found = _EXTRA.search(text)
    if found is None:
        return text, ""
    default = ""
    bounds = []
    for part in found["extra"].split("; "):
        if part == "required":
            default = "required"
        elif part.startswith("default: "):
            default = f"`{part.removeprefix('default: ')}`"
        else:
            bounds.append(_bounds(part))
    said = text[: found.start()].strip()
    return " ".join([said, *bounds]) if said else "", default


def _bounds(part: str) -> str:
    """Say ``1<=x<=9`` and ``x>=1`` in words."""
    if both := re.fullmatch(r"(\S+)<=x<=(\S+)", part):
        return f"From {both[1]} to {both[2]}."
    return part.replace("x>=", "At least ").replace("x<=", "At most ") + "."


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("<", "&lt;")
