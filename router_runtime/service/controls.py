"""A request's ``router`` object becomes ``Controls``: checked by hand, and held to the bounds.

Unknown keys are errors: a misspelt ``max_cost_usd`` that was ignored would cost money.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final, NoReturn

from router_runtime.errors import ConfigError, RequestError
from router_runtime.model_router import ModelRouter
from router_runtime.service.values import Controls
from router_runtime.service_config import ClampConfig
from router_runtime.types import Json

_SHOWN: Final = 60  # characters of a client's own value in a message
_LISTED: Final = 20  # names of models in a message


def read_controls(
    content: Json, *, model_field_policy: str | None, router: ModelRouter, clamps: ClampConfig
) -> Controls:
    """Return the checked controls of one request.

    Parameters
    ----------
    content : Json
        The body's ``router`` object; None where the body has none.
    model_field_policy : str or None
        ``NAME`` where the body's ``model`` is ``auto:NAME``.
    router : ModelRouter
        Knows the policies and models.
    clamps : ClampConfig
        Thresholds outside are moved to the nearer bound, not refused. ``max_cost_usd`` is at most
        the clamp's, which also holds for requests that ask for nothing.

    Raises
    ------
    RequestError
        400 ``invalid_router_controls`` or ``unknown_policy``, ``param`` naming the field.
    """
    if content is None:
        content = {}
    elif not isinstance(content, dict):
        _refuse("router", content, 'an object such as {"policy": "economy"}')
    for key in content:
        if key not in _READERS:
            raise RequestError(
                f"'router' has an unknown key {_shown(key)} (known: {', '.join(_READERS)}). "
                "Correct or remove it.",
                status=400,
                code="invalid_router_controls",
                param=f"router.{str(key)[:_SHOWN]}",
            )
    read = {
        key: _READERS[key](f"router.{key}", value, router)
        for key, value in content.items()
        if value is not None
    }
    policy = _policy(read.get("policy"), model_field_policy, router)
    thresholds = read.get("thresholds")
    if thresholds is not None:
        thresholds = {
            model: min(max(value, clamps.threshold_min), clamps.threshold_max)
            for model, value in thresholds.items()
        }
        _check_replaceable(thresholds, policy, router)
    bounds = [usd for usd in (read.get("max_cost_usd"), clamps.max_cost_usd) if usd is not None]
    return Controls(
        policy=policy,
        thresholds=thresholds,
        max_cost_usd=min(bounds, default=None),
        min_probability=read.get("min_probability"),
        allow=read.get("allow", frozenset()),
        deny=read.get("deny", frozenset()),
        dry_run=read.get("dry_run", False),
    )


def _policy(asked: str | None, in_model: str | None, router: ModelRouter) -> str | None:
    if asked is not None and in_model is not None and asked != in_model:
        raise RequestError(
            f"'model' asks for the policy {_shown(in_model)} and 'router.policy' for "
            f"{_shown(asked)}; keep one.",
            status=400,
            code="invalid_router_controls",
            param="router.policy",
        )
    name = asked if in_model is None else in_model
    if name is not None:
        try:
            router.policy(name)
        except ConfigError:
            known = ", ".join(router.policy_names)
            raise RequestError(
                f"There is no policy {_shown(name)} (known: {known}).",
                status=400,
                code="unknown_policy",
                param="model" if asked is None else "router.policy",
            ) from None
    return name


def _check_replaceable(
    thresholds: Mapping[str, float], policy: str | None, router: ModelRouter
) -> None:
    try:
        router.policy_with_thresholds(thresholds, name=policy)
    except ConfigError as error:
        raise RequestError(
            str(error), status=400, code="invalid_router_controls", param="router.thresholds"
        ) from None


def _name(param: str, value: Json, router: ModelRouter) -> str:
    if not isinstance(value, str) or not value:
        _refuse(param, value, "a policy's name")
    return value


def _thresholds(param: str, value: Json, router: ModelRouter) -> dict[str, float]:
    if not isinstance(value, dict):
        _refuse(param, value, 'an object of model and probability, such as {"small": 0.7}')
    return {
        _model(param, model, router): _share(f"{param}.{model}"[: 2 * _SHOWN], share, router)
        for model, share in value.items()
    }


def _usd(param: str, value: Json, router: ModelRouter) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(param, value, "a number of US dollars >= 0")
    if not 0 <= value < math.inf:
        _refuse(param, value, "a finite number of US dollars >= 0")
    if router.cost_unit != "usd":
        raise RequestError(
            f"'{param}' cannot be kept: the costs of the candidates are not known in US dollars "
            "here. Leave it out, or ask the operator to configure prices.",
            status=400,
            code="invalid_router_controls",
            param=param,
        )
    return Decimal(str(value))


def _share(param: str, value: Json, router: ModelRouter) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        _refuse(param, value, "a number in [0, 1]")
    return float(value)


def _models(param: str, value: Json, router: ModelRouter) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(model, str) for model in value):
        _refuse(param, value, "a list of models' names")
    return frozenset(_model(param, model, router) for model in value)


def _flag(param: str, value: Json, router: ModelRouter) -> bool:
    if not isinstance(value, bool):
        _refuse(param, value, "true or false")
    return value


def _model(param: str, model: str, router: ModelRouter) -> str:
    if model not in router.model_ids:
        known = ", ".join(router.model_ids[:_LISTED])
        more = ", ..." if len(router.model_ids) > _LISTED else ""
        raise RequestError(
            f"'{param}' names an unknown model {_shown(model)} (known: {known}{more}). "
            "Correct or remove it.",
            status=400,
            code="invalid_router_controls",
            param=param,
        )
    return model


def _refuse(param: str, value: Json, wanted: str) -> NoReturn:
    raise RequestError(
        f"'{param}' is {_shown(value)}; it must be {wanted}.",
        status=400,
        code="invalid_router_controls",
        param=param,
    )


def _shown(value: Json) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_READERS: Final[dict[str, Callable[[str, Json, ModelRouter], Json]]] = {
    "policy": _name,
    "thresholds": _thresholds,
    "max_cost_usd": _usd,
    "min_probability": _share,
    "allow": _models,
    "deny": _models,
    "dry_run": _flag,
}
