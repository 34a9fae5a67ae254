"""YAML to a validated ``TrainingConfig``: what ``router-train run`` does.

Paths are relative to the config file. Every key has a default but ``data.path`` and ``output``.
The artifact's manifest keeps what its figures depend on: features, head, calibration and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from router_runtime.config import CandidateConfig, EncoderRuntime, Probability, check_candidates
from router_runtime.prediction.features import FeatureSpec
from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel, read_yaml, validate, with_overrides
from router_training import recipe
from router_training.fitting import HeadConfig, MlpConfig, StackConfig
from router_training.predictor_configs import PredictorConfig

_Head = TypeVar("_Head")


class DataConfig(StrictModel):
    """Where the evaluation records are.

    Parameters
    ----------
    path : Path or None
        A file, or a folder of Parquet files; may be given by ``--data`` instead.
    source : str
        A format that ``router-train import`` knows, or ``auto``.
    image_root : Path or None
        Where picture paths in records start; None: at the records' folder.
    on_bad_row : str
        ``error`` ends at a row that cannot be used, ``skip`` leaves it out and counts it.
    drop_contaminated : bool
        Leave out rows that a table marks as known to a model from its own training.
    limit : int or None
        That many rows at random; None: all.
    model_ids : tuple of str or None
        Models that may be scored, in the order of the artifact's columns and of whole-number
        ``label``s; None: the models that occur.
    """

    path: Path | None = None
    source: str = "auto"
    image_root: Path | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    drop_contaminated: bool = True
    limit: int | None = Field(default=None, ge=20)
    model_ids: tuple[str, ...] | None = Field(default=None, min_length=1)


class SplitConfig(StrictModel):
    """Shares of rows; groups are never divided between parts.

    Parameters
    ----------
    train : float
        Fits encoders and head. The four sum to 1.
    validation : float
        Chooses settings, and when to stop.
    calibration : float
        Calibrates, and tunes thresholds or lambda.
    test : float
        Is measured on, once.
    """

    train: float = Field(default=0.6, gt=0, lt=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    calibration: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        if abs(sum(self.fractions) - 1.0) > 1e-9:
            raise ValueError(f"the shares sum to {sum(self.fractions):g}; make them sum to 1")
        return self

    @property
    def fractions(self) -> tuple[float, float, float, float]:
        """Train, validation, calibration, test."""
        return (self.train, self.validation, self.calibration, self.test)


class CalibrationConfig(StrictModel):
    """How probabilities are calibrated.

    Parameters
    ----------
    method : str
        ``auto`` chooses per model by cross-validated log loss.
    """

    method: Literal["auto", "none", "temperature", "sigmoid", "isotonic"] = "auto"


class NoveltyFallbackConfig(StrictModel):
    """Who takes queries whose novelty is above a bound; part of the recommended policy.

    Parameters
    ----------
    novelty_above : float
        The bound; 1 never falls back.
    model : str or None
        None: the one that is best alone on the training and calibration rows.
    """

    novelty_above: Probability = 0.99
    model: str | None = Field(default=None, min_length=1)


class NoveltyConfig(StrictModel):
    """How the router knows queries unlike its training data, and what it then does.

    Parameters
    ----------
    enabled : bool
        False: the artifact knows nothing of novelty.
    components : int
        Principal components of the features in which distances are taken.
    neighbours : int
        The distance is the mean over this many nearest training rows.
    shrink_above : float
        Above this novelty probabilities go to each model's base rate, wholly so at 1; 1 never.
    fallback : NoveltyFallbackConfig or "off"
        The recommended policy's fallback.
    """

    enabled: bool = True
    components: int = Field(default=32, ge=1, le=1024)
    neighbours: int = Field(default=1, ge=1, le=100)
    shrink_above: Probability = 0.98
    fallback: NoveltyFallbackConfig | Literal["off"] = NoveltyFallbackConfig()

    @field_validator("fallback", mode="before")
    @classmethod
    def _yaml_off(cls, value: Json) -> Json:
        """Let YAML's unquoted ``off``, which it reads as false, be ``off``."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _nothing_unused(self) -> NoveltyConfig:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        unused = [name for name, value in self if name != "enabled" and value != defaults[name]]
        if unused and not self.enabled:
            raise ValueError(f"without novelty '{unused[0]}' would change nothing; remove it")
        return self


