"""YAML to a validated, frozen ``RuntimeConfig``.

Unknown keys, repeated keys and contradictions are errors. ``${NAME}`` and ``${NAME:-default}`` in
string values are filled from the environment when the file is read, and nowhere else; secrets
are never in the file, only the name of the variable that holds them (``api_key_env``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from router_runtime.errors import ConfigError
from router_runtime.types import Json, Modality


class StrictModel(BaseModel):
    """Base of everything that is read from YAML or JSON: unknown keys are errors, values frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Cost = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class EncoderRuntime(StrictModel):
    """Where and how fast encoders run; never changes what they mean.

    ``device`` is ``auto`` (GPU when there), ``cpu``, ``cuda`` or ``cuda:N``. ``url`` and
    ``api_key_env`` override a remote encoder's own.
    """

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")
    batch_size: int = Field(default=64, ge=1, le=65_536)
    url: str | None = None
    api_key_env: str | None = None
    timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)


class PriceConfig(StrictModel):
    """USD per million tokens and per picture."""

    input_mtok: Decimal = Field(ge=0)
    output_mtok: Decimal = Field(ge=0)
    cached_input_mtok: Decimal | None = Field(default=None, ge=0)
    image: Decimal = Field(default=Decimal(0), ge=0)


def _variable_name(value: str) -> str:
    """Refuse what is no name of a variable, without showing it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(
            "it is no name of an environment variable; put the key into a variable and give the "
            "variable's name"
        )
    return value


VariableName = Annotated[str, AfterValidator(_variable_name)]
"""Name of an environment variable that holds a secret."""


class _TargetBase(StrictModel):
    """What every target has: limits, and parameters that are sent with each call.

    Parameters
    ----------
    model : str or None
        The ``model`` field of the request; None: the candidate's id. For an adapter on vLLM it is
        the adapter's name.
    api_key_env : str or None
        Name of the environment variable that holds the key; None: no key is sent.
    timeout_s : float
        Seconds for one call, from connecting to the last byte.
    max_concurrency : int
        Calls in flight at a time.
    requests_per_minute, tokens_per_minute : int or None
        The provider's limits; None: no limit is known.
    parameters : mapping
        Fields of the request body beside ``model`` and ``messages``, such as ``temperature``.
    """

    model: str | None = Field(default=None, min_length=1)
    api_key_env: VariableName | None = None
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_concurrency: int = Field(default=16, ge=1, le=4096)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    parameters: dict[str, Json] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _no_owned_fields(cls, value: dict[str, Json]) -> dict[str, Json]:
        for name in ("model", "messages", "stream"):
            if name in value:
                raise ValueError(f"'{name}' is not a parameter; it is set for each call")
        return value


def _plain_url(value: str) -> str:
    """Refuse what is no ``http(s)://host[:port][/path]``, without showing it: it may hold a key."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, half a bracket
        usable = False
    if not usable or not _URL.match(value):
        raise ValueError(
            "it must be http(s)://host[:port][/path], without a user, password or query; a key "
            "goes into the variable that 'api_key_env' names"
        )
    return value


_URL = re.compile(r"^https?://[^\s/@?#\\]+(/[^\s@?#]*)?\Z", re.IGNORECASE)

Url = Annotated[str, AfterValidator(_plain_url)]
"""``http(s)://host[:port][/path]``, without a user, password or query in it."""


class OpenAITargetConfig(_TargetBase):
    """OpenAI itself."""

    kind: Literal["openai"] = "openai"
    base_url: Url = "https://api.openai.com/v1"
    api_key_env: VariableName | None = "OPENAI_API_KEY"


class AzureTargetConfig(_TargetBase):
    """Azure OpenAI; ``model`` is the deployment's name."""

    kind: Literal["azure"]
    endpoint: Url
    api_version: str = "2024-10-21"
    api_key_env: VariableName | None = "AZURE_OPENAI_API_KEY"


class NimTargetConfig(_TargetBase):
    """NVIDIA NIM, hosted (the default) or one's own."""

    kind: Literal["nim"]
    base_url: Url = "https://integrate.api.nvidia.com/v1"
    api_key_env: VariableName | None = "NVIDIA_API_KEY"


class VllmTargetConfig(_TargetBase):
    """A vLLM server; ``model`` names the base model or one of its LoRA adapters."""

    kind: Literal["vllm"]
    base_url: Url


class CompatibleTargetConfig(_TargetBase):
    """Any other server that speaks OpenAI's API."""

    kind: Literal["compatible"]
    base_url: Url


