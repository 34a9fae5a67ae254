"""A trained head in the files of the published router, for its readers; never read back by us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_runtime.artifacts import Artifact
from router_runtime.errors import ConfigError
from router_runtime.legacy.importing import BOOSTERS, NAMES, NETWORK, SETTINGS
from router_runtime.prediction.heads.base import import_optional
from router_runtime.types import Head, Json

_EXTRAS = dict.fromkeys(("torch", "joblib", "xgboost", "sklearn"), "train")


def export_files(
    source: Artifact | Head, model_ids: Sequence[str], hyperparameters: Mapping[str, Json]
) -> dict[str, bytes]:
    """Return the published router's files, to be given to ``save_artifact(exports=...)``.

    They hold the head alone: readers of these formats know no calibration, feature spec or cost.

    Parameters
    ----------
    source : Artifact or Head
        With an ``mlp`` head of one network, or an ``xgboost`` head.
    model_ids : sequence of str
        In column order.
    hyperparameters : mapping
        Plain values; kept as ``best_hyperparameters.joblib``.

    Returns
    -------
    dict of str to bytes
        ``model_names.joblib``, ``best_hyperparameters.joblib``, and ``nn_router.pth`` (tensors and
        plain values; loads with ``weights_only=True``) or ``xgb_multi_router.joblib``.

    Raises
    ------
    ConfigError
        If the head is of another kind or an ensemble, which these formats cannot hold.
    MissingDependencyError
        Without torch, xgboost, scikit-learn or joblib, as far as they are needed.
    """
    head = source.head if isinstance(source, Artifact) else source
    if head.kind == "mlp":
        checkpoint = import_optional("router_runtime.legacy.checkpoint", _EXTRAS)
        weights = checkpoint.write_checkpoint(head, model_ids, hyperparameters=hyperparameters)
        files = {NETWORK: weights}
    elif head.kind == "xgboost":
        boosters = import_optional("router_runtime.legacy.boosters_writer", _EXTRAS)
        files = {BOOSTERS: boosters.write_boosters(head)}
    else:
        raise ConfigError(
            f"A '{head.kind}' head has no counterpart among the published router's files. Train "
            "'mlp' or 'xgboost', or export nothing."
        )
    dump = import_optional("router_runtime.legacy.joblib_writer", _EXTRAS).dump
    files[NAMES] = dump(list(model_ids))
    files[SETTINGS] = dump(dict(hyperparameters))
    return files
