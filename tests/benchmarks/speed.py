"""How fast the parts are, as ratios measured side by side in one run, against their targets.

    python tests/benchmarks/speed.py [--check] [--json]

Absolute times depend on the machine and on what else it does; the ratios are what counts. Calls
are timed in alternating blocks, so that a slow moment hits both sides, and the median block counts.
Everything runs on one thread and CPU time is measured, so that waiting for a core does not count.
Weights are random: speed does not depend on them, and nothing here says anything about quality.
``--check`` makes the exit status 1 if a target is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for everything that is compared
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from labelling_parts.table import Row, print_table
from torch.utils.data import DataLoader, TensorDataset

from router_runtime import ModelRouter
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import UtilityConfig
from router_runtime.policy import CheapestQualified
from router_runtime.prediction.calibration import Calibrator, SigmoidMap
from router_runtime.prediction.costs import query_sizes
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.prediction.heads.network import RouterNetwork, fold
from router_runtime.types import Query
from router_training.fit_costs import fit_costs
from router_training.fit_embedded import fit_embedded
from router_training.fit_mlp import fit
from router_training.fitting import FitData, MlpConfig
from router_training.recipe import NETWORK
from router_training.simulated import simulate_workload

ONE_QUERY = 2.5
BATCH = 12.0
FITTING = 1.8
IMPORT_SECONDS = 0.3


def compare(
    ours: Callable[[], object], other: Callable[[], object], *, blocks: int, calls: int
) -> tuple[float, float]:
    """Return the median CPU seconds per call of each."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), other()  # warm up
    for _ in range(blocks):
        for run, seen in ((ours, times[0]), (other, times[1])):
            started = time.process_time()
            for _ in range(calls):
                run()
            seen.append((time.process_time() - started) / calls)
    return statistics.median(times[0]), statistics.median(times[1])


def ratio(what: str, seconds: tuple[float, float], target: float | None = None) -> Row:
    ours, other = seconds
    return Row(what, shown(ours), shown(other), other / ours, target)


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds:.3f} s"


# ---------------------------------------------------------------------- one query


def one_query() -> Iterator[Row]:
    """Head and policy against LLM Router v2's torch call, for its published network and ours."""
    for widths, m, target in (((512, 256), 3, ONE_QUERY), ((512, 256, 128), 11, None)):
        dims = "-".join(map(str, (1024, *widths, m)))
        ours, other = selections(widths, m)
        assert ours() == other()
        yield ratio(f"head + policy, {dims}", compare(ours, other, blocks=60, calls=50), target)


def selections(widths: tuple[int, ...], m: int) -> tuple[Callable[[], str], Callable[[], str]]:
    """Return two functions that choose a model from one vector: ours, and LLM Router v2's.

    Its call is made as published: evaluation mode set anew, a tensor made of the vector, the
    network with its BatchNorm and Dropout modules and sigmoid, back to NumPy, the most probable
    model, and, where that misses its threshold, the next one that does not.
    """
    torch.manual_seed(0)
    network = RouterNetwork(1024, m, hidden_dims=widths, dropout=0.4).eval()
    x = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
    names = [f"model-{j}" for j in range(m)]
    thresholds = {names[0]: 0.0, names[1]: 0.0}
    device = torch.device("cpu")
    head = fold(network)
    # The dearer, the likelier: the cheapest that qualifies is then v2's choice as well.
    cost = -head.predict_proba(x) + 1.0
    policy = CheapestQualified(np.zeros(m))
    eligible = np.ones((1, m), dtype=np.bool_)

    def ours() -> str:
        return names[policy.rank(head.predict_proba(x), cost, eligible)[0, 0]]

    def other() -> str:
        network.eval()
        with torch.no_grad():
            P = network(torch.FloatTensor(x).to(device)).cpu().numpy()
        chosen = np.argmax(P, axis=1)
        least = {names.index(name): value for name, value in thresholds.items()}
        for row, column in enumerate(chosen):
            if P[row, column] < least.get(column, 0.0):
                order = np.argsort(P[row])[::-1]
                chosen[row] = next(j for j in order if P[row, j] >= least.get(j, 0.0))
        return next(names[j] for j in chosen)

    return ours, other


# ---------------------------------------------------------------------- many queries


def routed_artifact(
    folder: Path, widths: tuple[int, ...] = NETWORK.hidden_dims
) -> tuple[ModelRouter, list[Query]]:
    """A calibrated router with random weights on the embedded encoder, and 4,096 queries."""
    data = simulate_workload(512, seed=0)
    texts = [query.text for query in data.queries]
    images = [image for query in data.queries for image in query.images]
    encoder = fit_embedded(texts, images, spec=EmbeddedSpec(), seed=0)
    spec = FeatureSpec()
    width = EmbeddingGenerator(spec, [encoder]).n_features
    torch.manual_seed(0)
    ids = data.model_ids
    artifact = Artifact(
        model_ids=ids,
        parts=FeatureParts(
            spec,
            encoder_fingerprints=(encoder.fingerprint,),
            encoder_states=(encoder.state,),
            head=fold(RouterNetwork(width, len(ids), hidden_dims=widths).eval()),
        ),
        calibrator=Calibrator((SigmoidMap(slope=0.8, intercept=0.1),) * len(ids)),
        cost_model=fit_costs(query_sizes(data.queries), data.labels),
        recommended_policy=UtilityConfig(lambda_per_usd=50.0).model_dump(),
        training={"cost_unit": "usd"},
    )
    save_artifact(artifact, folder, created_by="benchmark", card="")
    return ModelRouter(folder), list(data.queries) * 8


