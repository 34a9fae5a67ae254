"""The policies that a router knows by name, and which one it uses when none is named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router_runtime.artifacts import Artifact
from router_runtime.config import (
    CheapestQualifiedConfig,
    PolicyConfig,
    RuntimeConfig,
    validate_policy,
)
from router_runtime.errors import ConfigError
from router_runtime.policy import PRESETS, Policy, build_policy
from router_runtime.types import Json

logger = logging.getLogger(__name__)

RECOMMENDED = "recommended"
CUSTOM = "custom"


@dataclass(frozen=True)
class PolicySet:
    """Presets, the artifact's recommendation and configured policies, bound to the columns.

    Parameters
    ----------
    configs : mapping of name to PolicyConfig
    policies : mapping of name to Policy
        The same, bound to ``model_ids``.
    model_ids : tuple of str
        Column order.
    default : str
        The one used when a request names none.
    """

    configs: Mapping[str, PolicyConfig]
    policies: Mapping[str, Policy]
    model_ids: tuple[str, ...]
    default: str

    def get(self, name: str | None = None) -> Policy:
        """Return a policy by name; the default one for None.

        Raises
        ------
        ConfigError
            If there is none of that name.
        """
        return self.policies[_known(self.default if name is None else name, self.policies)]

    def default_thresholds(self) -> dict[str, float]:
        """Return the default policy's threshold per model; empty where it has none."""
        return thresholds_of(self.configs[self.default], self.model_ids)

    def with_thresholds(
        self, thresholds: Mapping[str, float], *, name: str | None = None
    ) -> tuple[Policy, PolicyConfig]:
        """Return a policy of one call's own thresholds, and its numbers.

        They replace, model by model, those of the policy ``name``. Where none is named and the
        default has no thresholds, they alone are the policy ``custom``, in which a model without
        a threshold qualifies.

        Raises
        ------
        ConfigError
            If there is no policy of that name, it has no thresholds, or a model is unknown.
        """
        base_name = _known(self.default if name is None else name, self.policies)
        base = self.configs[base_name]
        if isinstance(base, CheapestQualifiedConfig):
            own = base.model_copy(update={"thresholds": {**base.thresholds, **thresholds}})
        elif name is None:
            base_name, own = CUSTOM, CheapestQualifiedConfig(thresholds=dict(thresholds))
        else:
            raise ConfigError(
                f"Policy '{name}' has no thresholds that could be replaced; name one of kind "
                "'cheapest_qualified', or leave the thresholds out."
            )
        return build_policy(own, model_ids=self.model_ids, name=base_name), own


def thresholds_of(config: PolicyConfig, model_ids: Sequence[str]) -> dict[str, float]:
    """Return a policy's threshold per model; empty where it has none."""
    if not isinstance(config, CheapestQualifiedConfig):
        return {}
    return {m: config.thresholds.get(m, config.default_threshold) for m in model_ids}


def make_policy_set(config: RuntimeConfig, artifact: Artifact, *, cost_unit: str) -> PolicySet:
    """Collect the policies of a config and an artifact and settle the default.

    Parameters
    ----------
    config : RuntimeConfig
        Its policies replace others of the same name.
    artifact : Artifact
        Brings the recommendation and the column order.
    cost_unit : str
        In which costs are known here. A recommendation that was tuned in another unit is no
        default, since its numbers mean nothing then.

    Raises
    ------
    ConfigError
        If a policy names an unknown model or falls back on a novelty that the artifact cannot tell,
        or the default is unknown or left open.
    """
    configs: dict[str, PolicyConfig] = dict(PRESETS)
    if artifact.recommended_policy is not None:
        configs[RECOMMENDED] = validate_policy(
            artifact.recommended_policy, source="The artifact's recommended policy"
        )
    configs.update(config.policies)
    if config.model_thresholds is not None:
        configs[CUSTOM] = CheapestQualifiedConfig(thresholds=config.model_thresholds)
    policies = {
        name: build_policy(entry, model_ids=artifact.model_ids, name=name)
        for name, entry in configs.items()
    }
    _check_novelty(policies, artifact)
    default = _configured_default(config, policies)
    if default is None:
        default = _learned_default(artifact, policies, cost_unit)
    return PolicySet(configs, policies, artifact.model_ids, default)


def _check_novelty(policies: Mapping[str, Policy], artifact: Artifact) -> None:
    for name, policy in policies.items():
        if policy.needs_novelty and not artifact.tells_novelty:
            raise ConfigError(
                f"Policy '{name}' has a fallback for novel queries, but artifact "
                f"'{artifact.artifact_id}' cannot tell which are novel. Retrain with "
                "'novelty: {enabled: true}', or remove 'fallback' from the policy."
            )


def _configured_default(config: RuntimeConfig, policies: Mapping[str, Policy]) -> str | None:
    if config.policy is not None:
        return _known(config.policy, policies)
    if config.model_thresholds is not None:
        return CUSTOM
    if len(config.policies) > 1:
        raise ConfigError(
            f"Several policies are configured ({', '.join(config.policies)}); say which one is "
            "used by default with 'policy: NAME'."
        )
    return next(iter(config.policies), None)


def _learned_default(artifact: Artifact, policies: Mapping[str, Policy], cost_unit: str) -> str:
    name = "quality" if cost_unit == "unknown" else "economy"
    if RECOMMENDED not in policies:
        return name
    tuned_in = artifact.training.get("cost_unit")
    if tuned_in == cost_unit or not policies[RECOMMENDED].needs_cost:
        return RECOMMENDED
    logger.warning(
        "artifact %s was tuned with costs in unit %.40r, but here they are '%s': policy '%s' is "
        "used instead of the recommended one; give the candidates their %s",
        artifact.artifact_id,
        tuned_in,
        cost_unit,
        name,
        "relative 'cost'" if tuned_in == "relative" else "'price'",
    )
    return name


def _known(name: str, policies: Mapping[str, Policy]) -> str:
    if name not in policies:
        raise ConfigError(f"Unknown policy '{name}' (known: {', '.join(sorted(policies))}).")
    return name


def known_preset(name: str) -> str:
    """Return the name of a preset.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"Unknown threshold_config '{name}' (known: {', '.join(sorted(PRESETS))})."
        )
    return name


def custom_policy(thresholds: Mapping[str, float], preset: str | None) -> dict[str, Json]:
    """Return the policy of own thresholds, which refine those of a preset where one is named."""
    default = 0.0
    if preset is not None:
        base = PRESETS[known_preset(preset)]
        if not isinstance(base, CheapestQualifiedConfig):
            raise ConfigError(
                f"threshold_config '{preset}' has no thresholds that model_thresholds could "
                "replace; leave one of the two out."
            )
        default = base.default_threshold
    return {
        "kind": "cheapest_qualified",
        "thresholds": thresholds,
        "default_threshold": default,
    }
