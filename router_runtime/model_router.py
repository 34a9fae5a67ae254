"""``ModelRouter``: predictor (learned) + policy (chosen) + candidates, joined.

This module only joins: what is routed on is in ``messages``, features in ``prediction/features``,
probabilities in ``prediction``, dollars in ``prediction/costs`` and ``pricing``, hard needs in
``eligibility``, the choice in ``policy`` and ``policy_set``, calls in ``router_calls``.
``decide_batch`` does no network I/O of its own, so a dry run, an explanation and an offline
evaluation are the same code. A router is immutable after construction and may be shared between
threads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from router_runtime.artifacts import Artifact, load_artifact
from router_runtime.base_artifact import default_artifact
from router_runtime.candidates import capabilities_of, check_known, names_of, price_table_of
from router_runtime.config import PolicyConfig, RuntimeConfig, load_config
from router_runtime.decision_info import all_info
from router_runtime.eligibility import Eligibility, find_eligible
from router_runtime.errors import ConfigError, NoEligibleModelError, QueryError
from router_runtime.images import ImageLimits
from router_runtime.messages import query_from_prompt
from router_runtime.policy import Policy
from router_runtime.policy_set import CUSTOM, custom_policy, known_preset, make_policy_set
from router_runtime.prediction.costs import CostEstimator
from router_runtime.prediction.predictor import FeaturePredictor
from router_runtime.router_calls import CallsCandidates
from router_runtime.types import (
    F32,
    F64,
    Json,
    Prediction,
    Predictor,
    Query,
    Reason,
    RoutingDecision,
)
from router_runtime.yaml_config import validate

logger = logging.getLogger(__name__)


class ModelRouter(CallsCandidates):
    """Routes queries to the cheapest model that is good enough.

    Parameters
    ----------
    router_path : path, optional
        The artifact's folder, or a path in it, such as ``router_artifacts/nn_router.pth``.
        Default: ``router_artifacts`` in the current folder where that is an artifact, as in LLM
        Router v2, else the base artifact, which knows two tiers, ``weak`` and ``strong``.
    model_thresholds : mapping of model to float in [0, 1], optional
        Least probability per model. Models that reach theirs qualify, the cheapest qualified
        wins, a model without a threshold always qualifies; none qualified: highest probability.
    model_costs : mapping of model to float, optional
        Relative cost factors without a unit. Default: what the artifact learned in USD.
    threshold_config : str, optional
        A preset (``policy.PRESETS``); ``model_thresholds`` replace its thresholds model by model.
        With neither: what the artifact recommends, where its costs are in the same unit.
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:N`` for the encoder; default: GPU when there.
    clip_server : str, optional
        Base URL of the embedding server of a ``remote`` encoder.
    verbose : bool
        Log what was loaded at INFO instead of DEBUG.

    Raises
    ------
    ArtifactError
        If the artifact is missing, damaged or of another version.
    ConfigError
        If a threshold or cost names a model that is not in the artifact, or is out of range.
    EncoderError, MissingDependencyError
        If an encoder cannot be had.

    Examples
    --------
    >>> router = ModelRouter("router_artifacts/quickstart")  # doctest: +SKIP
    >>> router.route("What is the capital of France?")  # doctest: +SKIP
    'sim-small-text'
    """

    def __init__(
        self,
        router_path: str | Path | None = None,
        *,
        model_thresholds: Mapping[str, float] | None = None,
        model_costs: Mapping[str, float] | None = None,
        threshold_config: str | None = None,
        device: str | None = None,
        clip_server: str | None = None,
        verbose: bool = False,
    ) -> None:
        folder = default_artifact() if router_path is None else Path(router_path)
        content: dict[str, Json] = {
            "artifact": folder,
            "encoder": {"device": device or "auto", "url": clip_server},
            "model_costs": model_costs,
        }
        if model_thresholds is not None:
            custom = custom_policy(model_thresholds, threshold_config)
            content |= {"policies": {CUSTOM: custom}, "policy": CUSTOM}
        elif threshold_config is not None:
            content["policy"] = known_preset(threshold_config)
        config = validate(RuntimeConfig, content, source="ModelRouter")
        artifact = load_artifact(folder)
        self._join(config, artifact)
        level = logging.INFO if verbose else logging.DEBUG
        logger.log(level, "loaded artifact %s: models %s", artifact.artifact_id, self.model_ids)

    @classmethod
    def from_config(cls, config: RuntimeConfig | str | Path) -> ModelRouter:
        """Build a router from a runtime config or the path of its YAML file."""
        settled = config if isinstance(config, RuntimeConfig) else load_config(config)
        router = cls.__new__(cls)
        router._join(settled, load_artifact(settled.artifact))
        return router

    def _join(self, config: RuntimeConfig, artifact: Artifact) -> None:
        self.config = config
        learned = artifact
        artifact = learned.renamed(names_of(config.candidates, columns=learned.model_ids))
        self.artifact = artifact
        self.model_ids = artifact.model_ids
        self._names = np.array(artifact.model_ids, dtype=object)
        check_known(config, artifact.model_ids)
        self._capabilities = capabilities_of(
            config.candidates,
            model_ids=artifact.model_ids,
            scored_modalities=artifact.scored_modalities,
        )
        prices = price_table_of(
            config.candidates, model_ids=artifact.model_ids, model_costs=config.model_costs
        )
        self._estimator = CostEstimator(prices, artifact.cost_model, artifact.model_ids)
        self.limits = ImageLimits(
            max_bytes=config.images.max_bytes, max_pixels=config.images.max_pixels
        )
        self._policies = make_policy_set(config, artifact, cost_unit=self.cost_unit)
        self.default_policy = self._policies.default
        self._check_costs()
        self.predictor: Predictor = learned.predictor(config.encoder)

    # ------------------------------------------------------------------ deciding

    def decide_batch(
        self,
        queries: Sequence[Query],
        *,
        X: F32 | None = None,
        policy: str | None = None,
        excluded: Mapping[str, str] | None = None,
    ) -> list[RoutingDecision]:
        """Rank the candidates for every query: filter, describe, predict, price, choose.

        Parameters
        ----------
        queries : sequence of Query
            May be empty.
        X : ndarray of shape (n_queries, n_features), float32, optional
            Features computed before with the same artifact; encoded here when absent.
        policy : str, optional
            Name of a policy or preset; default ``default_policy``.
        excluded : mapping of model to reason, optional
            Models ruled out for this call.

        Raises
        ------
        NoEligibleModelError
            If some query can be served by no candidate; the message gives every reason.
        """
        chosen = self.policy(policy)
        eligibility = self.eligible(queries, excluded=excluded)
        self.check_served(eligibility)
        found = self.predict(queries) if X is None else self.predict_features(X)
        return self.choose(found, self.expected_cost(queries), eligibility, policy=chosen)

    def choose(
        self, found: Prediction, cost: F64, eligibility: Eligibility, *, policy: Policy
    ) -> list[RoutingDecision]:
        """Rank by what was found before: the last step of ``decide_batch``.

        Parameters
        ----------
        found : Prediction
        cost : ndarray of shape (n_queries, n_models)
            As ``expected_cost`` returns it.
        eligibility : Eligibility
            Of the same queries; ``check_served`` passed.
        policy : Policy
            One of ``policy`` or ``policy_with_thresholds``.

        Raises
        ------
        ConfigError
            The policy needs costs or novelty, and they are not known.
        """
        ranking = policy.rank(found.P, cost, eligibility.mask, found.novelty)
        reasons = policy.reasons(found.P, cost, eligibility.mask, ranking, found.novelty)
        return self._decisions(found, cost, eligibility, ranking, reasons, policy.name)

    def eligible(
        self, queries: Sequence[Query], *, excluded: Mapping[str, str] | None = None
    ) -> Eligibility:
        """Return which candidate can serve which query, and why the others cannot."""
        columns = {self._column(model): reason for model, reason in (excluded or {}).items()}
        return find_eligible(queries, self._capabilities, excluded=columns)

    def predict(self, queries: Sequence[Query]) -> Prediction:
        """Return calibrated ``P`` and novelty from one encoding of the queries."""
        return self.predictor.predict(queries)

    def predict_features(self, X: F32) -> Prediction:
        """Return the same for features of the same artifact.

        Raises
        ------
        ConfigError
            The artifact's predictor has no features.
        """
        if not isinstance(self.predictor, FeaturePredictor):
            raise ConfigError(
                f"Artifact '{self.artifact.artifact_id}' predicts from queries and not from "
                f"features (kind '{self.artifact.parts.kind}'). Leave 'X' out."
            )
        return self.predictor.predict_features(X)

    def features(self, queries: Sequence[Query]) -> F32 | None:
        """Return ``X`` (n_queries, n_features); None where the predictor has no features."""
        if not isinstance(self.predictor, FeaturePredictor):
            return None
        return self.predictor.features.encode(queries)

    def probabilities(self, queries: Sequence[Query]) -> F64:
        """Return calibrated ``P`` (n_queries, n_models) in [0, 1]."""
        return self.predict(queries).P

    def probabilities_from_features(self, X: F32) -> F64:
        """Return calibrated ``P`` (n_queries, n_models) for features of the same artifact."""
        return self.predict_features(X).P

    def expected_cost(self, queries: Sequence[Query]) -> F64:
        """Return the expected cost (n_queries, n_models) in ``cost_unit``; NaN = unknown."""
        return self._estimator.expected(queries)

    @property
    def cost_unit(self) -> str:
        """``usd``, ``relative`` or ``unknown``."""
        return self._estimator.unit

    def policy(self, name: str | None = None) -> Policy:
        """Return a policy by name; the default one for None.

        Raises
        ------
        ConfigError
            If there is none of that name.
        """
        return self._policies.get(name)

    @property
    def policy_names(self) -> list[str]:
        """Names of all policies, sorted."""
        return sorted(self._policies.configs)

    def policy_config(self, name: str | None = None) -> PolicyConfig:
        """Return the numbers of a policy; of the default one for None.

        Raises
        ------
        ConfigError
            If there is none of that name.
        """
        return self._policies.configs[self.policy(name).name]

    def policy_with_thresholds(
        self, thresholds: Mapping[str, float], *, name: str | None = None
    ) -> tuple[Policy, PolicyConfig]:
        """Return a policy with other thresholds, and its numbers; see ``PolicySet``."""
        return self._policies.with_thresholds(thresholds, name=name)

    def decide(
        self,
        query: Query | str,
        images: Sequence[Any] | None = None,
        *,
        policy: str | None = None,
        excluded: Mapping[str, str] | None = None,
    ) -> RoutingDecision:
        """Rank the candidates for one query, given as a ``Query`` or as text and pictures.

        Raises
        ------
        QueryError
            If it is neither, or pictures stand beside a ``Query``, which holds its own.
        NoEligibleModelError
            If no candidate can serve it.
        """
        if not isinstance(query, Query):
            query = self.query(query, images)
        elif images is not None:
            raise QueryError("A Query holds its own pictures; put them into Query.images.")
        return self.decide_batch([query], policy=policy, excluded=excluded)[0]

    def query(self, text: str, images: Sequence[Any] | None = None) -> Query:
        """Make the ``Query`` of a prompt, as training made it from its samples."""
        return query_from_prompt(
            text,
            () if images is None else images,
            rule=self.artifact.text,
            limits=self.limits,
            allow_paths=True,
        )

    def check_served(self, eligibility: Eligibility) -> None:
        """Raise ``NoEligibleModelError`` where some query has no candidate, with every reason."""
        unserved = np.flatnonzero(~eligibility.mask.any(axis=1))
        if unserved.size:
            row = int(unserved[0])
            reasons = ", ".join(
                f"{model}: {eligibility.reason(row, column)}"
                for column, model in enumerate(self.model_ids)
            )
            raise NoEligibleModelError(
                f"No candidate can serve query {row + 1} of {len(eligibility.mask)} ({reasons})."
            )

    def _decisions(
        self,
        found: Prediction,
        cost: F64,
        eligibility: Eligibility,
        ranking: np.ndarray,
        reasons: Sequence[Reason],
        policy: str,
    ) -> list[RoutingDecision]:
        # By columns, joined by zip and map: what is done for every query counts, and little else.
        ids, n = self.model_ids, len(found.P)
        costs: list[list[float | None]] = cost.T.tolist()
        unknown = np.isnan(cost.T)
        if np.count_nonzero(unknown):
            for column, row in np.argwhere(unknown).tolist():
                costs[column][row] = None
        ranked = list(zip(*self._names[ranking].T.tolist(), strict=True))
        ineligible: list[dict[str, str]] = [{} for _ in ranked]
        for row in np.flatnonzero(~eligibility.mask.all(axis=1)).tolist():
            ranked[row] = ranked[row][: np.count_nonzero(eligibility.mask[row])]
            ineligible[row] = self._ineligible(eligibility, row)
        columns = (
            [order[0] for order in ranked],
            ranked,
            map(dict, map(zip, repeat(ids), zip(*found.P.T.tolist(), strict=True))),
            map(dict, map(zip, repeat(ids), zip(*costs, strict=True))),
            repeat(self.cost_unit, n),
            ineligible,
            reasons,
            repeat(self.artifact.artifact_id, n),
            repeat(policy, n),
            repeat(None, n) if found.novelty is None else found.novelty.tolist(),
        )
        return list(map(RoutingDecision, *columns))

    def _ineligible(self, eligibility: Eligibility, row: int) -> dict[str, str]:
        return {
            self.model_ids[int(column)]: eligibility.reason(row, int(column))
            for column in np.flatnonzero(~eligibility.mask[row])
        }

    # ------------------------------------------------------------------ LLM Router v2's methods

    def route(
        self,
        text: str,
        images: Sequence[Any] | None = None,
        return_probabilities: bool = False,
        return_all_info: bool = False,
    ) -> str | tuple[str, dict[str, float]] | dict[str, Json]:
        """Return the chosen model.

        Parameters
        ----------
        text : str
            The prompt.
        images : sequence of (data URI, base64, bytes, path or PIL image), optional
            All of them count.
        return_probabilities : bool
            Return ``(model, {model: probability})``.
        return_all_info : bool
            Return a dict: ``chosen_model, probabilities, original_choice, threshold_applied,
            thresholds, threshold_config, has_images`` and the fields of the decision.
        """
        decision = self.decide(text, images)
        if return_all_info:
            return all_info(
                decision,
                thresholds=self._policies.default_thresholds(),
                has_images=bool(images),
            )
        if return_probabilities:
            return decision.model_id, dict(decision.probabilities)
        return decision.model_id

    def route_batch(
        self,
        texts: Sequence[str],
        images_list: Sequence[Sequence[Any] | None] | None = None,
        return_probabilities: bool = False,
    ) -> list[str] | list[tuple[str, dict[str, float]]]:
        """Route many prompts in one batched pass; same answers as one by one.

        Raises
        ------
        ConfigError
            If ``images_list`` has another length than ``texts``.
        QueryError
            If ``texts`` is a single text, or one of them cannot be routed.
        """
        if isinstance(texts, str):
            raise QueryError("texts must be a list of prompts, even for a single one.")
        pictures = [None] * len(texts) if images_list is None else list(images_list)
        if len(pictures) != len(texts):
            raise ConfigError(
                f"images_list has {len(pictures)} entries for {len(texts)} texts; give one per "
                "text (None where there is no picture)."
            )
        queries = [self.query(text, some) for text, some in zip(texts, pictures, strict=True)]
        decisions = self.decide_batch(queries)
        if return_probabilities:
            return [(entry.model_id, dict(entry.probabilities)) for entry in decisions]
        return [entry.model_id for entry in decisions]

    def get_model_info(self) -> dict[str, Json]:
        """Return models, policies, thresholds, device and provenance as plain values."""
        return {
            "available_models": list(self.model_ids),
            "candidates": [
                model
                for model, can in zip(self.model_ids, self._capabilities, strict=True)
                if can.blocked is None
            ],
            "threshold_config": self.default_policy,
            "thresholds": self._policies.default_thresholds(),
            "available_threshold_configs": self.policy_names,
            "device": self.config.encoder.device,
            "router_config": self.artifact.parts.settings,
            "cost_unit": self.cost_unit,
            "artifact_id": self.artifact.artifact_id,
            "encoders": list(self.artifact.parts.encoders),
        }

    # ------------------------------------------------------------------ set-up

    def _check_costs(self) -> None:
        if not self.policy().needs_cost:
            return
        cost = self._estimator.expected([Query(text="x")])[0]
        for model, can, value in zip(self.model_ids, self._capabilities, cost, strict=True):
            if can.blocked is None and np.isnan(value):
                raise ConfigError(
                    f"Policy '{self.default_policy}' weighs costs, but none is known for "
                    f"'{model}'. Give it a 'price', or use a policy without costs."
                )

    def _column(self, model: str) -> int:
        if model not in self.model_ids:
            raise ConfigError(f"Unknown model '{model}' (known: {', '.join(self.model_ids)}).")
        return self.model_ids.index(model)