def decisions() -> Iterator[Row]:
    """``decide_batch`` against its own one-by-one loop, and one whole decision from text."""
    for widths, target in ((NETWORK.hidden_dims, BATCH), ((512, 256, 128), None)):
        with tempfile.TemporaryDirectory() as folder:
            router, queries = routed_artifact(Path(folder) / "artifact", widths)
        X = np.tile(router.predictor.features.encode(queries[:512]), (8, 1))
        seconds = batch_and_loop(router, queries, X)
        dims = "-".join(map(str, (X.shape[1], *widths, len(router.model_ids))))
        yield ratio(f"decide_batch, 4,096 rows, {dims}", seconds, target)
    text = " ".join(["what does the river bring to the harbour in winter"] * 20)
    times = []
    for _ in range(300):
        started = time.process_time()
        router.decide(text)
        times.append(time.process_time() - started)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    yield Row("whole decision of 200 words, p99 over p50", shown(p50), shown(p99), p99 / p50)


def batch_and_loop(router: ModelRouter, queries: list[Query], X: np.ndarray) -> tuple[float, float]:
    """Return the median CPU seconds for all queries at once and one by one."""

    def one_by_one() -> None:
        for row, query in enumerate(queries):
            router.decide_batch([query], X=X[row : row + 1])

    return compare(lambda: router.decide_batch(queries, X=X), one_by_one, blocks=9, calls=1)


# ---------------------------------------------------------------------- fitting


def fitting() -> Iterator[Row]:
    """Fit one network against the customary DataLoader loop, same batches, epochs and optimiser.

    First the widths and settings of LLM Router v2's published network, as for one query, then our
    defaults and our recipe. The larger the batch and the network, the more of the time are matrix
    products, which are the same on both sides.
    """
    published = MlpConfig(hidden_dims=(512, 256), dropout=0.4, learning_rate=0.002, batch_size=32)
    yield fitted(published, width=1024, target=FITTING)
    yield fitted(MlpConfig(), width=1024)
    yield fitted(NETWORK.model_copy(update={"label_smoothing": 0.0}), width=464)


def fitted(settings: MlpConfig, *, width: int, target: float | None = None, m: int = 11) -> Row:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5500, width)).astype(np.float32)
    Y = (rng.random((5500, m)) < 0.6).astype(np.float64)
    data = FitData(X[:5000], Y[:5000], X[5000:], Y[5000:], tuple("abcdefghijk"[:m]))
    epochs = 6
    config = settings.model_copy(update={"epochs": epochs, "patience": epochs, "device": "cpu"})
    seconds = compare(
        lambda: fit(data, config, seed=0), lambda: loader_loop(data, config), blocks=5, calls=1
    )
    dims = "-".join(map(str, (width, *config.hidden_dims, m)))
    return ratio(f"fit, 5,000 rows, batches of {config.batch_size}, {dims}", seconds, target)


def loader_loop(data: FitData, config: MlpConfig) -> None:
    """Train as LLM Router v2 does, with AdamW in place of Adam: shuffled, logged, validated."""
    torch.manual_seed(0)
    network = RouterNetwork(
        data.n_features, data.n_models, hidden_dims=config.hidden_dims, dropout=config.dropout
    )
    train, validation = (
        DataLoader(
            TensorDataset(torch.FloatTensor(X), torch.FloatTensor(Y)),
            batch_size=config.batch_size,
            shuffle=shuffle,
        )
        for X, Y, shuffle in (
            (data.X_train, data.Y_train, True),
            (data.X_validation, data.Y_validation, False),
        )
    )
    loss_of = torch.nn.BCELoss()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for _ in range(config.epochs):
        network.train()
        total = 0.0
        for x, y in train:
            optimiser.zero_grad()
            loss = loss_of(network(x), y)
            loss.backward()
            optimiser.step()
            total += loss.item()
        network.eval()
        with torch.no_grad():
            total = sum(loss_of(network(x), y).item() for x, y in validation)


# ---------------------------------------------------------------------- importing


def importing() -> Iterator[Row]:
    """CPU seconds of importing the router beyond a bare interpreter, and that torch stays out."""
    code = (
        "import sys, time; from router_runtime import ModelRouter;"
        "assert 'torch' not in sys.modules;"
        "print(time.process_time())"
    )
    bare = "import time; print(time.process_time())"
    seconds = statistics.median(cpu_seconds(code) - cpu_seconds(bare) for _ in range(7))
    what = "from router_runtime import ModelRouter, CPU s"
    yield Row(what, shown(seconds), "", seconds, IMPORT_SECONDS, at_most=True)


def cpu_seconds(code: str) -> float:
    done = subprocess.run(  # noqa: S603 - our own interpreter on the lines above
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*one_query(), *decisions(), *fitting(), *importing()]
    if arguments.json:
        print(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2))
    else:
        print_table(rows)
    return int(arguments.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
