"""What is compared: anything that turns the rows of a table into probabilities and expected costs.

Every system sees the same rows and, unless its name says otherwise, the same features. It is fitted
on train, makes its choices on validation (and calibration), and returns predictions of the
calibration rows, on which policies are tuned, and of the test rows. Predictions are kept in the
work folder, so that an interrupted run continues.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

import router_runtime
import router_training
from router_runtime.prediction.encoders.pixels import PIXEL_NAMES
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.encoders.surface import SURFACE_NAMES
from router_runtime.prediction.features import FeatureSpec
from router_runtime.types import F64, Bool, Head, Int, Json, Progress
from router_training import fit_stack
from router_training.config import TrainingConfig
from router_training.fit_stack import CrossFitted
from router_training.fitting import FitData, HeadConfig, StackConfig, untold
from router_training.labels import LabelMatrix
from router_training.pipeline import Walk
from router_training.rows import read_all
from router_training.splits import Split
from router_training.store import StageStore, digest_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a system says of the rows on which policies are tuned and of those that judge it.

    Parameters
    ----------
    P_calibration, P_test : ndarray of shape (n_queries, n_models), float64 in [0, 1]
    cost_calibration, cost_test : ndarray of shape (n_queries, n_models), float64
        Expected USD of a call.
    novelty_test : ndarray of shape (n_queries,), float64 in [0, 1], or None
    policy : JSON
        Config of the policy that the run recommends, with its fallback for novel queries; None
        where the system is no run.
    seconds : mapping
        Wall seconds by stage; a stage that was not run because its result was there is missing.
    """

    P_calibration: F64
    P_test: F64
    cost_calibration: F64
    cost_test: F64
    novelty_test: F64 | None = None
    policy: Json = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one part of the split, as far as measuring needs them."""

    labels: LabelMatrix
    eligible: Bool
    groups: tuple[str, ...]


class Bench:
    """One table with one seed: rows, split and features, shared by all systems.

    Parameters
    ----------
    config : TrainingConfig
        The default recipe on this table.
    hidden_model : str
        The candidate that is hidden and added back.
    """

    def __init__(self, config: TrainingConfig, *, hidden_model: str = "") -> None:
        self.config = config
        self.walk, self.made = timed_walk(config)
        self.hidden_model = hidden_model
        self._store = StageStore(config.work_dir)
        self._members: dict[str, CrossFitted] = {}

    def part(self, rows: Int) -> Part:
        """Return labels, eligibility and groups of some rows."""
        data = self.walk.data.take(rows)
        return Part(data.labels, self.walk.eligible(rows), data.groups)

    def predictions(self, system: System) -> Predictions:
        """Return what a system predicts, from the work folder if it was there."""

        def make(folder: Path) -> None:
            found = system.predict(self)
            arrays = {name: getattr(found, name) for name in _ARRAYS}
            known = {name: array for name, array in arrays.items() if array is not None}
            np.savez(folder / "predictions.npz", **known)
            about = {"policy": found.policy, "seconds": found.seconds}
            (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

        def load(folder: Path) -> Predictions:
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
                return Predictions(**dict(arrays), **about)

        inputs = {"run": self.identity, "system": system.settings}
        return self._store.stage("predictions", inputs, make=make, load=load)

    @property
    def identity(self) -> Json:
        """What every result of this table and seed depends on."""
        elsewhere = {"data", "output", "work_dir", "encoder"}
        return {
            "data": self.walk.data.fingerprint,
            "config": self.config.model_dump(mode="json", exclude=elsewhere),
            "code": code_digest(),
        }

    # ------------------------------------------------------------------ for the systems

    @property
    def fit_data(self) -> FitData:
        """Return train and validation rows, read into memory."""
        data = self.walk.fit_data
        train, validation = read_all(data.X_train), read_all(data.X_validation)
        return replace(data, X_train=train, X_validation=validation)

    def of_head(self, predict_proba: Callable[[np.ndarray], F64]) -> Predictions:
        """Return uncalibrated predictions by a function of features, with the learned costs."""
        walk, split = self.walk, self.walk.split
        X = walk.features.X
        return Predictions(
            predict_proba(np.asarray(X[split.calibration])),
            predict_proba(np.asarray(X[split.test])),
            walk.expected_cost(split.calibration),
            walk.expected_cost(split.test),
        )

    def variant(
        self,
        *,
        head: HeadConfig | None = None,
        calibration: str | None = None,
        without: Sequence[str] = (),
        split: Split | None = None,
    ) -> Predictions:
        """Return what the default recipe predicts with something changed.

        Parameters
        ----------
        head : HeadConfig, optional
            Another head.
        calibration : str, optional
            Another calibration method.
        without : sequence of str
            Names of ``column_groups`` whose columns are zero in all rows.
        split : Split, optional
            Fewer rows to fit on. The encoders, which see no labels, stay as they are.
        """
        base, update = self.walk, {}
        if head is not None:
            update["head"] = head
        if calibration is not None:
            method = base.config.calibration.model_copy(update={"method": calibration})
            update["calibration"] = method
        X = base.features.X
        if without:
            X = np.array(X)
            groups = column_groups(base.config.features)
            X[:, np.concatenate([groups[name] for name in without])] = 0.0
        with tempfile.TemporaryDirectory() as folder:
            config = base.config.model_copy(update=update | {"work_dir": Path(folder)})
            walk, made = timed_walk(config, data=base.data, split=split or base.split)
            walk.features = replace(base.features, X=X)  # made once, so it stays
            if isinstance(config.head, StackConfig) and not without and split is None:
                walk.fitted = self.stack(config.head), None
            return of_walk(walk, made)

    def stack(self, config: StackConfig) -> Head:
        """Return what ``fit_stack.fit`` fits to the default features, sharing fitted members."""
        data = self.fit_data
        pool = data.pooled()
        seed = self.config.seed
        fold = fit_stack.folds_of(pool, config.folds, seed=seed)
        members = []
        for member in config.heads:
            key = repr((config.folds, member))
            if key not in self._members:
                self._members[key] = fit_stack.cross_fit(data, member, fold, seed=seed)
            members.append(self._members[key])
        return fit_stack.combine(members, pool.Y_train, shrinkage=config.shrinkage)[0]


@dataclass(frozen=True, eq=False)
class System:
    """A named way to predict.

    Parameters
    ----------
    key, title : str
    settings : JSON
        All that its predictions depend on besides the table, the seed and the code.
    predict : callable
        ``Bench`` to ``Predictions``.
    thresholds : bool
        Its policy is ``cheapest_qualified`` with tuned absolute thresholds instead of ``utility``.
    binding : bool
        The default recipe claims not to be behind it.
    constant_cost : bool
        Its policy sees each model's mean expected cost instead of the cost of the query.
    """

    key: str
    title: str
    settings: Json
    predict: Callable[[Bench], Predictions]
    thresholds: bool = False
    binding: bool = False
    constant_cost: bool = False


def timed_walk(config: TrainingConfig, **given: Json) -> tuple[Walk, set[str]]:
    """Return a run, with data or split as ``given``, and the set of the stages that it makes."""
    made: set[str] = set()

    @contextmanager
    def note(stage: str) -> Iterator[Progress]:
        made.add(stage)
        yield untold

    return Walk(config, watch=note, **given), made


def of_walk(walk: Walk, made: set[str]) -> Predictions:
    """Return what a run predicts, and the seconds of each stage that it had to make."""
    seconds: dict[str, float] = {}
    stages = {"embed": "features", "fit": "fitted", "calibrate, price and tune": "tuned"}
    for stage, name in stages.items():
        started = time.perf_counter()
        getattr(walk, name)
        if name == "tuned" or stage in made:
            seconds[stage] = time.perf_counter() - started
    rows = walk.split
    test = walk.predict(rows.test)
    return Predictions(
        walk.P(rows.calibration),
        test.P,
        walk.expected_cost(rows.calibration),
        walk.expected_cost(rows.test),
        novelty_test=test.novelty,
        policy=walk.recommended.model_dump(mode="json"),
        seconds=seconds,
    )


def recipe() -> System:
    """Return the default recipe: what a training run does when the config says nothing."""
    return System(
        "recipe",
        "default recipe",
        {},
        lambda bench: of_walk(bench.walk, bench.made),
    )


def question_only() -> System:
    """Return the default recipe on the same features with everything about pictures zeroed."""
    return System(
        "question_only",
        "default recipe, question only",
        {"without": ["pictures"]},
        lambda bench: bench.variant(without=["pictures"]),
    )


def with_minilm(config: TrainingConfig) -> System:
    """Return the default recipe on the composed features of a run with the ``sentence`` encoder.

    Parameters
    ----------
    config : TrainingConfig
        Of the same table and seed.
    """

    def predict(bench: Bench) -> Predictions:
        return of_walk(*timed_walk(config, data=bench.walk.data))

    settings = {"features": config.features.model_dump(mode="json")}
    return System("minilm", "default recipe + MiniLM", settings, predict)


def column_groups(spec: FeatureSpec) -> dict[str, Int]:
    """Return the columns of ``X`` by what they describe, for a spec that begins with ``embedded``.

    ``pictures`` are all that tells of pictures, ``n-grams`` both views of the text, ``surface`` the
    counts and lengths.
    """
    embedded = spec.encoders[0]
    if not isinstance(embedded, EmbeddedSpec) or len(spec.encoders) > 1:
        raise ValueError("Columns are known by name for the embedded encoder alone.")
    k, surface = embedded.text_components, len(SURFACE_NAMES)
    text, image = 2 * k + surface, len(PIXEL_NAMES) + embedded.thumbnail_components
    named = {name: text + image + at for at, name in enumerate(spec.extra_columns)}

    def columns(start: int, stop: int, *extra: str) -> Int:
        return np.array([*range(start, stop), *(named[name] for name in extra if name in named)])

    return {
        "n-grams": columns(0, 2 * k),
        "n-grams of the end": columns(k, 2 * k),
        "surface": columns(2 * k, text, "log_chars", "log_prompt_chars"),
        "pictures": columns(text, text + image, "has_image", "image_count"),
    }


@cache
def code_digest() -> str:
    """Return a digest of the code that decides what is predicted: changed code, new predictions."""
    here, training = Path(__file__).parent, Path(router_training.__file__).parent
    names = ("config", "embed", "mlp_steps", "pipeline", "recipe", "splits", "tune")
    return digest_of_files(
        *(Path(router_runtime.__file__).parent / "prediction").rglob("*.py"),
        *training.glob("fit*.py"),
        *(training / f"{name}.py" for name in names),
        *(here / f"{name}.py" for name in ("ablation", "baselines", "systems")),
    )


def digest_of_files(*files: Path) -> str:
    """Return a digest of the texts of those files that exist."""
    return digest_of({str(f): f.read_text(encoding="utf-8") for f in files if f.exists()})


_ARRAYS = ("P_calibration", "P_test", "cost_calibration", "cost_test", "novelty_test")
