"""What is chosen, not learned: candidates, prices, targets, policies, as frozen values.

Secrets are never in a config, only the name of the variable that holds them (``api_key_env``).
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from router_runtime.base_artifact import base_artifact
from router_runtime.errors import ConfigError
from router_runtime.service_config import ServiceConfig
from router_runtime.target_config import PeftTargetConfig, TargetConfig
from router_runtime.types import Json, Modality
from router_runtime.yaml_config import StrictModel, problems, read_yaml, validate

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Cost = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class EncoderRuntime(StrictModel):
    """Where and how fast encoders run; never changes what they mean.

    With ``engine: onnx`` or ``openvino``, encoders of PyTorch are served from ``folder``. An
    artifact takes such an encoder when it was exported from its own without loss, or when
    ``model-router check-encoder`` has accepted it.

    Parameters
    ----------
    device : str
        ``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size : int
        Texts or pictures that are encoded together.
    url : str or None
        Where a remote encoder is, instead of the place that the artifact names.
    api_key_env : str or None
        Name of the environment variable with the key of a remote encoder.
    base : str or None
        Folder or hub id of a router adapter's base model, where that is not at the place that the
        artifact names.
    timeout_s : float
        Seconds for one call of a remote encoder.
    engine : str
        ``torch``, or for exported encoders, which need no PyTorch, ``onnx`` or ``openvino``.
    folder : Path or None
        One that ``model-router export-encoder`` wrote, or one that holds several of these; for
        exported encoders, as are all below.
    precision : str
        ``fp32`` or, with ``onnx``, ``int8``, whichever was exported there. With ``openvino``,
        ``bf16`` computes what was exported as fp32 in bfloat16, on processors that have it.
    threads : int
        Of one encoding.
    cpus : tuple of int or None
        Numbers of the CPUs that it may run on; None: all. With ``openvino``, for one thread.
    """

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")
    batch_size: int = Field(default=64, ge=1, le=65_536)
    url: str | None = None
    api_key_env: str | None = None
    base: str | None = Field(default=None, min_length=1)
    timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    engine: Literal["torch", "onnx", "openvino"] = "torch"
    folder: Path | None = None
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    threads: int = Field(default=1, ge=1, le=1024)
    cpus: tuple[Annotated[int, Field(ge=0, le=65_535)], ...] | None = Field(
        default=None, min_length=1
    )

    @model_validator(mode="after")
    def _one_engine(self) -> EncoderRuntime:
        if self.exported:
            engine = f"'engine: {self.engine}'"
            if self.folder is None:
                raise ValueError(
                    f"{engine} needs 'folder', which `model-router export-encoder` writes"
                )
            if self.device.startswith("cuda"):
                raise ValueError(f"{engine} runs on the CPU; leave 'device' out")
            if self.precision == "bf16" and self.engine == "onnx":
                raise ValueError("'precision: bf16' needs 'engine: openvino'")
            if self.precision == "int8" and self.engine == "openvino":
                raise ValueError("'precision: int8' needs 'engine: onnx', which is faster in it")
            if self.engine == "openvino" and self.cpus is not None and self.threads > 1:
                raise ValueError(
                    "'cpus' with 'engine: openvino' needs 'threads: 1', because its other threads "
                    "cannot be bound"
                )
            return self
        given = self.model_fields_set & {"folder", "precision", "threads", "cpus"}
        if idle := sorted(name for name in given if getattr(self, name) is not None):
            raise ValueError(
                f"'{idle[0]}' counts for 'engine: onnx' or 'openvino' alone; set one of these, or "
                "remove it"
            )
        return self

    @property
    def exported(self) -> bool:
        """Whether encoders come from a folder of exported ones."""
        return self.engine != "torch"

    def placed(self, folder: Path) -> EncoderRuntime:
        """Return the same with its own folder relative to ``folder``, a config file's."""
        if self.folder is None:
            return self
        return self.model_copy(update={"folder": (folder / self.folder).resolve()})