TargetConfig = Annotated[
    OpenAITargetConfig
    | AzureTargetConfig
    | NimTargetConfig
    | VllmTargetConfig
    | CompatibleTargetConfig,
    Field(discriminator="kind"),
]


class CandidateConfig(StrictModel):
    """A model that may be chosen: what it accepts, what it costs and where it is called.

    ``price`` is USD; ``cost`` is a relative factor without a unit, as in ``model_costs``.
    One config uses one of the two. ``target`` is needed only where the model is called.
    """

    id: str = Field(min_length=1)
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    context_window: int | None = Field(default=None, ge=1)
    tools: bool = True
    json_mode: bool = True
    price: PriceConfig | None = None
    cost: Cost | None = None
    target: TargetConfig | None = None

    @field_validator("modalities")
    @classmethod
    def _some_modality(cls, value: frozenset[Modality]) -> frozenset[Modality]:
        if not value:
            raise ValueError("name at least one modality: [text] or [text, image]")
        return value


class FallbackConfig(StrictModel):
    """The model that takes queries unlike the training data, where a prediction says little.

    ``novelty_above`` is a bound on ``decision.novelty``: of queries like the training data a share
    of ``1 - novelty_above`` is beyond it. 1 never falls back.
    """

    model: str = Field(min_length=1)
    novelty_above: Probability = 0.99


class CheapestQualifiedConfig(StrictModel):
    """The cheapest model whose probability reaches its threshold (LLM Router v2's rule).

    A model without an own threshold has ``default_threshold``; 0 lets it always qualify.
    """

    kind: Literal["cheapest_qualified"] = "cheapest_qualified"
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    default_threshold: Probability = 0.0
    fallback: FallbackConfig | None = None


class UtilityConfig(StrictModel):
    """The highest ``P - lambda x cost``; lambda in 1/USD (or per unit of relative cost)."""

    kind: Literal["utility"] = "utility"
    lambda_per_usd: float = Field(ge=0, allow_inf_nan=False)
    fallback: FallbackConfig | None = None


class HighestProbabilityConfig(StrictModel):
    """The highest probability, whatever it costs."""

    kind: Literal["highest_probability"] = "highest_probability"
    fallback: FallbackConfig | None = None


class FixedConfig(StrictModel):
    """Always the same model, while it is eligible."""

    kind: Literal["fixed"] = "fixed"
    model: str


PolicyConfig = Annotated[
    CheapestQualifiedConfig | UtilityConfig | HighestProbabilityConfig | FixedConfig,
    Field(discriminator="kind"),
]


_POLICY: TypeAdapter[PolicyConfig] = TypeAdapter(PolicyConfig)


class ImageLimitsConfig(StrictModel):
    """Caps on incoming pictures."""

    max_bytes: int = Field(default=20 * 2**20, ge=1)
    max_pixels: int = Field(default=50_000_000, ge=1)


class RuntimeConfig(StrictModel):
    """What is chosen, not learned: changes without retraining.

    Parameters
    ----------
    artifact : Path
        The artifact's folder, relative to the config file.
    candidates : tuple of CandidateConfig
        The models that may be chosen, all known to the artifact. Empty: every model of the
        artifact, with the modalities it was scored on in training and the costs learned there.
    policies : mapping of name to PolicyConfig
        Named policies, beside the presets.
    policy : str or None
        The policy used when a request names none. None: the only configured one, or else the
        one that the artifact recommends.
    encoder : EncoderRuntime
        Device, batch size, server.
    images : ImageLimitsConfig
        Caps on pictures.
    model_thresholds, model_costs : mapping
        NVIDIA LLM Router v2's form of a ``cheapest_qualified`` policy and a ``cost`` per candidate.
    """

    artifact: Path
    candidates: tuple[CandidateConfig, ...] = ()
    policies: dict[str, PolicyConfig] = Field(default_factory=dict)
    policy: str | None = None
    encoder: EncoderRuntime = EncoderRuntime()
    images: ImageLimitsConfig = ImageLimitsConfig()
    model_thresholds: dict[str, Probability] | None = None
    model_costs: dict[str, Cost] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RuntimeConfig:
        check_candidates(self.candidates)
        if self.model_thresholds is not None and (self.policy or self.policies):
            raise ValueError(
                "'model_thresholds' and 'policy'/'policies' say the same thing twice; keep one"
            )
        if self.model_costs is not None and any(
            c.price is not None or c.cost is not None for c in self.candidates
        ):
            raise ValueError("'model_costs' and the candidates' own price or cost: keep one")
        return self


