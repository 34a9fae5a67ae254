"""Which commands and options the two programs have, asked of their own objects in this process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
PROGRAMS: Final = ("model-router", "router-train")
_WORDS: Final = re.compile(r"(model-router|router-train)((?:[ \t]+[^\s`|#;&)]+)*)")
_COMMAND: Final = re.compile(r"[a-z][a-z-]*")
_OPTION: Final = re.compile(r"(--?[A-Za-z][\w-]*)")
_PER_ADAPTER: Final = re.compile(
    r"--(?:[a-z][\w-]*|<adapter>)-(?:dataset|image-root)|--(?:train|val|eval)-samples-[\w<>-]+"
)


@cache
def command_tree(program: str) -> dict[str, frozenset[str]]:
    """Return every command of a program ("keys create") with its options."""
    from typer.main import get_command

    if program == "model-router":
        from router_runtime.cli import app
    else:
        from router_training.cli import app
    return dict(_walked(get_command(app), ()))


def _walked(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, frozenset[str]]]:
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    yield " ".join(path), frozenset({o for o in options if o.startswith("-")} | {"--help"})
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walked(inner, (*path, name))


def problems_of_commands(text: str) -> list[str]:
    """Return what is wrong with the command lines in a text: unknown commands, unknown options."""
    wrong = []
    for program, rest in _WORDS.findall(text.replace("\\\n", " ")):
        tree = command_tree(program)
        words = rest.split()
        command = ""
        while words and _COMMAND.fullmatch(words[0]) and f"{command} {words[0]}".strip() in tree:
            command = f"{command} {words.pop(0)}".strip()
        if not command and words and _COMMAND.fullmatch(words[0].rstrip(".,:")):
            wrong.append(f"{program} has no command '{words[0]}'")
            continue
        group = any(name.startswith(f"{command} ") for name in tree) and command
        if group and words and _COMMAND.fullmatch(words[0].rstrip(".,:")):
            wrong.append(f"{program} {command} has no command '{words[0]}'")
            continue
        for word in words:
            option = _OPTION.match(word)
            if word == "--" or option is None:
                continue
            if command == "generate-routing-data" and _PER_ADAPTER.match(word):
                continue
            if option[1] not in tree[command]:
                wrong.append(f"{program} {command} has no option '{option[1]}'".replace("  ", " "))
    return wrong


def options_named(text: str) -> set[tuple[str, str]]:
    """Return (program, option) of every option in the command lines of a text."""
    return {
        (program, option)
        for program, rest in _WORDS.findall(text.replace("\\\n", " "))
        for option in re.findall(r"--[a-z][\w-]*", rest)
    }


@cache
def make_targets() -> frozenset[str]:
    """Return the targets of the Makefile that have a name."""
    text = (ROOT / "Makefile").read_text()
    return frozenset(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))
