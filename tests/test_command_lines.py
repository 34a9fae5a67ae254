"""What all commands of both programs share: examples, JSON, exit statuses, pipes, completion."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shlex
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from router_runtime import console
from router_runtime.artifacts import FORMAT_VERSION
from router_runtime.base_artifact import base_artifact
from router_runtime.cli import app as model_router
from router_runtime.cli_examples import ADDED, EXAMPLES, RESULTS, statuses, teach
from router_runtime.errors import ArtifactError
from router_training.cli import app as router_train
from router_training.cli_examples import EXAMPLES as TRAINING_EXAMPLES
from router_training.cli_examples import RESULTS as TRAINING_RESULTS

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"model-router": model_router, "router-train": router_train}
SERVERS = {"model-router serve", "model-router simulate", "model-router experts serve"}


@cache
def program(name):
    return typer.main.get_command(PROGRAMS[name])


def walked(name):
    def below(command, words):
        for inner_name, inner in command.commands.items():
            if hasattr(inner, "commands"):
                yield from below(inner, (*words, inner_name))
            else:
                yield (*words, inner_name), inner

    return dict(below(program(name), ()))


def spelt(words):
    return words if isinstance(words, str) else "-".join(words)


COMMANDS = [(name, words) for name in PROGRAMS for words in walked(name)]
TAUGHT = [
    (*shlex.split(line.replace("\\\n", " ")),)
    for table in (EXAMPLES, ADDED, TRAINING_EXAMPLES)
    for examples in table.values()
    for line, _ in examples
]


def refused(function, capsys):
    """Return the exit status and the lines on stderr of what ``run_app`` runs."""
    with pytest.raises(SystemExit) as ended:
        console.run_app(function)
    shown = capsys.readouterr()
    assert shown.out == ""
    return ended.value.code, shown.err.splitlines()


# --------------------------------------------------------------------------- examples


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=spelt)
@pytest.mark.parametrize("columns", [80, 100])
def test_every_help_ends_with_examples_that_can_be_copied(name, words, columns):
    shown = CliRunner().invoke(PROGRAMS[name], [*words, "--help"], env={"COLUMNS": str(columns)})
    epilog = walked(name)[words].epilog
    lines = epilog.splitlines()
    assert lines[0] == "Examples:" and 3 <= len(lines)
    assert f"{name} {' '.join(words)}" in epilog
    after = [line.strip() for line in shown.stdout.split("Examples:")[1].splitlines()]
    assert [line for line in after if line] == [line.strip() for line in lines[1:] if line]
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize("words", TAUGHT, ids=lambda words: spelt(words[:3]))
def test_every_example_is_taken_by_the_commands_own_parser(words):
    name, *rest = words
    if rest[0] in ADDED:
        name = "router-train"
    command, path = program(name), ()
    while hasattr(command, "commands"):
        command, path = command.commands[rest[0]], (*path, rest[0])
        rest = rest[1:]
    known = {option for param in command.params for option in param.opts}
    command.make_context(" ".join(path), list(rest))  # raises what is wrong
    free = path == ("generate-routing-data",)  # options with names of adapters in them
    assert {word for word in rest if word.startswith("--")} <= known or free
    for config in re.findall(r"configs/[\w-]+\.yml", " ".join(rest)):
        assert (ROOT / config).is_file()


def test_a_command_without_an_example_is_noticed():
    bare = typer.Typer()
    bare.command("new")(lambda: None)
    with pytest.raises(KeyError, match="new"):
        teach(bare, {}, {})


def test_groups_show_the_first_example_of_each_command():
    shown = CliRunner().invoke(model_router, ["keys", "--help"]).stdout
    assert all(f"model-router keys {word}" in shown for word in ("create", "list", "revoke"))


# --------------------------------------------------------------------------- JSON


def test_every_command_that_ends_with_a_result_prints_it_as_json():
    for name in PROGRAMS:
        for words, command in walked(name).items():
            options = {option for param in command.params for option in param.opts}
            assert ("--json" in options) != (" ".join((name, *words)) in SERVERS), words


def test_the_help_tells_the_keys_of_every_json_object():
    for name, table in (("model-router", RESULTS), ("router-train", TRAINING_RESULTS)):
        printing = {
            " ".join(words)
            for words, command in walked(name).items()
            if any("--json" in param.opts for param in command.params)
        }
        assert set(table) == printing
        for words in printing:
            epilog = walked(name)[tuple(words.split())].epilog
            assert set(table[words].split()) <= set(re.findall(r"\w+", epilog))


def test_the_keys_that_are_told_are_those_that_are_printed(tmp_path):
    (tmp_path / "router.yml").write_text(
        f"artifact: {base_artifact()}\ncandidates: [{{id: weak}}, {{id: strong}}]\n"
        "service: {store: {url: 'sqlite:///here.db'}}\n"
    )
    config, base = ("--config", str(tmp_path / "router.yml")), str(base_artifact())
    calls = {
        "model-router": {
            "route": ("Hello",),
            "inspect": (base,),
            "check-config": config[1:],
            "db upgrade": config,
            "keys list": config,
            "spend": config,
        },
        "router-train": {
            "simulate": (str(tmp_path / "drawn"), "--rows", "20"),
            "import": (
                *(str(tmp_path / "drawn" / "records.jsonl"), "--output"),
                str(tmp_path / "records.json"),
            ),
            "report": (base,),
        },
    }
    for name, table in (("model-router", RESULTS), ("router-train", TRAINING_RESULTS)):
        for command, words in calls[name].items():
            done = CliRunner().invoke(PROGRAMS[name], [*command.split(), *words, "--json"])
            assert list(json.loads(done.stdout)) == table[command].split(), command


def test_json_has_no_number_that_json_does_not_know(capsys):
    console.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": True})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x", "d": True}


# --------------------------------------------------------------------------- exit statuses


def test_the_help_of_both_programs_lists_every_exit_status():
    for app in PROGRAMS.values():
        shown = CliRunner().invoke(app, ["--help"]).stdout
        for status in console.EXIT_STATUSES:
            assert re.search(rf"^ *{status} +\w", shown, re.MULTILINE), status
    assert max(map(len, statuses().splitlines())) <= 76


def test_a_status_that_is_returned_is_the_programs(capsys):
    for status in (console.EXIT_DONE, console.EXIT_FOUND):
        assert refused(lambda status=status, **_: status, capsys) == (status, [])


def test_a_defect_shows_its_traceback_and_has_a_status_of_its_own(capsys):
    def defect(**_):
        raise ZeroDivisionError("a defect")

    status, lines = refused(defect, capsys)
    assert status == console.EXIT_DEFECT == 70
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: a defect"


def test_interruption_is_130(capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    assert refused(interrupted, capsys)[0] == console.EXIT_INTERRUPTED == 130


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_leaves_is_no_error(options, tmp_path):
    names = ", ".join(f"{{id: model-{i:06}}}" for i in range(20_000))
    code = (
        "import sys, typer\n"
        "from router_runtime.console import out, print_json, run_app\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def names(as_json: bool = typer.Option(False, '--json')):\n"
        f"    text = '{names}'\n"
        "    print_json({'names': text}) if as_json else out.print(text)\n"
        "run_app(app)\n"
    )
    (tmp_path / "long.py").write_text(code)
    process = subprocess.Popen(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "long.py", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == console.EXIT_UNREAD == 141


# --------------------------------------------------------------------------- errors in one line


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "change its permissions"),
        (errno.ENOENT, "check the path"),
        (errno.ENOSPC, "make room"),
        (errno.EADDRINUSE, "choose another port"),
        (errno.ECONNREFUSED, "start the server"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_file_and_remedy(number, remedy, capsys):
    def failing(**_):
        raise OSError(number, os.strerror(number), "records.jsonl")

    status, (line,) = refused(failing, capsys)
    assert status == console.EXIT_INPUT
    assert line.startswith(f"error: records.jsonl: {os.strerror(number)}; ")
    assert remedy in line


def test_a_translated_error_tells_no_errno_but_the_remedy(capsys):
    def failing(**_):
        try:
            (ROOT / "nowhere" / "file").read_text()
        except OSError as error:
            raise ArtifactError(f"Cannot read: {error}") from error

    assert refused(failing, capsys)[1] == [
        "error: Cannot read: No such file or directory; check the path"
    ]


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("model-router", ["inspekt", "x"], "Did you mean 'inspect'?"),
        ("model-router", ["keys", "lst"], "Did you mean 'list'?"),
        ("model-router", ["route", "--artefact", "x"], "Did you mean --artifact?"),
        ("model-router", ["simulate", "x", "--port", "abc"], "not 'abc'. Try: "),
        (
            "model-router",
            ["spend", "--config", "x", "--by", "weak"],
            "'--by': 'weak' is not one of",
        ),
        ("model-router", ["experts", "list", "--url", "nonsense"], "--url 'nonsense'"),
        ("model-router", ["inspect", "nowhere", "--json"], "'nowhere' does not exist"),
        ("router-train", ["rn"], "Did you mean 'run'?"),
        ("router-train", ["simulate", "x", "--rows", "5"], "or equal to 20, not '5'. Try: "),
        (
            "model-router",
            ["check-config", "folder"],
            "'folder' cannot be read: Is a directory; name",
        ),
    ],
)
def test_wrong_calls_are_one_line_that_names_the_value(
    name, words, expected, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()

    def called(**options):
        return program(name).main(words, prog_name=name, **options)

    status, (line,) = refused(called, capsys)
    assert status == console.EXIT_INPUT
    assert line.startswith("error: ")
    assert expected in line


# --------------------------------------------------------------------------- terminals and pipes


def on_a_terminal(**environment):
    """Return what a refused command prints on a real (pseudo) terminal."""
    master, slave = pty.openpty()
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [sys.executable, "-m", "router_runtime.cli", "rout"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError as error:  # Linux tells the end of a terminal so
        assert error.errno == errno.EIO
    os.close(master)
    assert process.wait() == console.EXIT_INPUT
    return shown.decode()


def test_colours_are_for_terminals_that_want_them():
    assert "\x1b[31merror:" in on_a_terminal()
    assert "\x1b[31m" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(TERM="dumb")


def test_in_a_pipe_nothing_is_cut_or_wrapped(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "provider/" + "long-name-" * 40
    table = Table("model", "cost")
    table.add_row(name, "0.1")
    console.out.print(table)
    console.out.print(f"chosen: {name} of all")
    lines = capsys.readouterr().out.splitlines()
    assert sum(name in line and "0.1" in line for line in lines) == 1
    assert lines[-1] == f"chosen: {name} of all"
    assert not [line for line in lines if line.endswith(" ")]


# --------------------------------------------------------------------------- version, completion


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_version_tells_which_artifacts_are_written_and_read(name):
    shown = CliRunner().invoke(PROGRAMS[name], ["--version"]).stdout
    assert f"artifact format {FORMAT_VERSION}; reads 1, 2, {FORMAT_VERSION})" in shown


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return a folder with both programs, as pip would install them."""
    folder = tmp_path_factory.mktemp("bin")
    modules = {"model-router": "router_runtime.cli", "router-train": "router_training.__main__"}
    for name, module in modules.items():
        script = folder / name
        script.write_text(f"#!{sys.executable}\nfrom {module} import main\nmain()\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("model-router", ("ro", "keys re", "route --policy reco"), "route revoke recommended"),
        ("router-train", ("make-",), "make-prompted make-tiers"),
    ],
)
def test_bash_completes(programs, name, typed, expected):
    lines = [f'eval "$({name} --show-completion)"; complete -p {name} > /dev/null || exit']
    for text in typed:
        words = [name, *text.split()]
        lines.append(f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}")
        lines.append(f"_{name.replace('-', '_')}_completion {name}")
        lines.append('printf "%s\\n" "${COMPREPLY[@]}" | sort')
    done = subprocess.run(  # noqa: S603 - our own programs
        ["bash", "--norc", "-c", "\n".join(lines)],  # noqa: S607
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    assert done.stdout.split() == expected.split(), done.stderr


def completed(shell, typed, **environment):
    name = typed.split()[0]
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    shown = CliRunner().invoke(
        PROGRAMS[name],
        [],
        prog_name=name,
        env={variable: f"complete_{shell}", "_TYPER_COMPLETE_ARGS": typed, **environment},
    )
    return shown.stdout


def test_zsh_and_fish_complete_with_what_a_command_does():
    assert '"inspect":"Show what' in completed("zsh", "model-router insp")
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert completed("fish", "router-train add", **fish).startswith("add-model\tAdd one more")


def test_artifacts_policies_and_models_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "router_artifacts").mkdir()
    (tmp_path / "router_artifacts" / "mine").symlink_to(base_artifact())
    (tmp_path / "router.yml").write_text(
        "artifact: router_artifacts/mine\n"
        "candidates: [{id: weak}, {id: strong}]\n"
        "policies: {evening: {kind: fixed, model: weak}}\n"
    )
    assert "router_artifacts/mine" in completed("zsh", "model-router inspect router")
    assert "router_artifacts/mine" in completed("zsh", "router-train report ")
    assert "router.yml" in completed("zsh", "router-train compare ")
    policies = completed("zsh", "model-router route --config router.yml --policy e")
    assert re.findall(r'"(\w+)"', policies) == ["economy", "evening"]
    models = completed("zsh", "model-router keys create --config router.yml --allow s")
    assert re.findall(r'"(\w+)"', models) == ["strong"]
    assert completed("zsh", "model-router route --config no.yml --policy qu").count("quality") == 1
