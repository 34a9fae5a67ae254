"""Reports to draw and print, measured by ``evaluate`` on drawn scores; a Ray cluster."""

from __future__ import annotations

import logging

import numpy as np
import pytest

MODELS = (
    "anthropic/claude-3.5-sonnet-20241022",
    "meta-llama/Llama-3.1-8B-Instruct-Turbo",
    "meta-llama/Llama-3.1-70B-Instruct-Turbo",
    "meta-llama/Llama-3.1-405B-Instruct-Turbo",
    "openai/gpt-4o-2024-08-06",
    "openai/gpt-4o-mini-2024-07-18",
    "google/gemini-1.5-pro-002",
    "google/gemini-1.5-flash-8b",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "mistralai/Mistral-Large-2407",
    "Qwen/Qwen2.5-72B-Instruct-Turbo",
    "Qwen/Qwen2.5-7B-Instruct-Turbo",
    "deepseek-ai/DeepSeek-V2.5-Chat",
    "microsoft/WizardLM-2-8x22B",
    "cohere/command-r-plus-08-2024",
    "databricks/dbrx-instruct",
    "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF",
    "01-ai/Yi-1.5-34B-Chat-16K",
    "amazon/nova-pro-v1:0",
    "x-ai/grok-2-1212",
)


def drawn_report(
    n_models=4, *, names=None, costs="usd", spread=400.0, free=False, sets=6, queries=240, seed=0
):
    """Evaluate ``Utility`` on drawn abilities; ``spread`` is dearest over cheapest."""
    from router_runtime.config import UtilityConfig
    from router_runtime.policy import build_policy
    from router_training.evaluate import OperatingPoint, evaluate
    from router_training.labels import LabelMatrix

    rng = np.random.default_rng(seed)
    ids = tuple(names or MODELS[:n_models])
    n_models = len(ids)
    logits = np.linspace(-0.2, 1.2, n_models) + 1.2 * rng.normal(size=(queries, 1))
    logits = logits + 0.9 * rng.normal(size=(queries, n_models))
    P = 1 / (1 + np.exp(-logits))
    Y = (rng.uniform(size=P.shape) < P).astype(np.float64)
    prices = 2e-5 * spread ** np.linspace(0, 1, n_models)
    prices[0] = 0.0 if free else prices[0]
    cost = np.tile(np.nan if costs == "unknown" else prices, (queries, 1 if n_models else 0))
    cost = np.broadcast_to(cost, P.shape).copy()
    points = [
        OperatingPoint(name, UtilityConfig(lambda_per_usd=value))
        for name, value in (("recommended", 40.0), ("98 %", 90.0), ("95 %", 200.0))
    ]
    policy = points[0].policy
    if costs == "unknown":
        from router_runtime.config import HighestProbabilityConfig

        policy = HighestProbabilityConfig()
        points = [OperatingPoint("recommended", policy)]
    return evaluate(
        P=P,
        labels=LabelMatrix.of_scores(ids, Y),
        expected_cost=cost,
        policy=build_policy(policy, model_ids=ids, name="recommended"),
        model_ids=ids,
        cost_unit=costs,
        slices={"data set": [f"set-{row % sets:02d}" for row in range(queries)]},
        points=points,
        n_resamples=60,
    )


@pytest.fixture(scope="session")
def make_report():
    """The function that draws scores and evaluates them."""
    return drawn_report


@pytest.fixture(scope="session")
def small_report():
    return drawn_report(2, spread=4.0)


@pytest.fixture(scope="session")
def large_report():
    return drawn_report(20, sets=14)


@pytest.fixture(scope="session")
def connected_ray():
    """Ray, connected to a cluster of two nodes on this machine, with a worker's place on each."""
    pytest.importorskip("ray")
    from router_training.ray_cluster import ray_module

    ray = ray_module()
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()
