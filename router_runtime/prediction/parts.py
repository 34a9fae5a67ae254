"""What a predictor is made of: the seam between the artifact folder and each kind of predictor.

A manifest's ``predictor`` is JSON whose ``kind`` names an entry of ``PREDICTORS``. The class there
reads that JSON and the files it wrote beside the manifest, says of itself what the manifest keeps,
and builds the predictor. Calibration, novelty, costs and policy are common to all kinds and stand
elsewhere in the manifest.

To add a kind: write a module with a class that has the members of ``PredictorParts`` and the two
class methods below, and name it in ``PREDICTORS``. The module is imported for every load and for
``model-router inspect``, so that what it needs of torch belongs into ``build``. Files are
safetensors, UBJSON or JSON, and their names start with the kind (those of ``features`` are older
than this rule).

``from_files(description, files)``
    Returns the parts; raises ``ArtifactError`` or ``ValueError`` where they do not fit each other.
``facts(description)``
    Returns what ``inspect`` shows, as texts by name, from the manifest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders import EXPORTED_KINDS
from router_runtime.prediction.heads.base import import_whole
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.types import Json, Predictor

PREDICTORS: dict[str, tuple[str, str]] = {
    "adapter": ("router_runtime.prediction.adapter", "AdapterParts"),
    "features": ("router_runtime.prediction.feature_parts", "FeatureParts"),
    "prompted": ("router_runtime.prediction.prompted", "PromptedParts"),
    "sequence": ("router_runtime.prediction.sequence", "SequenceParts"),
}
"""Module and class by kind."""


class PredictorParts(Protocol):
    """Everything that an artifact keeps of a predictor but calibration and novelty."""

    @property
    def kind(self) -> str:
        """The name under which ``load_parts`` finds this class."""
        ...

    @property
    def text(self) -> TextRule:
        """Which part of a conversation is routed on."""
        ...

    @property
    def encoders(self) -> tuple[str, ...]:
        """Kinds of the encoders; empty where there are none."""
        ...

    @property
    def settings(self) -> dict[str, Json]:
        """What ``ModelRouter.get_model_info`` tells as ``router_config``."""
        ...

    @property
    def tells_novelty(self) -> bool:
        """Whether predictions have a novelty although there is no ``NoveltyModel``."""
        ...

    def check(self, n_models: int, novelty: NoveltyModel | None) -> None:
        """Check that the parts fit each other, the models and the novelty model.

        Raises
        ------
        ValueError, ConfigError
            Naming the two that differ.
        """
        ...

    def describe(self) -> dict[str, Json]:
        """Return JSON with ``kind`` and all that ``from_files`` needs besides the files."""
        ...

    def to_files(self) -> dict[str, bytes]:
        """Return the files beside the manifest."""
        ...

    def build(
        self,
        model_ids: tuple[str, ...],
        *,
        calibrator: Calibrator,
        novelty: NoveltyModel | None,
        runtime: EncoderRuntime,
    ) -> Predictor:
        """Return the predictor.

        Raises
        ------
        ArtifactIntegrityError
            The parts are not those that the artifact was made with.
        EncoderError, MissingDependencyError
            Something that it needs cannot be had.
        ConfigError
            ``runtime`` names a server that nothing would use.
        """
        ...


def load_parts(description: Mapping[str, Json], files: Mapping[str, bytes]) -> PredictorParts:
    """Return the parts that a manifest describes.

    Parameters
    ----------
    description : mapping
        The JSON of ``PredictorParts.describe``.
    files : mapping of str to bytes
        The artifact's files, digests checked.

    Raises
    ------
    ArtifactError
        The kind is unknown, or the description malformed.
    ArtifactIntegrityError
        A file is missing or does not fit the description.
    MissingDependencyError
        A package that the kind needs is not installed.
    """
    return cast(PredictorParts, _parts_class(description).from_files(description, files))


def predictor_facts(description: Mapping[str, Json]) -> dict[str, str]:
    """Return what a manifest says of its predictor, as texts by name, ``predictor`` first.

    Raises
    ------
    ArtifactError
        The kind is unknown, or the description malformed.
    """
    found: dict[str, str] = _parts_class(description).facts(description)
    return {"predictor": str(description["kind"]), **found}


def _parts_class(description: Mapping[str, Json]) -> Any:
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in PREDICTORS:
        raise ArtifactError(
            f"Unknown kind of predictor {kind!r:.60} (known: {', '.join(sorted(PREDICTORS))}). "
            "Update model-router."
        )
    module, name = PREDICTORS[kind]
    return getattr(import_whole(module), name)


def refuse_exported(runtime: EncoderRuntime, *, kinds: Sequence[str]) -> None:
    """Refuse exported files that no encoder would be read from.

    Raises
    ------
    ConfigError
        ``engine`` is that of exported encoders, and none of ``kinds`` can be one.
    """
    if runtime.exported and not set(kinds) & set(EXPORTED_KINDS):
        raise ConfigError(
            f"'engine: {runtime.engine}' is configured, but the artifact has no encoder that can "
            f"be exported ({', '.join(kinds)}; those that can: {', '.join(EXPORTED_KINDS)}). "
            "Remove engine, folder and precision from the config."
        )


def refuse_server(runtime: EncoderRuntime, *, holds: str) -> None:
    """Refuse a configured server that nothing would call.

    Raises
    ------
    ConfigError
        ``url`` or ``api_key_env`` is set.
    """
    if runtime.url or runtime.api_key_env:
        raise ConfigError(
            f"A server (url, api_key_env) is configured, but the artifact has {holds}. Remove it "
            "from the config."
        )
