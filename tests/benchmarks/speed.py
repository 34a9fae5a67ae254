"""How fast the parts are, as ratios measured side by side in one run.

    python tests/benchmarks/speed.py

Absolute times depend on the machine and on what else it does; the ratios are what counts. Calls
are timed in alternating blocks, so that a slow moment hits both sides. Weights are random: speed
does not depend on them, and nothing here says anything about quality.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for everything that is compared
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from router_runtime import ModelRouter
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import UtilityConfig
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.costs import query_sizes
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.prediction.heads.network import RouterNetwork, fold
from router_runtime.types import Query
from router_training.fit_costs import fit_costs
from router_training.fit_embedded import fit_embedded
from router_training.fit_mlp import fit
from router_training.fitting import FitData, MlpConfig
from router_training.simulated import simulate_workload


def compare(ours: Callable[[], object], other: Callable[[], object], *, blocks: int, calls: int):
    """Return the median seconds per call of each."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), other()  # warm up
    for _ in range(blocks):
        for run, seen in ((ours, times[0]), (other, times[1])):
            started = time.perf_counter()
            for _ in range(calls):
                run()
            seen.append((time.perf_counter() - started) / calls)
    return tuple(statistics.median(seen) for seen in times)


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds:.2f} s"


def report(what: str, ours: float, other: float, against: str) -> None:
    print(f"{what}: {shown(ours)} against {shown(other)} ({against}): x {other / ours:.1f}")


def head_of_one_query() -> None:
    torch.manual_seed(0)
    network = RouterNetwork(1024, 11).eval()
    head = fold(network)
    x = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)

    def torch_call() -> np.ndarray:
        with torch.no_grad():
            return network(torch.FloatTensor(x)).cpu().numpy()

    np.testing.assert_allclose(head.predict_proba(x), torch_call(), atol=1e-6)
    ours, other = compare(lambda: head.predict_proba(x), torch_call, blocks=30, calls=100)
    report("head, one query, 1024-512-256-128-11", ours, other, "torch")


def routed_artifact(folder: Path) -> tuple[ModelRouter, list[Query]]:
    """A router with random weights on the embedded encoder, and 4,096 queries."""
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
        features=spec,
        encoder_fingerprints=(encoder.fingerprint,),
        encoder_states=(encoder.state,),
        head=fold(RouterNetwork(width, len(ids)).eval()),
        calibrator=Calibrator.identity(len(ids)),
        cost_model=fit_costs(query_sizes(data.queries), data.labels),
        recommended_policy=UtilityConfig(lambda_per_usd=50.0).model_dump(),
        training={"cost_unit": "usd"},
    )
    save_artifact(artifact, folder / "artifact", created_by="benchmark", card="")
    return ModelRouter(folder / "artifact"), list(data.queries) * 8


def decisions(folder: Path) -> None:
    router, queries = routed_artifact(folder)
    X = np.tile(router.predictor.features.encode(queries[:512]), (8, 1))

    def one_by_one() -> None:
        for row, query in enumerate(queries):
            router.decide_batch([query], X=X[row : row + 1])

    ours, other = compare(lambda: router.decide_batch(queries, X=X), one_by_one, blocks=5, calls=1)
    report("decide_batch, 4,096 embedded rows", ours, other, "one by one")
    text = " ".join(["what does the river bring to the harbour in winter"] * 20)
    times = []
    for _ in range(300):
        started = time.perf_counter()
        router.decide(text)
        times.append(time.perf_counter() - started)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    print(
        f"whole decision, 200 words, embedded encoder: p50 {p50 * 1e3:.2f}, p99 {p99 * 1e3:.2f} ms"
    )


def fitting() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 1024)).astype(np.float32)
    Y = (rng.random((5000, 11)) < 0.6).astype(np.float64)
    data = FitData(X, Y, X[:500], Y[:500], tuple("abcdefghijk"))
    epochs = 4
    config = MlpConfig(epochs=epochs, patience=epochs, device="cpu")

    def loader_loop() -> None:
        torch.manual_seed(0)
        network = RouterNetwork(1024, 11)
        batches = DataLoader(
            TensorDataset(torch.FloatTensor(X), torch.FloatTensor(Y)), batch_size=64, shuffle=True
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
        for _ in range(epochs):
            network.train()
            for x, y in batches:
                optimiser.zero_grad()
                torch.nn.functional.binary_cross_entropy(network(x), y).backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                network(torch.FloatTensor(X[:500]))

    torch.set_num_threads(1)
    ours, other = compare(lambda: fit(data, config, seed=0), loader_loop, blocks=3, calls=1)
    report(f"fitting, 5,000 x 1,024 -> 11, {epochs} epochs", ours, other, "DataLoader loop")


def importing() -> None:
    code = "import time; from router_runtime import ModelRouter; print(time.process_time())"
    bare = "import time; print(time.process_time())"
    seconds = [cpu_seconds(code) - cpu_seconds(bare) for _ in range(5)]
    print(f"import ModelRouter: {statistics.median(seconds) * 1e3:.0f} ms of CPU")


def cpu_seconds(code: str) -> float:
    done = subprocess.run(  # noqa: S603 - our own interpreter on the lines above
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    head_of_one_query()
    with tempfile.TemporaryDirectory() as folder:
        decisions(Path(folder))
    fitting()
    importing()


if __name__ == "__main__":
    main()