class TuneConfig(StrictModel):
    """The outcome that thresholds or lambda are tuned to, on the calibration split.

    One of the two; without either, 0.98 of the best single model's quality.

    Parameters
    ----------
    target_quality : float or None
        A share of the best single model's quality, at least cost.
    max_cost_per_1k : float or None
        US dollars per 1,000 calls (or relative cost units), at best quality.
    """

    target_quality: float | None = Field(default=None, gt=0, le=2)
    max_cost_per_1k: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_goal(self) -> TuneConfig:
        if self.target_quality is not None and self.max_cost_per_1k is not None:
            raise ValueError("target_quality and max_cost_per_1k are two goals; keep one")
        return self

    @property
    def goal(self) -> dict[str, float | None]:
        """The goal as keyword arguments of ``tune.tune``; 98 % quality when none is stated."""
        quality = self.target_quality
        if quality is None and self.max_cost_per_1k is None:
            quality = 0.98
        return {"target_quality": quality, "max_cost_per_1k": self.max_cost_per_1k}


class TrainingConfig(StrictModel):
    """One training run.

    Parameters
    ----------
    head : HeadConfig
        Learns from the features; a kind alone (``head: logistic``) stands for its defaults.
    predictor : PredictorConfig or None
        Learns this instead of a head on features; of ``features`` only ``text`` counts then.
    encoder : EncoderRuntime
        Device and batch size of the encoders.
    candidates : tuple of CandidateConfig
        Prices for expected and actual cost; records that carry ``model_costs`` need none.
    output : Path
        The artifact's folder.
    work_dir : Path
        Where stages keep what they made, so that an interrupted run continues.
    seed : int
        Splits, initial weights, shuffles, resampling.
    """

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    features: FeatureSpec = recipe.FEATURES
    encoder: EncoderRuntime = EncoderRuntime()
    head: HeadConfig = recipe.HEAD
    predictor: PredictorConfig | None = None
    calibration: CalibrationConfig = CalibrationConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    candidates: tuple[CandidateConfig, ...] = ()
    tune: TuneConfig = TuneConfig()
    output: Path
    work_dir: Path = Path("runs")
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("features", mode="before")
    @classmethod
    def _short_encoder_names(cls, value: Json) -> Json:
        """Let ``encoders: [clip, embedded]`` stand for their defaults."""
        if isinstance(value, dict) and isinstance(value.get("encoders"), list):
            named = [{"kind": e} if isinstance(e, str) else e for e in value["encoders"]]
            return {**value, "encoders": named}
        return value

    @field_validator("head", mode="before")
    @classmethod
    def _short_head_name(cls, value: Json) -> Json:
        """Let ``head: logistic`` stand for its defaults."""
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("predictor", mode="before")
    @classmethod
    def _short_predictor_name(cls, value: Json) -> Json:
        """Let ``predictor: sequence`` stand for its defaults."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        check_candidates(self.candidates)
        return self

    @model_validator(mode="after")
    def _nothing_unused(self) -> TrainingConfig:
        if self.predictor is None:
            return self
        unused = self.model_fields_set & {"head", "novelty"}
        if "features" in self.model_fields_set:
            unused |= {f"features.{name}" for name in self.features.model_fields_set - {"text"}}
        if unused:
            raise ValueError(
                f"with 'predictor: {{kind: {self.predictor.kind}}}' the key '{min(unused)}' would "
                "change nothing; remove it"
            )
        return self


def load_training_config(
    path: str | Path, *, overrides: dict[str, Json] | None = None
) -> TrainingConfig:
    """Read and validate a training config.

    Parameters
    ----------
    path : path
        A YAML file.
    overrides : mapping, optional
        Values from the command line by dotted key (``data.path``), relative to the current folder.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    """
    file = Path(path)
    content = with_overrides(read_yaml(file), overrides or {}, source=str(file))
    config = validate(TrainingConfig, content, source=str(file))
    base = file.parent.resolve()

    def absolute(value: Path | None) -> Path | None:
        return None if value is None else (base / value).resolve()

    data = config.data.model_copy(
        update={"path": absolute(config.data.path), "image_root": absolute(config.data.image_root)}
    )

    def moved_head(head: _Head) -> _Head:
        if isinstance(head, MlpConfig):
            return head.model_copy(update={"tensorboard": absolute(head.tensorboard)})
        if isinstance(head, StackConfig):
            return head.model_copy(update={"heads": tuple(map(moved_head, head.heads))})
        return head

    moved = {
        "data": data,
        "head": moved_head(config.head),
        "output": absolute(config.output),
        "work_dir": absolute(config.work_dir),
        "encoder": config.encoder.placed(base),
    }
    return config.model_copy(update=moved)
