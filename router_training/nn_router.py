"""Stage 3: embedding arrays to a trained router, with the published script's names and flags.

    python router_training/nn_router.py \
        --train-embeddings hf_train_embeddings.npy --test-embeddings hf_test_embeddings.npy \
        --train-json hf_evaluations_train.json --test-json hf_evaluations_test.json \
        --output-dir router_artifacts

splits the training records by group into train, validation and calibration rows, fits
``RouterNetwork``, calibrates, evaluates once on the test records, and writes an artifact folder
that also holds the published files (``nn_router.pth`` ...). ``router-train run`` does the same for
a config, with any encoder and head; novelty, which the published files cannot carry, only there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's folder first on the path, where ``config`` or ``evaluate`` would hide
    # other packages' modules of that name. The repository's root is what belongs there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from router_runtime.console import require

    require("router_training.pipeline", extra="train")

import tempfile
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import typer

from router_runtime.console import err, out, run_app
from router_runtime.yaml_config import validate
from router_training.config import TrainingConfig
from router_training.embed import FeatureFiles
from router_training.evaluation_report import EvaluationReport
from router_training.fit_mlp import SEARCH_GRID
from router_training.labels import ARRAYS, Evaluations, LabelMatrix, read_evaluations
from router_training.pipeline import Walk
from router_training.splits import Split, split_evaluations
from router_training.stage_files import (
    METADATA,
    TEST_EMBEDDINGS,
    TRAIN_EMBEDDINGS,
    StageEmbeddings,
    check_records,
    read_embeddings,
)

TUNE_HYPERPARAMETERS = True  # --no-tune for one run
USE_CLASS_WEIGHTS = True  # a model's good and bad answers weigh the same in its own loss
N_TRIALS = 20
RANDOM_STATE = 42

default_config: dict[str, Any] = {
    "hidden_dims": [512, 256, 128],
    "dropout": 0.3,
    "learning_rate": 0.001,
    "batch_size": 64,
    "epochs": 50,
    "weight_decay": 1e-5,
    "patience": 10,
}
param_grid = SEARCH_GRID

_FRACTIONS = (0.8, 0.1, 0.1, 0.0)


class EmbeddedWalk(Walk):
    """The pipeline's walk from records and embeddings that are already there.

    Parameters
    ----------
    config : TrainingConfig
        Its data, split and encoder sections are not used.
    train, test : Evaluations
        Records with equal columns.
    embeddings : StageEmbeddings
        Their features, row by row.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        train: Evaluations,
        test: Evaluations,
        embeddings: StageEmbeddings,
    ) -> None:
        super().__init__(config)
        self._train = train
        self._test = test
        self._embeddings = embeddings

    @cached_property
    def data(self) -> Evaluations:
        """Training records, then test records."""
        first, second = self._train.labels, self._test.labels
        labels = LabelMatrix(
            first.model_ids,
            *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ARRAYS),
        )
        return Evaluations(self._train.samples + self._test.samples, labels)

    @cached_property
    def split(self) -> Split:
        """The training records by group, without those that also occur in the test records."""
        n = len(self._train)
        rows = self.unseen
        parts = split_evaluations(
            self._train.take(rows), fractions=_FRACTIONS, seed=self.config.seed
        )
        test = np.arange(n, n + len(self._test), dtype=np.int64)
        return Split(rows[parts.train], rows[parts.validation], rows[parts.calibration], test)

    @cached_property
    def unseen(self) -> np.ndarray:
        """Training rows whose prompt and pictures (or group) are not in the test records."""
        tested = set(self._test.groups)
        return np.array(
            [row for row, group in enumerate(self._train.groups) if group not in tested],
            dtype=np.int64,
        )

    @cached_property
    def features(self) -> FeatureFiles:
        """The given embeddings."""
        given = self._embeddings
        return FeatureFiles(
            X=np.concatenate([given.X_train, given.X_test]),
            fingerprints=(given.fingerprint,),
            states=(given.state,),
            metadata={"fingerprint": given.digest},
        )


def head_settings(*, tune: bool) -> dict[str, Any]:
    """Return the head's section of a training config, from the constants of this file."""
    return {
        "kind": "mlp",
        **default_config,
        "pos_weight": "balanced" if USE_CLASS_WEIGHTS else "none",
        "search": N_TRIALS if tune else 0,
    }


def print_report(report: EvaluationReport) -> None:
    """Print the published script's summary of an evaluation."""
    lines = ["Per-model metrics:"]
    for model in report.models:
        m = model.metrics
        lines.append(f"  {model.model_id}: AUC={m.auc:.3f}, acc={m.accuracy:.3f}, f1={m.f1:.3f}")
    lines += [
        "",
        f"Router system accuracy: {report.strategy('router').outcome.quality:.3f}",
        f"Oracle (best possible): {report.strategy('oracle').outcome.quality:.3f}",
        "",
        "Model selection distribution:",
    ]
    for model in report.models:
        chosen = f" (accuracy {model.quality_when_chosen:.3f})" if model.share else ""
        lines.append(f"  {model.model_id}: {model.share:.1%}{chosen}")
    out.print("\n".join(lines), markup=False, soft_wrap=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    train_embeddings: Annotated[Path, typer.Option(help="From stage 2.")] = Path(TRAIN_EMBEDDINGS),
    test_embeddings: Annotated[Path, typer.Option(help="From stage 2.")] = Path(TEST_EMBEDDINGS),
    train_json: Annotated[Path, typer.Option(help="Records to train on.")] = Path(
        "hf_evaluations_train.json"
    ),
    test_json: Annotated[Path, typer.Option(help="Records to test on.")] = Path(
        "hf_evaluations_test.json"
    ),
    output_dir: Annotated[Path, typer.Option(help="Artifact folder.")] = Path("router_artifacts"),
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Use default_config as it is.")
    ] = not TUNE_HYPERPARAMETERS,
    seed: Annotated[int, typer.Option(help="Split, initial weights, search.")] = RANDOM_STATE,
) -> None:
    """Train, evaluate and save the router network."""
    given = read_embeddings(train_embeddings, test_embeddings)
    if given.fingerprint is None:
        err.print(
            f"warning: no {METADATA} beside '{train_embeddings}'; taken for text (512) and picture "
            "(512) of CLIP ViT-B-32, which cannot be checked",
            markup=False,
            soft_wrap=True,
        )
    rule = given.features.text
    train = read_evaluations(train_json, rule=rule)
    test = read_evaluations(test_json, model_ids=train.model_ids, rule=rule)
    check_records(train_embeddings, given.X_train, train.queries, records=train_json, part="train")
    check_records(test_embeddings, given.X_test, test.queries, records=test_json, part="test")
    with tempfile.TemporaryDirectory() as work:
        config = validate(
            TrainingConfig,
            {
                "features": given.features.model_dump(),
                "head": head_settings(tune=not no_tune),
                "novelty": {"enabled": False},
                "output": output_dir,
                "work_dir": work,
                "seed": seed,
            },
            source="nn_router.py",
        )
        walk = EmbeddedWalk(config, train=train, test=test, embeddings=given)
        if left_out := len(train) - len(walk.unseen):
            err.print(f"{left_out} training records also occur in the test records: left out")
        print_report(walk.report)
        walk.keep(export_legacy=True)
    out.print(f"Saved {output_dir}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app)