def check_candidates(candidates: tuple[CandidateConfig, ...]) -> None:
    """Refuse repeated ids and a mix of prices and relative costs.

    Raises
    ------
    ValueError
        Naming the id or the two kinds of cost.
    """
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.id in seen:
            raise ValueError(f"candidate '{candidate.id}' is listed twice; remove one")
        seen.add(candidate.id)
        if candidate.price is not None and candidate.cost is not None:
            raise ValueError(f"candidate '{candidate.id}' has both 'price' and 'cost'; keep one")
    priced = [c.id for c in candidates if c.price is not None]
    factored = [c.id for c in candidates if c.cost is not None]
    if priced and factored:
        raise ValueError(
            f"USD prices ({priced[0]}) and relative costs ({factored[0]}) cannot be compared; "
            "use one kind for all candidates"
        )


# --------------------------------------------------------------------------- reading YAML


class _PlainLoader(yaml.SafeLoader):
    """Refuses repeated keys, of which PyYAML keeps the last, and aliases, which can be endless."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise ConfigError(
                f"line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not read; "
                "write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a string.")
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: key '{key}' is repeated; remove one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def read_yaml(path: Path) -> dict[str, Json]:
    """Read a YAML mapping, refusing repeated keys and filling ``${NAME:-default}``.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no YAML mapping, repeats a key or names an unset variable.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"Config file '{path}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file '{path}' cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not a config: it is nested hundreds of levels deep.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level.")
    try:
        filled: dict[str, Json] = _fill(content, os.environ)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return filled


class _Filled(str):
    """Text that came from the environment, and so may be a secret: no message shows it."""

    __slots__ = ()


def _fill(value: Json, environment: Mapping[str, str]) -> Json:
    if isinstance(value, dict):
        return {key: _fill(entry, environment) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, environment) for entry in value]
    if not isinstance(value, str):
        return value
    if "\0" in value or "${" in _VARIABLE.sub("", value):
        raise ConfigError(
            f"the value {value!r} holds a NUL or an unfinished variable; write ${{NAME}} or "
            "${NAME:-default}."
        )

    def lookup(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = environment.get(name, default)
        if found is None:
            raise ConfigError(
                f"environment variable '{name}' is not set; set it, or give a default with "
                f"${{{name}:-value}}."
            )
        return found

    filled = _VARIABLE.sub(lookup, value)
    return value if filled == value else _Filled(filled)


def validate(model: type[Model], content: Json, *, source: str) -> Model:
    """Validate ``content`` as ``model``, translating pydantic's report into one ``ConfigError``.

    Parameters
    ----------
    model : type
        A pydantic model.
    content : JSON-like
        What was read.
    source : str
        Named in the error, e.g. the file.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        known = ", ".join(sorted(model.model_fields))
        raise ConfigError(f"{source}: {_problems(error, known)}") from error


def validate_policy(content: Json, *, source: str) -> PolicyConfig:
    """Validate a mapping as one of the policy configs; same errors as ``validate``."""
    try:
        return _POLICY.validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_problems(error, '')}") from error


_WANTED = {
    "dict_type": "give a mapping of keys to values",
    "frozen_set_type": "give a list",
    "model_attributes_type": "give a mapping of keys to values",
    "model_type": "give a mapping of keys to values",
    "path_type": "give a path",
    "tuple_type": "give a list",
}
"""What pydantic says in terms of Python, in terms of YAML; other messages are plain enough."""


def _problems(error: ValidationError, known: str) -> str:
    problems = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        kind, value = entry["type"], entry["input"]
        message = _WANTED.get(kind, entry["msg"].removeprefix("Value error, "))
        if kind == "extra_forbidden":
            top_level = known and len(entry["loc"]) == 1
            message = "unknown key" + (f" (known: {known})" if top_level else "")
            known = ""  # said once
        elif isinstance(value, _Filled):
            message += " (the value is from the environment)"
        elif kind != "value_error" and (isinstance(value, _SCALAR) or value is None):
            message += f", not {value!r:.80}"
        problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


_SCALAR = (bool, int, float, str)


def load_config(path: str | Path) -> RuntimeConfig:
    """Read and validate a runtime config; ``artifact`` becomes relative to the file's folder.

    Raises
    ------
    ConfigError
        One line naming the file, the key, what is wrong and what is known.
    """
    file = Path(path)
    config = validate(RuntimeConfig, read_yaml(file), source=str(file))
    return config.model_copy(update={"artifact": (file.parent / config.artifact).resolve()})
