"""What the default recipe is compared with: LLM Router v2's recipe, plain heads, the training mean.

LLM Router v2 is re-implemented from its description. Where that is silent:

- *class weights*: "class weighting" multiplies a model's whole loss; its size is not told. Here it
  is the ratio of bad to good answers of that model in the training rows, the usual choice.
- *the last batch*: where it holds a single row, of which BatchNorm can make nothing, it is left
  out.
- *thresholds*: they are given by hand ("start with .70, .55, .50; lower means more aggressive").
  Here they are searched on the calibration rows by our own search, one per model, which is more
  than its users get.
- *early stopping*: its code stops on the test set; here on the validation rows, like all others.
  Its hyper-parameter search, off by default, stays off.

kNN and logistic regression choose their setting on validation and are then fitted again on training
and validation rows together, as the default recipe is: otherwise a part of its lead would be a
sixth more rows. Networks and trees need the validation rows to stop early.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import binary_cross_entropy

from quality_parts.systems import Bench, Predictions, System
from router_runtime.prediction.heads.network import RouterNetwork
from router_runtime.types import F32, F64
from router_training.fitting import (
    FitData,
    HeadConfig,
    MlpConfig,
    PriorConfig,
    XGBoostConfig,
    fit_head,
    log_loss,
)

HIDDEN_DIMS, DROPOUT = (512, 256, 128), 0.3
LEARNING_RATE, L2_DECAY, BATCH_SIZE, EPOCHS, PATIENCE = 1e-3, 1e-5, 64, 50, 10

NEIGHBOURS = (5, 10, 20, 40, 80, 160)
REGULARISATION = (0.001, 0.01, 0.1, 1.0)


def baselines() -> tuple[System, ...]:
    """Return all systems that the default recipe has to be compared with."""
    v2 = {"hidden": HIDDEN_DIMS, "decay": L2_DECAY, "epochs": EPOCHS, "patience": PATIENCE}
    return (
        System(
            "v2",
            "LLM Router v2, as published",
            {"llm_router_v2": v2, "restore": False},
            lambda bench: _llm_router_v2(bench, restore=False),
            thresholds=True,
            binding=True,
        ),
        System(
            "v2_restored",
            "LLM Router v2, best epoch really restored",
            {"llm_router_v2": v2, "restore": True},
            lambda bench: _llm_router_v2(bench, restore=True),
            thresholds=True,
            binding=True,
        ),
        System(
            "knn", "kNN (scikit-learn)", {"sklearn": "knn", "k": NEIGHBOURS}, _knn, binding=True
        ),
        System(
            "logistic",
            "logistic regression (scikit-learn)",
            {"sklearn": "logistic", "C": REGULARISATION},
            _logistic,
            binding=True,
        ),
        _plain("network", "single RouterNetwork", MlpConfig()),
        _plain("xgboost", "XGBoost", XGBoostConfig()),
        # Telling no query from another it is calibrated without effort: a reference, not a rival.
        _plain("prior", "training mean", PriorConfig(), binding=False),
    )


def _plain(key: str, title: str, head: HeadConfig, *, binding: bool = True) -> System:
    """Return one of our own heads with its defaults, alone and uncalibrated."""

    def predict(bench: Bench) -> Predictions:
        fitted = fit_head(bench.fit_data, head, seed=bench.config.seed).head
        return bench.of_head(fitted.predict_proba)

    return System(key, title, {"head": head.model_dump(mode="json")}, predict, binding=binding)


def _llm_router_v2(bench: Bench, *, restore: bool) -> Predictions:
    network = fit_llm_router_v2(bench.fit_data, restore=restore, seed=bench.config.seed)

    @torch.no_grad()
    def predict_proba(X: F32) -> F64:
        return network(torch.from_numpy(X)).numpy().astype(np.float64)

    return bench.of_head(predict_proba)


def fit_llm_router_v2(data: FitData, *, restore: bool, seed: int) -> RouterNetwork:
    """Train LLM Router v2's network: Adam with L2 decay, weighted loss, early stopping.

    Parameters
    ----------
    data : FitData
        Features are taken as they are, not standardised. Missing scores are masked, which is
        kinder than its own code, where they count as failures.
    restore : bool
        Put back the weights of the best epoch. As published it keeps a shallow copy of them, which
        is overwritten by what follows: the last weights are used.
    seed : int
        Of initial weights, dropout and the order of rows.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    observed = torch.tensor(~np.isnan(data.Y_train), dtype=torch.float32)
    X = torch.from_numpy(data.X_train)
    Y = torch.tensor(np.nan_to_num(data.Y_train), dtype=torch.float32)
    good = (Y * observed).sum(dim=0)
    class_weight = (observed.sum(dim=0) - good) / good.clamp(min=1)
    network = RouterNetwork(
        data.n_features, data.n_models, hidden_dims=HIDDEN_DIMS, dropout=DROPOUT
    )
    optimiser = torch.optim.Adam(
        network.parameters(), lr=LEARNING_RATE, weight_decay=L2_DECAY, fused=True
    )
    lowest, waited, best = float("inf"), 0, network.state_dict()
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.randperm(len(X)).split(BATCH_SIZE):
            if len(rows) == 1:
                continue
            weight = observed[rows] * class_weight
            loss = binary_cross_entropy(network(X[rows]), Y[rows], weight=weight)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        network.eval()
        loss_now = _weighted_loss(network, data, class_weight)
        if loss_now < lowest:
            lowest, waited, best = loss_now, 0, network.state_dict().copy()
            if restore:
                best = {name: tensor.clone() for name, tensor in best.items()}
        else:
            waited += 1
            if waited >= PATIENCE:
                break
    network.load_state_dict(best)
    return network.eval()


