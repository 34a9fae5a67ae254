"""Walk two, then walk one on its result: training and serving are the same computation."""

from __future__ import annotations

import numpy as np
import pytest

from router_runtime import ModelRouter
from router_training.pipeline import Walk


@pytest.fixture(scope="module")
def walk(trained):
    return Walk(trained[0])


@pytest.fixture(scope="module")
def router(trained):
    return ModelRouter(trained[0].output)


def test_serving_gives_training_samples_the_features_that_training_saw(walk, router):
    X = router.predictor.features.encode(walk.data.queries)
    np.testing.assert_array_equal(X, walk.features.X)
    for row in (0, 7, 211):
        alone = router.predictor.features.encode([walk.data.queries[row]])
        np.testing.assert_array_equal(alone[0], walk.features.X[row])


@pytest.mark.parametrize("part", ["train", "validation", "calibration", "test"])
def test_serving_gives_training_samples_the_p_that_training_saw_to_the_bit(walk, router, part):
    rows = getattr(walk.split, part)
    served = router.predict(walk.data.take(rows).queries)
    np.testing.assert_array_equal(served.P, walk.P(rows))
    np.testing.assert_array_equal(served.novelty, walk.predict(rows).novelty)


def test_some_of_the_compared_rows_are_shrunken_for_their_novelty(walk, router):
    rows = walk.split.test
    novelty = walk.predict(rows).novelty
    bound = router.artifact.novelty.description.shrink_above
    plain = walk.calibrated[0].apply(walk.fitted[0].predict_proba(walk.features.X[rows]))
    changed = (plain != walk.P(rows)).any(axis=1)
    assert (novelty > bound).any()
    np.testing.assert_array_equal(changed, novelty > bound)


def test_a_query_alone_gets_the_same_p_as_in_a_batch(walk, router):
    queries = walk.data.queries[:50]
    together = router.probabilities(queries)
    alone = np.vstack([router.probabilities([query]) for query in queries])
    np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)


def test_serving_chooses_what_evaluation_counted(walk, router, trained):
    rows = walk.split.test
    decisions = router.decide_batch(walk.data.take(rows).queries)
    chosen = [decision.model_id for decision in decisions]
    Y = walk.data.labels.Y[rows]
    columns = [router.model_ids.index(model) for model in chosen]
    accuracy = np.nanmean(Y[np.arange(len(rows)), columns])
    report = trained[1].report
    assert accuracy == pytest.approx(report.strategy("router").outcome.quality, abs=1e-12)
    for model in report.models:
        share = chosen.count(model.model_id) / len(chosen)
        assert share == pytest.approx(model.share, abs=1e-12)


def test_serving_expects_the_costs_that_tuning_weighed(walk, router):
    rows = walk.split.calibration
    queries = walk.data.take(rows).queries
    np.testing.assert_array_equal(router.expected_cost(queries), walk.expected_cost(rows))
    np.testing.assert_array_equal(router.eligible(queries).mask, walk.eligible(rows))


def test_a_message_is_routed_as_the_prompt_it_was_trained_on(router, walk):
    from router_runtime.messages import query_from_messages

    sample = next(s for s in walk.data.samples if not s.query.images)
    served = query_from_messages(
        [{"role": "user", "content": sample.prompt}], rule=router.artifact.features.text
    )
    assert served == sample.query
