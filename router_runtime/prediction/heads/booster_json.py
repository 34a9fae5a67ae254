"""A booster, checked and written anew, before XGBoost sees it.

XGBoost trusts the models that it loads: a changed byte can end the process, and a tree whose child
lies outside its arrays reads foreign memory. So the buffer is parsed here, every array is checked,
and XGBoost is given JSON that holds the checked values and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from router_runtime.types import Int, Json

OBJECTIVE = "binary:logistic"

_FLOAT_COLUMNS = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")
_INT_COLUMNS = (
    "default_left",
    "left_children",
    "parents",
    "right_children",
    "split_indices",
    "split_type",
)
_CATEGORY_COLUMNS = ("categories", "categories_nodes", "categories_segments", "categories_sizes")


REFUSALS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError)
"""What ``checked_model`` raises."""


def checked_model(model: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """Return a booster's model as JSON, and its best iteration if training stopped early.

    XGBoost writes the JSON as the same UBJSON again when nothing was dropped.

    Parameters
    ----------
    model : mapping
        What ``parse_ubjson`` makes of a model that XGBoost 2 or later wrote.

    Raises
    ------
    One of REFUSALS
        If anything is missing or malformed, or the model is no tree ensemble for one binary target.
    """
    learner = model["learner"]
    param = learner["learner_model_param"]
    n_features = int(param["num_feature"])
    objective = learner["objective"]["name"]
    if objective != OBJECTIVE:
        raise ValueError(
            f"its objective is '{objective}', and only {OBJECTIVE} gives probabilities"
        )
    if int(param["num_class"]) or int(param.get("num_target", 1)) != 1 or n_features < 1:
        raise ValueError("it has several classes or targets")
    if not 0 < float(param["base_score"].strip("[]")) < 1:
        raise ValueError("its base score is no probability")
    weight = learner["objective"]["reg_loss_param"]["scale_pos_weight"]
    if not 0 < float(weight) < np.inf:
        raise ValueError("its weight of positive rows is no positive number")
    content = {
        "learner": {
            "attributes": {},
            "feature_names": [],
            "feature_types": [],
            "gradient_booster": _trees(learner["gradient_booster"], n_features),
            "learner_model_param": {
                "base_score": param["base_score"],
                "boost_from_average": str(int(param.get("boost_from_average", 1)) & 1),
                "num_class": "0",
                "num_feature": str(n_features),
                "num_target": "1",
            },
            "objective": {"name": OBJECTIVE, "reg_loss_param": {"scale_pos_weight": weight}},
        },
        "version": [int(part) for part in model["version"]],
    }
    best = learner["attributes"].get("best_iteration")
    return json.dumps(content, allow_nan=False).encode(), None if best is None else int(best)


def _trees(booster: Mapping[str, Any], n_features: int) -> Json:
    if booster["name"] != "gbtree":
        raise ValueError(f"its kind is '{booster['name']}', expected gbtree")
    model = booster["model"]
    trees = [_tree(tree, index, n_features) for index, tree in enumerate(model["trees"])]
    rounds = np.asarray(model["iteration_indptr"], dtype=np.int64)
    if rounds[0] != 0 or rounds[-1] != len(trees) or (np.diff(rounds) < 0).any():
        raise ValueError("its rounds do not fit its trees")
    parallel = int(model["gbtree_model_param"]["num_parallel_tree"])
    return {
        "model": {
            "gbtree_model_param": {
                "num_parallel_tree": str(parallel),
                "num_trees": str(len(trees)),
            },
            "iteration_indptr": rounds.tolist(),
            "tree_info": [0] * len(trees),
            "trees": trees,
        },
        "name": "gbtree",
    }


def _tree(tree: Mapping[str, Any], index: int, n_features: int) -> Json:
    n = int(tree["tree_param"]["num_nodes"])
    floats = {name: np.asarray(tree[name], dtype=np.float64) for name in _FLOAT_COLUMNS}
    ints = {name: np.asarray(tree[name], dtype=np.int64) for name in _INT_COLUMNS}
    if n < 1 or any(column.shape != (n,) for column in (*floats.values(), *ints.values())):
        raise ValueError(f"the columns of tree {index} differ in length")
    if ints["split_type"].any() or any(len(tree.get(name, ())) for name in _CATEGORY_COLUMNS):
        raise ValueError(f"tree {index} splits on categories")
    _check_shape(ints, index, n_features)
    columns = {name: column.tolist() for name, column in (floats | ints).items()}
    return {
        **columns,
        **{name: [] for name in _CATEGORY_COLUMNS},
        "id": index,
        "tree_param": {
            "num_deleted": str(int(tree["tree_param"]["num_deleted"])),
            "num_feature": str(n_features),
            "num_nodes": str(n),
            "size_leaf_vector": "1",
        },
    }


def _check_shape(ints: Mapping[str, Int], index: int, n_features: int) -> None:
    """Check that every walk from the root ends in a leaf: no child is shared, or is the root."""
    left, right = ints["left_children"], ints["right_children"]
    n, inner = len(left), np.flatnonzero(left != -1)
    children = np.concatenate([left[inner], right[inner]])
    inside = ((children > 0) & (children < n)).all() and len(np.unique(children)) == len(children)
    if not inside or (right[left == -1] != -1).any():
        raise ValueError(f"the nodes of tree {index} form no tree")
    if (ints["parents"][children] != np.concatenate([inner, inner])).any():
        raise ValueError(f"the parents of tree {index} are not those of its children")
    features = ints["split_indices"][inner]
    if ((features < 0) | (features >= n_features)).any():
        raise ValueError(f"tree {index} splits on a feature beyond {n_features}")
