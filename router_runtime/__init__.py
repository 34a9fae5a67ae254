"""model-router's runtime: everything that a request touches.

Importing this package loads no torch, xgboost, open_clip or web framework; the public names
below are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_runtime.artifacts import Artifact, load_artifact
    from router_runtime.config import RuntimeConfig, load_config
    from router_runtime.errors import RouterError
    from router_runtime.model_router import ModelRouter
    from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
    from router_runtime.prediction.heads.network import RouterNetwork
    from router_runtime.types import Image, Query, RoutingDecision

__version__ = "0.1.0"

_HOME = {
    "Artifact": "router_runtime.artifacts",
    "EmbeddingGenerator": "router_runtime.prediction.features",
    "FeatureSpec": "router_runtime.prediction.features",
    "Image": "router_runtime.types",
    "ModelRouter": "router_runtime.model_router",
    "Query": "router_runtime.types",
    "RouterError": "router_runtime.errors",
    "RouterNetwork": "router_runtime.prediction.heads.network",
    "RoutingDecision": "router_runtime.types",
    "RuntimeConfig": "router_runtime.config",
    "load_artifact": "router_runtime.artifacts",
    "load_config": "router_runtime.config",
}

__all__ = [
    "Artifact",
    "EmbeddingGenerator",
    "FeatureSpec",
    "Image",
    "ModelRouter",
    "Query",
    "RouterError",
    "RouterNetwork",
    "RoutingDecision",
    "RuntimeConfig",
    "load_artifact",
    "load_config",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'router_runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
