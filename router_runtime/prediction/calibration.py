"""Per-model maps from a head's probabilities to calibrated ones: applied, written and read.

``fit_calibration`` chooses and fits them. Every map is non-decreasing, so that calibration changes
how sure a model looks but never the order of two queries for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from router_runtime.errors import ArtifactError, QueryError
from router_runtime.prediction.heads.base import logit, sigmoid
from router_runtime.types import F64, Int, Json

_Unit = Annotated[float, Field(ge=0, le=1)]


class _Map(BaseModel):
    """A map, and how far its result is drawn to a constant.

    Parameters
    ----------
    prior : float in [0, 1]
        The model's rate of good answers.
    shrinkage : float in [0, 1]
        ``(1 - shrinkage) * map(p) + shrinkage * prior``; above 0 where few scores were at hand.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prior: _Unit = 0.5
    shrinkage: _Unit = 0.0


class NoneMap(_Map):
    """The identity, exactly."""

    kind: Literal["none"] = "none"


class TemperatureMap(_Map):
    """``sigmoid(logit(p) / temperature)``: less extreme above 1 (Guo et al. 2017)."""

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)


class SigmoidMap(_Map):
    """``sigmoid(slope * logit(p) + intercept)``: Platt's map on log odds, never decreasing."""

    kind: Literal["sigmoid"] = "sigmoid"
    slope: float = Field(ge=0)
    intercept: float


class IsotonicMap(_Map):
    """Straight lines between knots, constant outside them.

    Parameters
    ----------
    x : tuple of float in [0, 1]
        Strictly increasing probabilities before calibration.
    y : tuple of float in [0, 1]
        Non-decreasing probabilities after it.
    """

    kind: Literal["isotonic"] = "isotonic"
    x: tuple[_Unit, ...] = Field(min_length=1)
    y: tuple[_Unit, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_monotone(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError("x and y differ in length")
        if any(a >= b for a, b in pairwise(self.x)) or any(a > b for a, b in pairwise(self.y)):
            raise ValueError("x must increase strictly and y must not decrease")
        return self


CalibrationMap: TypeAlias = Annotated[
    NoneMap | TemperatureMap | SigmoidMap | IsotonicMap, Field(discriminator="kind")
]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    maps: tuple[CalibrationMap, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Calibrator:
    """One map per model, in the column order of ``P``.

    Parameters
    ----------
    maps : tuple of NoneMap, TemperatureMap, SigmoidMap or IsotonicMap
        Immutable, so that threads may share the calibrator.
    """

    maps: tuple[CalibrationMap, ...]

    @classmethod
    def identity(cls, n_models: int) -> Self:
        """Return the calibrator that changes nothing."""
        return cls((NoneMap(),) * n_models)

    def apply(self, P: F64) -> F64:
        """Calibrate probabilities.

        Parameters
        ----------
        P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
            What the head predicted; not written to.

        Returns
        -------
        ndarray of shape (n_queries, n_models), float64 in [0, 1]

        Raises
        ------
        QueryError
            ``P`` has not one column per map.
        """
        if P.ndim != 2 or P.shape[1] != len(self.maps):
            raise QueryError(
                f"The probabilities have shape {P.shape} and the calibration {len(self.maps)} "
                "models. Use the head and the calibration of one artifact."
            )
        out = P.copy()
        columns, slopes, intercepts = self._affine
        if len(columns):
            out[:, columns] = sigmoid(slopes * logit(P[:, columns]) + intercepts)
        for j, x, y in self._knots:
            out[:, j] = np.interp(P[:, j], x, y)
        columns, shrinkage, prior = self._shrunken
        if len(columns):
            out[:, columns] = (1.0 - shrinkage) * out[:, columns] + shrinkage * prior
        return out

    @cached_property
    def _affine(self) -> tuple[Int, F64, F64]:
        """Columns whose map is affine in log odds, with slopes and intercepts."""
        found = [
            (j, 1.0 / m.temperature, 0.0)
            if isinstance(m, TemperatureMap)
            else (j, m.slope, m.intercept)
            for j, m in enumerate(self.maps)
            if isinstance(m, TemperatureMap | SigmoidMap)
        ]
        return _columns(found)

    @cached_property
    def _knots(self) -> list[tuple[int, F64, F64]]:
        return [
            (j, np.array(m.x), np.array(m.y))
            for j, m in enumerate(self.maps)
            if isinstance(m, IsotonicMap)
        ]

    @cached_property
    def _shrunken(self) -> tuple[Int, F64, F64]:
        """Columns that are drawn to a prior, with shrinkage and prior."""
        return _columns([(j, m.shrinkage, m.prior) for j, m in enumerate(self.maps) if m.shrinkage])

    def to_json(self) -> Json:
        """Return ``{"maps": [...]}``, from which ``from_json`` makes an equal calibrator."""
        return {"maps": [m.model_dump(mode="json") for m in self.maps]}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Read what ``to_json`` returned.

        Raises
        ------
        ArtifactError
            Naming the first field that is malformed.
        """
        try:
            return cls(_Document.model_validate(value).maps)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "calibration"
            raise ArtifactError(
                f"The calibration is malformed at '{field}': {problem['msg']}. "
                "Restore the artifact folder from its source, or train again."
            ) from error


def _columns(rows: list[tuple[int, float, float]]) -> tuple[Int, F64, F64]:
    columns, first, second = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(columns, dtype=np.int64), np.array(first, float), np.array(second, float)
