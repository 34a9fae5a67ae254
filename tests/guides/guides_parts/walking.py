"""Walks a guide as its reader would: writes its files, runs its lines, asks its servers."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

import yaml

from guides_parts.blocks import Block, FaultyPageError, blocks_of, front_matter
from guides_parts.command_lines import ROOT, make_targets, problems_of_commands
from guides_parts.forking import PORTS
from guides_parts.programs import Programs
from guides_parts.sections import CHECKS, check_section

NEEDS: Final = ("quickstart",)
_TIMEOUT_S: Final = 240.0
_PORTS: Final = (
    re.compile(r"(?:127\.0\.0\.1|localhost|0\.0\.0\.0):(\d{4,5})\b"),
    re.compile(r"\bport: *(\d{4,5})\b"),
    re.compile(r"--port[ =](\d{4,5})\b"),
)
_CALLS: Final = {"router-config": "model-router check-config"}
_PARSERS: Final = {
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "json": json.loads,
    "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    "toml": tomllib.loads,
    "ini": lambda text: configparser.ConfigParser(strict=False, interpolation=None).read_string(
        text
    ),
}
# The line that comes before a block of shell lines: what the blocks before it exported and where
# they went; and, if a line fails, which.
_HEAD: Final = (
    "[ -e {state} ] && . {state}; trap 'declare -px > {state}; pwd > {state}.folder' EXIT; "
    "trap 'echo \"line $LINENO: $BASH_COMMAND\" > {state}.failed' ERR;"
)


class Walk:
    """One page, in a folder of its own.

    Parameters
    ----------
    page : Path
    folder : Path
        Where the reader is; has ``configs/``, and what the page needs.
    scratch : Path
        For what the reader does not see.
    programs : Programs
    """

    def __init__(self, page: Path, folder: Path, scratch: Path, programs: Programs) -> None:
        self.page, self.folder, self.scratch, self.programs = page, folder, scratch, programs
        self.blocks = blocks_of(page)
        self.runs = front_matter(page).get("run", True)
        self.background: list[tuple[Block, subprocess.Popen[bytes], Path]] = []
        self.ports = _free_ports(
            [block.text + block.check for block in self.blocks]
            + [path.read_text() for path in (folder / "configs").iterdir()]
        )
        for path in (folder / "configs").iterdir():
            path.write_text(self.moved(path.read_text()))
        programs.start("".join(_CALLS.get(b.check, "") + b.text for b in self.blocks))
        (scratch / "home").mkdir()

    def moved(self, text: str) -> str:
        """Return the text with every known port replaced by the free one that stands for it."""
        return re.sub(r"\b\d{4,5}\b", lambda m: self.ports.get(m[0], m[0]), text)

    @property
    def here(self) -> Path:
        """Where the reader has gone by ``cd``."""
        told = self.scratch / "state.folder"
        return Path(told.read_text().removesuffix("\n")) if told.exists() else self.folder

    def go(self) -> None:
        """Run or check every block in order; the first that fails ends it."""
        try:
            for block in self.blocks:
                self._meet(block)
        finally:
            self._end()

    def _meet(self, block: Block) -> None:
        if block.title:
            path = self.folder / block.title
            if not path.resolve().is_relative_to(self.folder.resolve()):
                self._fail(block, f"'{block.title}' is outside of the folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.moved(block.text))
        if block.language in _PARSERS:
            self._parse(block)
        elif block.language == "bash" and not block.title:
            self._shell(block)
        elif block.language == "python":
            self._python(block)
        elif block.language != "text" and not block.title:
            self._fail(block, f"nothing checks a block of '{block.language}' without a title")

    def _parse(self, block: Block) -> None:
        try:
            _PARSERS[block.language](block.text)
        except (ValueError, yaml.YAMLError, configparser.Error) as error:
            self._fail(block, f"is no {block.language}: {error}")
        if not block.check:
            return
        if block.check == "router-config":
            beside = "" if "../" not in block.text else "configs/"
            name = block.title or f"{beside}.from-line-{block.line}.yml"
            (self.folder / name).write_text(self.moved(block.text))
            self._run(block, f"model-router check-config {shlex.quote(name)}\n")
        elif block.check in CHECKS:
            with self._described(block):
                check_section(block.check, block.text)
        else:
            self._fail(
                block,
                f"no check is called '{block.check}' (known: router-config, {', '.join(CHECKS)})",
            )

    def _shell(self, block: Block) -> None:
        wrong = problems_of_commands(block.text)
        lines = block.text.split("\n")
        for number, line in enumerate(lines):
            if found := re.match(r"make( +[\w-]+)*( +[A-Z]+=\S+)*\s*(#.*)?$", line):
                targets = re.findall(r" ([a-z][\w-]*)", found[0].partition("#")[0])
                wrong += [f"make has no target '{t}'" for t in targets if t not in make_targets()]
                lines[number] = ":"
        for config in re.findall(r"(?<![\w/])configs/[\w.-]+\.(?:yml|yaml|json)", block.text):
            if not (self.folder / config).exists():
                wrong.append(f"there is no {config}")
        if wrong:
            self._fail(block, "; ".join(wrong))
        if not self.runs or re.match(r"not run, \S", block.check):
            return
        text = self.moved("\n".join(lines))
        if url := re.fullmatch(r"background until (http\S+)", block.check):
            self._start(block, text, self.moved(url[1]))
        elif status := re.fullmatch(r"exit (\d+)", block.check):
            self._run(block, text, status=int(status[1]))
        elif block.check:
            self._fail(block, f"no check of a bash block is called '{block.check}'")
        else:
            self._run(block, text)

    def _python(self, block: Block) -> None:
        with self._described(block):
            compile(block.text, f"{self.page.name}:{block.line}", "exec")
        if block.title or not self.runs or re.match(r"not run, \S", block.check):
            return
        if block.check:
            self._fail(block, f"no check of a python block is called '{block.check}'")
        program = self.here / f".from_line_{block.line}.py"
        program.write_text("\n" * (block.line - 1) + self.moved(block.text))
        self._run(block, f"python {program.name}\n")
        program.unlink()

    def _run(self, block: Block, text: str, *, status: int = 0) -> None:
        process, output = self._started(block, text)
        try:
            got = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            got = None
        finally:
            _kill_group(process)
        if got == status:
            return
        failed = self.scratch / "state.failed"
        where = failed.read_text().strip() if failed.exists() else ""
        ended = f"did not end in {_TIMEOUT_S:g} s" if got is None else f"ended with status {got}"
        wanted = f", not {status}" if got is not None else ""
        self._fail(block, f"{ended}{wanted} {where}\n{output.read_text()}")

    def _start(self, block: Block, text: str, url: str) -> None:
        process, output = self._started(block, text)
        self.background.append((block, process, output))
        end = time.monotonic() + 60
        while why := _why_not_ready(url):
            if process.poll() is not None:
                self._fail(block, f"ended before {url} answered\n{output.read_text()}")
            if time.monotonic() > end:
                self._fail(block, f"{url} did not answer in 60 s: {why}\n{output.read_text()}")
            time.sleep(0.05)

    def _started(self, block: Block, text: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start bash on the lines, numbered as in the page."""
        state = self.scratch / "state"
        script = self.scratch / f"line-{block.line}.sh"
        script.write_text(
            _HEAD.format(state=shlex.quote(str(state))) + "\n" * (block.line - 1) + text
        )
        output = script.with_suffix(".output")
        with output.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603 - our own page
                ["/bin/bash", "-e", "-E", "-o", "pipefail", str(script)],
                cwd=self.here,
                env={
                    "PATH": self.programs.path,
                    "HOME": str(self.scratch / "home"),
                    "LANG": "C.UTF-8",
                    "COLUMNS": "100",
                    "OMP_NUM_THREADS": "1",
                    PORTS: json.dumps(self.ports),
                    "HF_HUB_OFFLINE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process, output

    def _end(self) -> None:
        for _, process, _ in self.background:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for _, process, _ in self.background:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            _kill_group(process)

    @contextmanager
    def _described(self, block: Block) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._fail(block, f"{type(error).__name__}: {error}")

    def _fail(self, block: Block, what: str) -> NoReturn:
        told = [f"{self.page.name}:{block.line}: {what}"]
        for started, _, output in self.background:
            told += [
                f"--- in the background since line {started.line}:",
                output.read_text()[-4000:],
            ]
        raise FaultyPageError("\n".join(told))


def reader_folder(page: Path, folder: Path, left: Callable[[str], Path]) -> Path:
    """Make the folder of a page's reader.

    Parameters
    ----------
    page : Path
    folder : Path
        Is made.
    left : callable
        By a name of ``NEEDS``, the folder to start from.
    """
    folder.mkdir()
    for need in front_matter(page).get("needs", []):
        if need not in NEEDS:
            known = ", ".join(NEEDS)
            raise FaultyPageError(f"{page.name}:2: nothing makes '{need}' (known: {known})")
        shutil.copytree(left(need), folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
    return folder


def _free_ports(texts: list[str]) -> dict[str, str]:
    named = sorted({p for text in texts for pattern in _PORTS for p in pattern.findall(text)})
    held = [socket.create_server(("127.0.0.1", 0)) for _ in named]
    free = {port: str(s.getsockname()[1]) for port, s in zip(named, held, strict=True)}
    for taken in held:
        taken.close()
    return free


def _why_not_ready(url: str) -> str:
    """Return how a server refuses; empty where it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - on this machine
            return ""
    except OSError as error:  # a status from 400 on is one as well
        return str(error)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