class PriceConfig(StrictModel):
    """US dollars per million tokens and per picture.

    Parameters
    ----------
    input_mtok : Decimal
        Per million tokens of input.
    output_mtok : Decimal
        Per million tokens of output.
    cached_input_mtok : Decimal or None
        Per million input tokens that the provider had in its cache; None: as ``input_mtok``.
    image : Decimal
        Per picture, beside its tokens.
    """

    input_mtok: Decimal = Field(ge=0)
    output_mtok: Decimal = Field(ge=0)
    cached_input_mtok: Decimal | None = Field(default=None, ge=0)
    image: Decimal = Field(default=Decimal(0), ge=0)


class CandidateConfig(StrictModel):
    """A model that may be chosen: what it accepts, what it costs and where it is called.

    One config uses ``price`` or ``cost``, not both.

    Parameters
    ----------
    id : str
        What every decision calls it.
    tier : str or None
        The artifact's column that predicts for it, where that has another name: of the base
        artifact ``weak`` or ``strong``.
    modalities : set of Modality
        What it accepts; a request with a picture goes to candidates with ``image`` only.
    context_window : int or None
        Tokens; longer requests do not go to it. None: no bound is known.
    tools : bool
        Whether it can call tools; requests with tools go to no other.
    json_mode : bool
        Whether it can answer in JSON mode; requests that ask for it go to no other.
    price : PriceConfig or None
        US dollars.
    cost : float or None
        A relative factor without a unit, as in ``model_costs``.
    target : TargetConfig or None
        Where it is called; needed only where it is.
    """

    id: str = Field(min_length=1)
    tier: str | None = Field(default=None, min_length=1)
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    context_window: int | None = Field(default=None, ge=1)
    tools: bool = True
    json_mode: bool = True
    price: PriceConfig | None = None
    cost: Cost | None = None
    target: TargetConfig | None = None

    @property
    def column(self) -> str:
        """What the artifact calls it."""
        return self.id if self.tier is None else self.tier

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
        The candidate's id.
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

    Parameters
    ----------
    thresholds : mapping of model to float
        The probability that a model must reach.
    default_threshold : float
        Of models that ``thresholds`` does not name; 0 lets them always qualify.
    fallback : FallbackConfig or None
        Who takes queries of which a prediction says little; None: nobody in particular.
    """

    kind: Literal["cheapest_qualified"] = "cheapest_qualified"
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    default_threshold: Probability = 0.0
    fallback: FallbackConfig | None = None


class UtilityConfig(StrictModel):
    """The highest ``P - lambda x cost``.

    Parameters
    ----------
    lambda_per_usd : float
        Probability of a good answer that a US dollar must buy (or a unit of relative cost); 0
        chooses by probability alone.
    fallback : FallbackConfig or None
        Who takes queries of which a prediction says little; None: nobody in particular.
    """

    kind: Literal["utility"] = "utility"
    lambda_per_usd: float = Field(ge=0, allow_inf_nan=False)
    fallback: FallbackConfig | None = None


class HighestProbabilityConfig(StrictModel):
    """The highest probability, whatever it costs.

    Parameters
    ----------
    fallback : FallbackConfig or None
        Who takes queries of which a prediction says little; None: nobody in particular.
    """

    kind: Literal["highest_probability"] = "highest_probability"
    fallback: FallbackConfig | None = None


class FixedConfig(StrictModel):
    """Always the same model, while it is eligible.

    Parameters
    ----------
    model : str
        The candidate's id.
    """

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
        Followed for one picture, to allowed hosts only.
    """

    hosts: tuple[str, ...] = Field(min_length=1)
    ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = ()
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    max_redirects: int = Field(default=2, ge=0, le=10)


class ImageLimitsConfig(StrictModel):
    """Caps on incoming pictures.

    Parameters
    ----------
    max_bytes : int
        Of one picture as it comes; larger ones are refused.
    max_pixels : int
        Of one picture, told before it is decoded; larger ones are refused.
    fetch : ImageFetchConfig or None
        From where pictures may be fetched; None: they come as data URIs only.
    """

    max_bytes: int = Field(default=20 * 2**20, ge=1)
    max_pixels: int = Field(default=50_000_000, ge=1)
    fetch: ImageFetchConfig | None = None


