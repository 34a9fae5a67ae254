"""What a simulated model must know to be asked by a ``prompted`` router, offline.

``router_runtime.simulator`` answers prompts that it knows. Here are a router's very questions about
given queries, each with the letter of the model that should answer; how often the simulated model
then tells it is scripted in the simulator's config. So this practises asking, reading replies and
falling back, and says nothing about any real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from router_runtime.errors import ConfigError
from router_runtime.prediction.prompted import PromptedConfig
from router_runtime.prediction.prompting import LETTERS, question
from router_runtime.simulator.known import KnownAnswer, answer_line
from router_runtime.types import F64, Int
from router_training.formats import atomic_file
from router_training.labels import Evaluations, LabelMatrix

TOPIC: Final = "kind"
"""The topic of all answers, whose skill the simulated model's config tells."""


def write_prompted_answers(
    path: str | Path, data: Evaluations, descriptions: Mapping[str, str]
) -> Path:
    """Write the file of answers (``answers`` of a simulator's config), and return its path.

    The right letter is that of the model with the best score; of several the one that was cheapest
    on average, then the first that is described. Rows without any score are left out.

    Parameters
    ----------
    path : path
    data : Evaluations
        Scored queries.
    descriptions : mapping of model to str
        The router's, of models that ``data`` knows. Its other settings are the defaults: it asks
        for log-probabilities, so that a query is one question.

    Raises
    ------
    ConfigError
        A model is described that has no scores.
    """
    for model in descriptions:
        if model not in data.model_ids:
            known = ", ".join(data.model_ids)
            raise ConfigError(f"The records have no scores of '{model}' (known: {known}).")
    right = _cheapest_best(data.labels, [data.model_ids.index(model) for model in descriptions])
    texts = list(descriptions.values())
    max_chars: int = PromptedConfig.model_fields["max_chars"].default
    with atomic_file(Path(path)) as file:
        for query, place in zip(data.queries, right.tolist(), strict=True):
            if place < 0:
                continue
            call = question(
                query, texts, order=range(len(texts)), max_chars=max_chars, parameters={}
            )
            content = call.messages[1]["content"]
            prompt = "".join(part["text"] for part in content if part["type"] == "text")
            answer = KnownAnswer(LETTERS[place], TOPIC, 0.5, 2)
            images = [image.sha256 for image in query.images]
            file.write(answer_line(prompt, answer, images_sha256=images).encode())
    return Path(path)


def _cheapest_best(labels: LabelMatrix, columns: list[int]) -> Int:
    """Return the place among ``columns`` of each row's model, (n_samples,); -1 without a score."""
    Y: F64 = labels.Y[:, columns]
    mean_cost = np.array([_mean(labels.cost_usd[:, column]) for column in columns])
    best = np.nanmax(np.where(np.isnan(Y), -1.0, Y), axis=1, keepdims=True)
    dearness = np.where(best == Y, mean_cost, np.inf)
    found: Int = np.where(best[:, 0] < 0, -1, np.argmin(dearness, axis=1))
    return found


def _mean(values: F64) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
