"""What each ingredient of the default recipe is worth, and what more rows are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from quality_parts.systems import (
    Bench,
    Predictions,
    System,
    of_walk,
    recipe,
    timed_walk,
)
from router_runtime.types import Int, Query
from router_training.config import TrainingConfig
from router_training.fitting import HeadConfig, MlpConfig, StackConfig
from router_training.splits import Split

HEAD_CHARS = 1000
"""About 256 tokens: what a sentence encoder's single window would see of a prompt."""

SHARES = (0.7, 0.4, 0.2, 0.1)


def ablations(config: TrainingConfig, *, pictures: bool) -> tuple[System, ...]:
    """Return the default recipe first, then the recipe without each of its ingredients.

    Parameters
    ----------
    config : TrainingConfig
        Whose head is taken apart.
    pictures : bool
        Whether the table has pictures to be left out.
    """
    whole = recipe()
    groups = ["n-grams", "n-grams of the end", "surface", *(["pictures"] if pictures else [])]
    return (
        whole,
        *_other_heads(config.head, whole),
        *(_calibrated(method, whole) for method in ("none", "isotonic")),
        *(_without(group, whole) for group in groups),
        _truncated(whole),
        replace(whole, key="thresholds", title="absolute thresholds for lambda", thresholds=True),
        replace(
            whole, key="constant_cost", title="one cost per model, not learned", constant_cost=True
        ),
    )


def learning_curve() -> tuple[System, ...]:
    """Return the default recipe, and the same fitted to smaller shares of the groups."""
    return (recipe(), *(_on_share(share) for share in SHARES))


def smaller_split(bench: Bench, share: float) -> Split:
    """Return the split with a random share of the groups of train and of validation.

    A larger share holds a smaller one. Calibration and test stay.
    """
    split = bench.walk.split
    groups = np.asarray(bench.walk.data.groups)
    rng = np.random.default_rng([bench.config.seed, 1])

    def some(rows: Int) -> Int:
        group = np.unique(groups[rows], return_inverse=True)[1]
        place = rng.permutation(group.max() + 1)
        return rows[place[group] < share * len(place)]

    return replace(split, train=some(split.train), validation=some(split.validation))


def _on_share(share: float) -> System:
    return System(
        f"share_{share:g}",
        f"{100 * share:.0f} % of the rows to fit on",
        {**recipe().settings, "share": share},
        lambda bench: bench.variant(split=smaller_split(bench, share)),
    )


def _other_heads(head: HeadConfig, whole: System) -> Iterator[System]:
    def system(key: str, title: str, changed: HeadConfig) -> System:
        settings = {**whole.settings, "head": changed.model_dump(mode="json")}
        return System(key, title, settings, lambda bench: bench.variant(head=changed))

    members = head.heads if isinstance(head, StackConfig) else ()
    for at, member in enumerate(members):
        rest = head.model_copy(update={"heads": members[:at] + members[at + 1 :]})
        alone = head.model_copy(update={"heads": (member,)})
        if rest.heads:
            yield system(f"without_{at}_{member.kind}", f"without {member.kind}", rest)
            yield system(f"only_{at}_{member.kind}", f"{member.kind} alone, cross-fitted", alone)
        if isinstance(member, MlpConfig):
            yield system(f"single_{at}", "one network, same settings", member)
    changes = {
        "unsmoothed": ("no label smoothing", {"label_smoothing": 0.0}),
        "undecayed": ("no weight decay", {"weight_decay": 0.0}),
    }
    for key, (title, update) in changes.items():
        changed = _with_networks(head, update)
        if changed != head:
            yield system(key, title, changed)


def _with_networks(head: HeadConfig, update: dict[str, float]) -> HeadConfig:
    if isinstance(head, MlpConfig):
        return head.model_copy(update=update)
    if isinstance(head, StackConfig):
        heads = tuple(_with_networks(member, update) for member in head.heads)
        return head.model_copy(update={"heads": heads})
    return head


def _calibrated(method: str, whole: System) -> System:
    return System(
        f"calibration_{method}",
        f"calibration: {method}",
        {**whole.settings, "calibration": method},
        lambda bench: bench.variant(calibration=method),
    )


def _without(group: str, whole: System) -> System:
    return System(
        f"without_{group.replace(' ', '_')}",
        f"without {group}",
        {**whole.settings, "without": [group]},
        lambda bench: bench.variant(without=[group]),
    )


def _truncated(whole: System) -> System:
    return System(
        "truncated",
        f"only the first {HEAD_CHARS:,} characters of a text",
        {**whole.settings, "head_chars": HEAD_CHARS},
        _predict_truncated,
    )


def _predict_truncated(bench: Bench) -> Predictions:
    data = bench.walk.data
    samples = tuple(replace(sample, query=_head(sample.query)) for sample in data.samples)
    return of_walk(*timed_walk(bench.config, data=replace(data, samples=samples)))


def _head(query: Query) -> Query:
    """Cut the text, and let the cost still know how long the request is."""
    return replace(query, text=query.text[:HEAD_CHARS], prompt_chars=query.total_chars)