class RuntimeConfig(StrictModel):
    """What is chosen, not learned: changes without retraining.

    Parameters
    ----------
    artifact : Path
        The artifact's folder, relative to the config file. Default: the base artifact, with the
        tiers ``weak`` and ``strong``.
    candidates : tuple of CandidateConfig
        The models that may be chosen, each known to the artifact by its ``tier`` or, without one,
        its ``id``; no two by the same. A candidate with a ``tier`` has a price or a relative cost
        of its own: what the artifact learned are other models' costs. Empty: every model of the
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

    artifact: Path = Field(default_factory=base_artifact)
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
        check_candidates((*self.candidates, *self.direct), tiers=True)
        _check_tiers(self)
        if self.model_thresholds is not None and (self.policy or self.policies):
            raise ValueError(
                "'model_thresholds' and 'policy'/'policies' say the same thing twice; keep one"
            )
        if self.model_costs is not None and any(
            c.price is not None or c.cost is not None for c in self.candidates
        ):
            raise ValueError("'model_costs' and the candidates' own price or cost: keep one")
        return self


def check_candidates(candidates: tuple[CandidateConfig, ...], *, tiers: bool = False) -> None:
    """Refuse repeated ids, a mix of prices and relative costs and, where none counts, a ``tier``.

    Raises
    ------
    ValueError
        Naming the id or the two kinds of cost.
    """
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.tier is not None and not tiers:
            raise ValueError(
                f"candidate '{candidate.id}' has a 'tier', which counts only where an artifact "
                "serves; remove it"
            )
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


def _check_tiers(config: RuntimeConfig) -> None:
    """Refuse tiers that would mean nothing, and two candidates for one column.

    Two of one tier would be predicted alike, and the cheaper always be chosen.
    """
    if named := next((c.id for c in config.direct if c.tier is not None), None):
        raise ValueError(
            f"direct model '{named}' has a 'tier', but is never routed to; remove the tier"
        )
    taken: dict[str, str] = {}
    for candidate in config.candidates:
        column = candidate.column
        if other := taken.get(column):
            raise ValueError(
                f"candidates '{other}' and '{candidate.id}' are both '{column}' to the artifact, "
                "which would predict the same for both; keep one"
            )
        taken[column] = candidate.id
        costs = (candidate.price, candidate.cost, (config.model_costs or {}).get(candidate.id))
        if candidate.tier is not None and all(cost is None for cost in costs):
            raise ValueError(
                f"candidate '{candidate.id}' has a 'tier' and no cost of its own; give it a "
                "'price', or a relative 'cost'"
            )


def validate_policy(content: Json, *, source: str) -> PolicyConfig:
    """Validate a mapping as one of the policy configs; same errors as ``validate``."""
    try:
        return _POLICY.validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems(error)}") from error


def load_config(path: str | Path) -> RuntimeConfig:
    """Read and validate a runtime config; its paths become relative to the file's folder.

    Raises
    ------
    ConfigError
        One line naming the file, the key, what is wrong and what is known.
    """
    file = Path(path)
    config = validate(RuntimeConfig, read_yaml(file), source=str(file))
    folder = file.parent
    return config.model_copy(
        update={
            "artifact": (folder / config.artifact).resolve(),
            "encoder": config.encoder.placed(folder),
            "candidates": tuple(_placed(candidate, folder) for candidate in config.candidates),
            "direct": tuple(_placed(candidate, folder) for candidate in config.direct),
        }
    )


def _placed(candidate: CandidateConfig, folder: Path) -> CandidateConfig:
    target = candidate.target
    if not isinstance(target, PeftTargetConfig):
        return candidate
    placed = target.model_copy(update={"experts": (folder / target.experts).resolve()})
    return candidate.model_copy(update={"target": placed})
