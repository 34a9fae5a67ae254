"""The part of a model card that tells of models added after training."""

from __future__ import annotations

from typing import Final

from router_runtime.artifacts import Artifact
from router_runtime.errors import ArtifactError
from router_runtime.prediction.heads.base import RESTORE
from router_runtime.types import Json
from router_training.evaluation_report import Interval
from router_training.wording import interval, number, signed, yaml_lines

HEADING: Final = "## Models added without retraining"

_HEADER: Final = (
    "| model | labels | AUC | Brier | Brier below the base rate's | ECE "
    "| uncertainty |\n"
    "|---|---|---|---|---|---|---|\n"
)


def extend_card(card: str, artifact: Artifact) -> str:
    """Return the card of an artifact with what was added to it since, as its last section.

    Parameters
    ----------
    card : str
        As it stands beside the artifact; a section of this kind that it has is replaced.
    artifact : Artifact
        With its ``training["added"]``.

    Raises
    ------
    ArtifactError
        That is malformed.
    """
    before = card.partition(f"\n{HEADING}\n")[0].rstrip("\n")
    try:
        rows = "".join(_row(entry) for entry in artifact.training["added"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"training.added of the artifact is malformed ({error!r}). {RESTORE}"
        ) from error
    policy = yaml_lines(dict(artifact.recommended_policy or {}))
    return (
        f"{_with_models(before, artifact.model_ids)}\n\n{HEADING}\n\n"
        "The figures and the settings above are of the router before. A model below was added "
        "from its labels alone, and the columns of the others did not change. Its figures are "
        "cross-validated, each label foretold by a fit without it (95 % bootstrap interval); "
        "uncertainty is the mean standard deviation of its probabilities for want of labels.\n\n"
        f"{_HEADER}{rows}\nRecommended policy now:\n\n```yaml\n{policy}```\n"
    )


def _row(entry: Json) -> str:
    figures = entry["held_out"]
    cells = ["-"] * 4
    if figures is not None:
        known = {
            name: Interval(**{k: float("nan") if v is None else v for k, v in value.items()})
            for name, value in figures.items()
            if isinstance(value, dict)
        }
        cells = [
            interval(known["auc"], number),
            interval(known["brier"], number),
            interval(known["brier_gain"], signed),
            interval(known["ece"], number),
        ]
    name = _code(entry["model"])
    cells = [name, str(entry["labels"]), *cells, number(entry["uncertainty"])]
    return f"| {' | '.join(cells)} |\n"


def _code(text: str) -> str:
    """Return text as inline code that cannot end its table cell."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return f"`{plain.replace('`', chr(39)).replace('|', '/')}`"


def _with_models(card: str, model_ids: tuple[str, ...]) -> str:
    """Return the card with these ``models`` in its front matter, if it lists any.

    Line by line, because the card of a foreign artifact is no YAML to be parsed.
    """
    lines = card.split("\n")
    if lines[0] != "---" or "---" not in lines[1:]:
        return card
    end = lines.index("---", 1)
    if "models:" not in lines[:end]:
        return card
    start = lines.index("models:") + 1
    stop = next((i for i in range(start, end) if lines[i][:1] not in ("", "-", " ")), end)
    listed = yaml_lines(list(model_ids)).rstrip("\n").split("\n")
    return "\n".join([*lines[:start], *listed, *lines[stop:]])
