"""What ends the ``--help`` of every command of ``model-router``: examples, and its JSON's keys.

``teach`` puts them onto the commands of an application, where the documentation finds them too
(``epilog``). A test parses every line with the command's own parser.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import typer

from router_runtime.console import EXIT_STATUSES

Example: TypeAlias = tuple[str, str]
"""A command line as it is typed, with a word on what it does."""

Results: TypeAlias = Mapping[str, str]
"""The keys of the JSON object that ``--json`` prints, by command, with blanks between."""

Examples: TypeAlias = Mapping[str, Sequence[Example]]
"""Examples by command, such as ``route`` or ``keys create``."""

_WIDTH: Final = 76

EXAMPLES: Final[Examples] = {
    "route": (
        (
            'model-router route "What is 17 + 25?"',
            "Choose with the artifact that comes along, offline.",
        ),
        (
            'model-router route --artifact router_artifacts/quickstart --json "Hello"',
            "The whole decision of another artifact as JSON.",
        ),
        (
            "model-router route --config configs/tiers-service.yml --policy economy \\\n"
            '    --image picture.png "Which bird is this?"',
            "With the candidates, prices and policies of a config, and a picture.",
        ),
    ),
    "inspect": (
        (
            "model-router inspect router_artifacts/base",
            "Models, encoders, figures and files of an artifact.",
        ),
        (
            "model-router inspect router_artifacts/base --json",
            "The whole manifest.",
        ),
    ),
    "check-config": (
        (
            "model-router check-config configs/tiers-service.yml",
            "What would be in force; nothing is served.",
        ),
    ),
    "doctor": (
        ("model-router doctor", "Look at this installation."),
        (
            "model-router doctor --config configs/service.yml --json",
            "Also at the artifact, the services and the folders of a config.",
        ),
    ),
    "serve": (
        (
            "model-router serve --config configs/service.yml",
            "OpenAI's API at the host and port of the config.",
        ),
        (
            "model-router serve --config configs/service.yml --log-level info",
            "The same, with a line per request.",
        ),
    ),
    "simulate": (
        (
            "model-router simulate configs/simulator.yml",
            "Simulated models at http://127.0.0.1:8090/v1.",
        ),
    ),
    "spend": (
        (
            "model-router spend --config configs/service.yml --by day --since 2026-11-01",
            "Dollars per day since the first of November.",
        ),
        (
            "model-router spend --config configs/service.yml --by key --json",
            "Dollars per API key as JSON.",
        ),
    ),
    "export-feedback": (
        (
            "model-router export-feedback --config configs/service.yml \\\n"
            "    --output records.jsonl",
            "Records that 'router-train run' learns from.",
        ),
    ),
    "export-encoder": (
        (
            "model-router export-encoder router_artifacts/clip --output encoders",
            "The encoders of an artifact, in fp32 and int8.",
        ),
        (
            "model-router export-encoder clip --output encoders --precision fp32",
            "The default CLIP without rounding.",
        ),
    ),
    "check-encoder": (
        (
            "model-router check-encoder router_artifacts/clip --folder encoders \\\n"
            "    --samples samples.jsonl",
            "Compare int8 with the encoder of training; exit status 1: not accepted.",
        ),
    ),
    "import-artifact": (
        (
            "model-router import-artifact old_artifacts --output router_artifacts/old",
            "Convert nn_router.pth and its companions.",
        ),
    ),
    "import-config": (
        (
            "model-router import-config config.yml --output router.yml \\\n"
            "    --artifact router_artifacts/old",
            "From the NAT workflow of LLM Router v2.",
        ),
        (
            "model-router import-config --from litellm proxy.yml --output router.yml \\\n"
            "    --artifact router_artifacts/base",
            "From LiteLLM's model_list.",
        ),
    ),
    "keys create": (
        (
            "model-router keys create --config configs/service.yml --name app \\\n"
            "    --usd-per-day 5",
            "A key with a budget; it is printed once, on stdout.",
        ),
    ),
    "keys list": (
        (
            "model-router keys list --config configs/service.yml",
            "All keys, with what they may do.",
        ),
    ),
    "keys revoke": (
        (
            "model-router keys revoke 0123456789abcdef --config configs/service.yml",
            "Refuse a key from now on; its id is told by 'keys list'.",
        ),
    ),
    "experts serve": (
        (
            "model-router experts serve configs/experts-serve.yml",
            "The base and the adapters of a config.",
        ),
        (
            "model-router experts serve --base models/qwen \\\n"
            "    --adapter calendar=adapters/calendar",
            "The same without a config.",
        ),
    ),
    "experts list": (
        (
            "model-router experts list --url http://127.0.0.1:8091",
            "The base, and the adapters on it.",
        ),
    ),
    "experts add": (
        (
            "model-router experts add chandra-ocr adapters/chandra-ocr \\\n"
            "    --url http://127.0.0.1:8091",
            "Load one more adapter while the server runs.",
        ),
    ),
    "experts remove": (
        (
            "model-router experts remove chandra-ocr --url http://127.0.0.1:8091",
            "Take it off again; its folder stays.",
        ),
    ),
    "db upgrade": (
        (
            "model-router db upgrade --config configs/service.yml",
            "Make or upgrade the tables before the first start.",
        ),
    ),
}

ADDED: Final[Examples] = {
    "evaluate": (
        (
            "model-router evaluate router_artifacts/quickstart --data records.jsonl",
            "Quality and cost on records, with the policy that serves.",
        ),
    ),
}
"""Of commands that another package of this project adds."""

RESULTS: Final[Results] = {
    "route": (
        "model_id ranking probabilities expected_cost cost_unit ineligible reason "
        "artifact_id policy novelty"
    ),
    "inspect": (
        "format_version created_by model_ids scored_modalities predictor calibration "
        "novelty costs recommended_policy training metrics files"
    ),
    "check-config": (
        "available_models candidates threshold_config thresholds "
        "available_threshold_configs device router_config cost_unit artifact_id encoders "
        "serving"
    ),
    "doctor": "ok findings",
    "spend": "by baseline lines total",
    "export-feedback": "output records without_content not_served",
    "export-encoder": "encoders",
    "check-encoder": (
        "samples halves mean_dp max_dp mean_dp_interval changed changed_interval bounds "
        "encoders failures"
    ),
    "import-artifact": "output artifact_id model_ids",
    "import-config": "output without_counterpart",
    "keys create": "id name key",
    "keys list": "keys",
    "keys revoke": "id revoked_now",
    "experts list": "models",
    "experts add": "adapter said",
    "experts remove": "adapter said",
    "db upgrade": "url revision",
}
"""Of every command with ``--json``."""


def epilog(examples: Sequence[Example], keys: str = "") -> str:
    """Return examples, and the keys of the JSON object, as the help shows them."""
    if not examples:
        return ""
    shown = "Examples:\n" + "\n".join(f"{line}\n    {says}" for line, says in examples)
    if not keys:
        return shown
    return f"{shown}\n\nKeys of the JSON object:\n{textwrap.fill(', '.join(keys.split()), _WIDTH)}"


def statuses() -> str:
    """Return what the exit statuses mean, as the help of a program shows it."""
    lines = (
        textwrap.fill(says, _WIDTH, initial_indent=f"{status:<5}", subsequent_indent=" " * 5)
        for status, says in EXIT_STATUSES.items()
    )
    return "Exit status:\n" + "\n".join(lines)


def teach(app: typer.Typer, examples: Examples, results: Results) -> None:
    """Give the program its exit statuses, and every command its examples and its JSON's keys.

    The help of a group of commands shows the first example of each.

    Raises
    ------
    KeyError
        A command has no example, or an example no command.
    """
    app.info.epilog = statuses()
    taught = set(_taught(app, examples, results, ""))
    if taught != examples.keys():
        raise KeyError(*sorted(taught ^ examples.keys()))


def _taught(app: typer.Typer, examples: Examples, results: Results, group: str) -> Iterator[str]:
    for command in app.registered_commands:
        plain = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        name = f"{group}{plain}"
        command.epilog = epilog(examples.get(name, ()), results.get(name, ""))
        yield name
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            names = list(_taught(inner.typer_instance, examples, results, f"{inner.name} "))
            inner.epilog = epilog([examples[name][0] for name in names if examples.get(name)])
            yield from names
