"""YAML to a validated ``SimulatorConfig``: which simulated models there are and how they behave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from router_runtime.config import PriceConfig, Probability
from router_runtime.simulator.faults import FAULT_KINDS
from router_runtime.types import Modality
from router_runtime.yaml_config import StrictModel, read_yaml, validate

Skill: TypeAlias = tuple[Probability, Probability]
"""The chance of a good answer to the easiest and to the hardest task."""

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=3, allow_inf_nan=False)]


class TopicConfig(StrictModel):
    """How prompts that ``answers`` does not know are given a topic.

    Parameters
    ----------
    match : str
        A regular expression that is found in them.
    """

    match: str = Field(min_length=1)

    @field_validator("match")
    @classmethod
    def _a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from None
        return value


class LatencyConfig(StrictModel):
    """Seconds to the first byte, log-normal.

    Parameters
    ----------
    median_s : float
        Half of the answers begin sooner.
    sigma : float
        Spread of the logarithm; 0: all take the same.
    """

    median_s: Seconds = 0.0
    sigma: Spread = 0.0


class UsageConfig(StrictModel):
    """Tokens that a model reports.

    Parameters
    ----------
    verbosity : float
        Output tokens relative to what the answer needs.
    sigma : float
        Spread of their logarithm from call to call.
    image_tokens : int
        Input tokens of one picture.
    """

    verbosity: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    sigma: Spread = 0.0
    image_tokens: int = Field(default=800, ge=0)


class ErrorsConfig(StrictModel):
    """How often a call meets a fault, and which.

    Parameters
    ----------
    rate : float
        Share of the calls.
    kinds : tuple of str
        Each as likely as the others; an unknown one is refused with the list of all.
    sticky : bool
        Equal calls always meet the same fault, so that asking again does not help. Otherwise it
        depends on how many calls came before.
    """

    rate: Probability = 0.0
    kinds: tuple[str, ...] = ("status_500",)
    sticky: bool = False

    @model_validator(mode="after")
    def _known(self) -> ErrorsConfig:
        if self.rate and not self.kinds:
            raise ValueError("name at least one kind of fault, or leave 'errors' out")
        for kind in self.kinds:
            if kind not in FAULT_KINDS:
                raise ValueError(f"there is no fault '{kind}' (known: {', '.join(FAULT_KINDS)})")
        return self


class RateLimitConfig(StrictModel):
    """Calls above it are answered 429 with ``Retry-After``.

    Parameters
    ----------
    requests_per_minute : int
        Refilled evenly.
    burst : int or None
        Calls that may come at once; None: those of a minute.
    """

    requests_per_minute: int = Field(ge=1)
    burst: int | None = Field(default=None, ge=1)


class JudgingConfig(StrictModel):
    """How well a simulated judge judges.

    Parameters
    ----------
    accuracy : float
        Share of verdicts that say what is true of the answer.
    invalid_rate : float
        Share of replies that hold no verdict.
    position_bias : float
        Share of comparisons in which the answer shown first wins, whatever it says.
    """

    accuracy: Probability = 0.95
    invalid_rate: Probability = 0.0
    position_bias: Probability = 0.0


class SimulatedModelConfig(StrictModel):
    """One simulated model.

    Parameters
    ----------
    role : str
        ``candidate`` answers prompts, ``judge`` reads a judge's prompt and replies with a verdict,
        ``embedding`` turns texts and pictures into vectors.
    skills : mapping
        Per topic the chance of a good answer at difficulty 0 and 1.
    default_skill : tuple of float
        Of all other topics.
    modalities : set
        A picture sent to a model without ``image`` is refused with 400.
    price : PriceConfig or None
        For the ledger; None: it costs nothing.
    tokens_per_second : float or None
        Output; None: all at once after ``latency``.
    max_concurrency : int or None
        More calls at a time are answered 429.
    logprobs : bool
        Whether log-probabilities are told to who asks for them; otherwise they are null.
    response_formats : set
        Accepted types of ``response_format`` beside ``text``; others are refused with 400.
    judge : JudgingConfig
        Used by the role ``judge``.
    dimensions : int
        Length of vectors; used by the role ``embedding``.
    """

    role: Literal["candidate", "judge", "embedding"] = "candidate"
    skills: dict[str, Skill] = Field(default_factory=dict)
    default_skill: Skill = (0.9, 0.3)
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    price: PriceConfig | None = None
    latency: LatencyConfig = LatencyConfig()
    tokens_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    usage: UsageConfig = UsageConfig()
    errors: ErrorsConfig = ErrorsConfig()
    rate_limit: RateLimitConfig | None = None
    max_concurrency: int | None = Field(default=None, ge=1)
    logprobs: bool = True
    response_formats: frozenset[Literal["json_object", "json_schema"]] = frozenset(
        {"json_object", "json_schema"}
    )
    judge: JudgingConfig = JudgingConfig()
    dimensions: int = Field(default=512, ge=1, le=16_384)

    @model_validator(mode="after")
    def _used(self) -> SimulatedModelConfig:
        for name, role in (("judge", "judge"), ("dimensions", "embedding")):
            if name in self.model_fields_set and self.role != role:
                raise ValueError(f"'{name}' belongs to the role '{role}'; this is a {self.role}")
        for name in ("skills", "default_skill"):
            if name in self.model_fields_set and self.role != "candidate":
                raise ValueError(f"'{name}' belongs to the role 'candidate'")
        return self


class SimulatorConfig(StrictModel):
    """A simulated provider.

    Parameters
    ----------
    seed : int
        Of everything drawn.
    answers : Path or None
        Prompts and answers that the simulator knows, as ``router-train simulate --unlabelled``
        writes them; relative to the config file.
    topics : mapping
        Topics of all other prompts; the first match counts.
    models : mapping
        The models by id.
    api_key_env : str or None
        Environment variable with the key that callers must send; None: any caller is served.
    """

    seed: int = Field(default=0, ge=0)
    answers: Path | None = None
    topics: dict[str, TopicConfig] = Field(default_factory=dict)
    models: dict[str, SimulatedModelConfig] = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


DEFAULT_TOPIC: Final = "other"
"""The topic of a prompt that nothing matches."""


def load_simulator_config(path: str | Path) -> SimulatorConfig:
    """Read and validate a simulator's config.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    """
    file = Path(path)
    config = validate(SimulatorConfig, read_yaml(file), source=str(file))
    if config.answers is None:
        return config
    located = (file.parent / config.answers).resolve()
    return config.model_copy(update={"answers": located})
