from __future__ import annotations

import math

import numpy as np
import pytest

from router_training.labelling.agreement import (
    ShareTally,
    accuracy,
    cohens_kappa,
    equal_across,
    equal_pairs,
)


def tally(pairs):
    found = ShareTally()
    for hits, n in pairs:
        found.add(hits, n)
    return found


def test_independent_samples_give_wilsons_interval():
    share = tally([(1, 1)] * 8 + [(0, 1)] * 2).share()
    assert (share.n, share.value) == (10, 0.8)
    # Wilson's interval of 8 in 10 is .4902 to .9433; the variance of nine degrees widens it a bit.
    assert share.low == pytest.approx(0.4902, abs=0.02)
    assert share.high == pytest.approx(0.9433, abs=0.01)


def test_answers_to_one_sample_that_agree_count_as_few():
    alone = tally([(1, 1), (0, 1)] * 50).share()
    together = tally([(10, 10), (0, 10)] * 5).share()
    assert (alone.n, together.n) == (100, 100)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        ability = rng.beta(8, 2, size=60)
        share = tally((int(rng.binomial(4, p)), 4) for p in ability).share()
        held += share.low <= 0.8 <= share.high
    assert 0.92 <= held / 400 <= 0.98


def test_unanimity_is_no_certainty():
    share = tally([(3, 3)] * 20).share()
    assert (share.value, share.high) == (1.0, 1.0)
    assert share.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-3)


def test_the_ends_are_exact():
    for n in range(3, 40):
        assert tally([(0, 3)] * n).share().low == 0.0
        assert tally([(3, 3)] * n).share().high == 1.0


def test_nothing_counted_is_not_zero():
    assert tally([(0, 0)]).known() is None
    assert math.isnan(tally([]).share().value)


def test_pairs_within_and_across_are_counted():
    assert equal_pairs(["yes", "yes", "no"]) == (1, 3)
    assert equal_pairs(["yes"]) == (0, 0)
    assert equal_across([["yes", "no"], ["yes"], []]) == (1, 2)


def test_kappa_is_that_of_the_textbook():
    # Cohen's example as it is usually told: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
    table = np.array([[20.0, 5.0, 10.0, 15.0]])
    assert accuracy(table)[0] == pytest.approx(0.7)
    assert cohens_kappa(table)[0] == pytest.approx(0.4)


def test_kappa_of_chance_is_zero_and_of_one_habit_unknown():
    tables = np.array([[25.0, 25.0, 25.0, 25.0], [9.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
    found = cohens_kappa(tables)
    assert found[0] == pytest.approx(0.0)
    assert np.isnan(found[1:]).all()
    assert accuracy(tables)[1] == 1.0
