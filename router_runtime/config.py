"""What is chosen, not learned: candidates, prices, targets, policies, as frozen values.

Secrets are never in a config, only the name of the variable that holds them (``api_key_env``).
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from router_runtime.errors import ConfigError
from router_runtime.service_config import ServiceConfig
from router_runtime.types import Json, Modality
from router_runtime.yaml_config import StrictModel, problems, read_yaml, validate

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


class LoraxTargetConfig(_TargetBase):
    """A LoRAX server, which loads the adapter that ``model`` names when it is first asked for."""

    kind: Literal["lorax"]
    base_url: Url


class LoraVllmTargetConfig(_TargetBase):
    """A LoRA adapter on one or more vLLM replicas; ``model`` is the adapter's name.

    Parameters
    ----------
    base_urls : tuple of str
        One per replica. A call goes to the one with the fewest calls in flight.
    adapter_path : str or None
        Where the replicas find the adapter; a replica that does not have it is told to load it
        from there. None: an adapter that is missing is an error.
    adapters_root : str or None
        The folder on the replicas' machines below which ``adapter_path`` must lie.
    rest_s : float
        How long a replica that failed is left alone.
    """

    kind: Literal["lora-vllm"]
    base_urls: tuple[Url, ...] = Field(min_length=1)
    adapter_path: str | None = Field(default=None, min_length=1)
    adapters_root: str | None = Field(default=None, min_length=1)
    rest_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _below_root(self) -> LoraVllmTargetConfig:
        if len({url.rstrip("/") for url in self.base_urls}) < len(self.base_urls):
            raise ValueError("'base_urls' names a replica twice; remove one")
        if self.adapter_path is None:
            return self
        if self.adapters_root is None:
            raise ValueError("'adapter_path' needs 'adapters_root', the folder that it must be in")
        root, path = PurePosixPath(self.adapters_root), PurePosixPath(self.adapter_path)
        inside = path.is_relative_to(root) and path != root
        if not (root.is_absolute() and inside) or ".." in (*root.parts, *path.parts):
            raise ValueError(
                f"'adapter_path' must be an absolute path below 'adapters_root' "
                f"({self.adapters_root}), without '..'"
            )
        return self


class PeftTargetConfig(_TargetBase):
    """A LoRA expert in this process; ``model`` is the adapter's name, or the base model's.

    Parameters
    ----------
    experts : Path
        An experts config (as for ``model-router experts serve``). Candidates that name the same
        file share one base model in memory.
    """

    kind: Literal["peft"]
    experts: Path
    api_key_env: None = None


HttpTargetConfig: TypeAlias = (
    OpenAITargetConfig
    | AzureTargetConfig
    | NimTargetConfig
    | VllmTargetConfig
    | CompatibleTargetConfig
    | LoraxTargetConfig
)
"""One server that speaks OpenAI's API."""

TargetConfig = Annotated[
    HttpTargetConfig | LoraVllmTargetConfig | PeftTargetConfig,
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
    """The model that takes queries of which a prediction says little.

    Parameters
    ----------
    model : str
    novelty_above : float or None
        Bound on ``decision.novelty``: of queries like the training data a share of
        ``1 - novelty_above`` is beyond it; 1 never falls back. None: novelty does not matter, which
        is the default beside ``confidence_below``.
    confidence_below : float or None
        Bound on the highest probability of an eligible model; None: it does not matter.
    """

    model: str = Field(min_length=1)
    novelty_above: Probability | None = 0.99
    confidence_below: Probability | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_bound_is_enough(cls, value: Json) -> Json:
        if isinstance(value, dict) and value.get("confidence_below") is not None:
            return {"novelty_above": None, **value}
        return value

    @model_validator(mode="after")
    def _some_bound(self) -> FallbackConfig:
        if self.novelty_above is None and self.confidence_below is None:
            raise ValueError("give novelty_above, confidence_below or both, or leave it out")
        return self


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


class ImageFetchConfig(StrictModel):
    """Hosts from which the service fetches pictures that a request names by an ``https`` URL.

    Parameters
    ----------
    hosts : tuple of str
        Names, exact or ``*.example.com`` for what is below one.
    ports : tuple of int
        Allowed beside 443.
    timeout_s : float
        Seconds for all pictures of one request.
    max_redirects : int
    """

    hosts: tuple[str, ...] = Field(min_length=1)
    ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = ()
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    max_redirects: int = Field(default=2, ge=0, le=10)


class ImageLimitsConfig(StrictModel):
    """Caps on incoming pictures; without ``fetch`` they come as data URIs only."""

    max_bytes: int = Field(default=20 * 2**20, ge=1)
    max_pixels: int = Field(default=50_000_000, ge=1)
    fetch: ImageFetchConfig | None = None


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
    direct : tuple of CandidateConfig
        Models that the service calls by name only, such as embedding models; never routed to.
    service : ServiceConfig
        How ``model-router serve`` listens, limits, remembers and fails.
    """

    artifact: Path
    candidates: tuple[CandidateConfig, ...] = ()
    policies: dict[str, PolicyConfig] = Field(default_factory=dict)
    policy: str | None = None
    encoder: EncoderRuntime = EncoderRuntime()
    images: ImageLimitsConfig = ImageLimitsConfig()
    model_thresholds: dict[str, Probability] | None = None
    model_costs: dict[str, Cost] | None = None
    direct: tuple[CandidateConfig, ...] = ()
    service: ServiceConfig = ServiceConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RuntimeConfig:
        check_candidates((*self.candidates, *self.direct))
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


def validate_policy(content: Json, *, source: str) -> PolicyConfig:
    """Validate a mapping as one of the policy configs; same errors as ``validate``."""
    try:
        return _POLICY.validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems(error)}") from error


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