@torch.no_grad()
def _weighted_loss(network: RouterNetwork, data: FitData, class_weight: torch.Tensor) -> float:
    weight = torch.tensor(~np.isnan(data.Y_validation), dtype=torch.float32) * class_weight
    Y = torch.tensor(np.nan_to_num(data.Y_validation), dtype=torch.float32)
    P = network(torch.from_numpy(data.X_validation))
    return float(binary_cross_entropy(P, Y, weight=weight))


def _knn(bench: Bench) -> Predictions:
    return _per_model(bench, [_knn_of(k) for k in NEIGHBOURS])


def _logistic(bench: Bench) -> Predictions:
    return _per_model(bench, [_logistic_of(C) for C in REGULARISATION])


def _knn_of(k: int) -> Callable[[], object]:
    return lambda: KNeighborsClassifier(n_neighbors=k)


def _logistic_of(C: float) -> Callable[[], object]:
    return lambda: make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def _per_model(bench: Bench, makers: list[Callable[[], object]]) -> Predictions:
    """Choose the setting by validation loss; fit one classifier per model on all rows but test."""
    data = bench.fit_data
    usable = [make for make in makers if _enough(make, data)]
    losses = [
        log_loss(_fitted(make, data)(data.X_validation), data.Y_validation) for make in usable
    ]
    return bench.of_head(_fitted(usable[int(np.argmin(losses))], data.pooled()))


def _fitted(make: Callable[[], object], data: FitData) -> Callable[[F32], F64]:
    """Return what predicts all models, each by a classifier fitted on its scored training rows."""
    fitted = []
    for scores in data.Y_train.T:
        rows = ~np.isnan(scores)
        fitted.append(make().fit(data.X_train[rows], scores[rows] >= 0.5))
    return lambda X: np.column_stack([model.predict_proba(X)[:, 1] for model in fitted])


def _enough(make: Callable[[], object], data: FitData) -> bool:
    """Whether every model has as many scored rows as the classifier wants neighbours."""
    needed = getattr(make(), "n_neighbors", 1)
    return bool(((~np.isnan(data.Y_train)).sum(axis=0) >= needed).all())
