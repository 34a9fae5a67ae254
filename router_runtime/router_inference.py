"""``RouterInference``: which category a text is of, by an artifact of kind ``sequence``.

>>> from router_runtime.router_inference import RouterInference  # doctest: +SKIP
>>> router = RouterInference.from_pretrained("router_model")  # doctest: +SKIP
>>> router.route_query("What is 2+2?")  # doctest: +SKIP
{'category': 'math', 'confidence': 0.94}

``ModelRouter`` loads the same folder and chooses a model, by policy and cost; this answers the
narrower question alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from pydantic import Field, field_validator, model_validator

from router_runtime.artifacts import Artifact, load_artifact
from router_runtime.config import EncoderRuntime, Probability
from router_runtime.errors import ConfigError, QueryError
from router_runtime.messages import query_from_prompt
from router_runtime.prediction.sequence import SequenceParts, label_probabilities
from router_runtime.types import F64, Json
from router_runtime.yaml_config import StrictModel, read_yaml, validate


class InferenceSettings(StrictModel):
    """``router_config:`` of a category router's YAML.

    Parameters
    ----------
    model_path : Path
        The trained router's folder, relative to the file.
    device : str
        ``auto`` (GPU when there), ``cpu``, ``cuda`` or ``cuda:N``.
    confidence_threshold : float or None
        Below it the fallback takes a query; None: there is none.
    fallback : str or None
        Category whose model that is; None: the most frequent one in training.
    """

    model_path: Path = Path("router_model")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")
    confidence_threshold: Probability | None = None
    fallback: str | None = None


class CategoryConfig(StrictModel):
    """A category router's YAML.

    Parameters
    ----------
    categories : tuple of str
        In the order of the classifier's outputs.
    model_mappings : mapping of category to str
        The model that each is for; empty: the categories are the models.
    router_config : InferenceSettings
        Where the trained router is, and when it is not trusted.
    """

    categories: tuple[str, ...] = Field(min_length=2)
    model_mappings: dict[str, str] = Field(default_factory=dict)
    router_config: InferenceSettings = InferenceSettings()

    @field_validator("categories")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a category is listed twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CategoryConfig:
        known = set(self.categories)
        if self.model_mappings and set(self.model_mappings) != known:
            odd = min(known.symmetric_difference(self.model_mappings))
            raise ValueError(f"model_mappings and categories differ in '{odd}'; map every category")
        if self.router_config.fallback not in (None, *known):
            raise ValueError(
                f"router_config.fallback '{self.router_config.fallback}' is not among the "
                "categories"
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Every model once, in the order of its first category."""
        return tuple(dict.fromkeys(self.model_of(category) for category in self.categories))

    def model_of(self, category: str) -> str:
        """Return the model that a category is for."""
        return self.model_mappings.get(category, category)


def load_category_config(path: str | Path) -> CategoryConfig:
    """Read and validate a category router's YAML; ``model_path`` becomes absolute.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    """
    file = Path(path)
    config = validate(CategoryConfig, read_yaml(file), source=str(file))
    settings = config.router_config
    located = (file.parent / settings.model_path).resolve()
    return config.model_copy(
        update={"router_config": settings.model_copy(update={"model_path": located})}
    )


class RouterInference:
    """Classifies texts.

    Parameters
    ----------
    artifact : Artifact
        Of kind ``sequence``.
    device : str
    batch_size : int
        Texts per pass.

    Raises
    ------
    ConfigError
        The artifact is of another kind, or its labels are no categories of which one is right.
    EncoderError, MissingDependencyError
        There is no such device, or torch or transformers is not installed.
    """

    def __init__(self, artifact: Artifact, *, device: str = "auto", batch_size: int = 32) -> None:
        parts = artifact.parts
        if not isinstance(parts, SequenceParts):
            raise ConfigError(
                f"The artifact's predictor is of kind '{parts.kind}'; categories are told by kind "
                "'sequence'. Train one with: router-train fit-sequence"
            )
        if parts.description.objective != "one":
            raise ConfigError(
                "The artifact's classifier judges each model by itself and tells no category. Use "
                "ModelRouter with it."
            )
        self.artifact = artifact
        self._description = parts.description
        runtime = validate(
            EncoderRuntime, {"device": device, "batch_size": batch_size}, source="RouterInference"
        )
        self._network = parts.network(runtime)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", batch_size: int = 32
    ) -> Self:
        """Load a folder that ``router-train fit-sequence`` wrote.

        Raises
        ------
        ArtifactError
            It is none, or was changed.
        ConfigError, EncoderError, MissingDependencyError
            See the class.
        """
        return cls(load_artifact(path), device=device, batch_size=batch_size)

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order of the classifier's outputs."""
        return self._description.labels

    @property
    def model_mappings(self) -> Mapping[str, str]:
        """The model that each category is for."""
        models = self.artifact.model_ids
        columns = zip(self._description.labels, self._description.columns, strict=True)
        return MappingProxyType({label: models[column] for label, column in columns})

    def probabilities(self, queries: Sequence[str]) -> F64:
        """Return float64 (n_queries, n_categories); each row sums to 1.

        Raises
        ------
        QueryError
            One of them is no text, or empty.
        """
        if isinstance(queries, str):
            raise QueryError("queries must be a list of texts, even for a single one.")
        if not queries:
            return label_probabilities(self._network.logits(["x"]), self._description)[:0]
        rule = self._description.text
        texts = [query_from_prompt(query, rule=rule).text for query in queries]
        return label_probabilities(self._network.logits(texts), self._description)

    def route_query(self, query: str) -> dict[str, Json]:
        """Return ``{"category": ..., "confidence": ...}`` of one text."""
        return self.route_batch([query])[0]

    def route_batch(self, queries: Sequence[str]) -> list[dict[str, Json]]:
        """Return the same for every text, in their order; faster than one by one."""
        found = self.probabilities(queries)
        best = found.argmax(axis=1)
        return [
            {"category": self.categories[at], "confidence": float(row[at])}
            for row, at in zip(found, best.tolist(), strict=True)
        ]
