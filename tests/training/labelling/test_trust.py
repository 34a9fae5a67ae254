from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from router_runtime.errors import DataError
from router_runtime.types import Query
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.cells import Cell, SampleCells
from router_training.labelling.judge import Judged, Vote
from router_training.labelling.marks import Marks
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import Scored
from router_training.labelling.trust import measure_trust
from router_training.labelling.trust_tables import render_trust
from router_training.samples import Sample
from router_training.trust_report import TrustReport

PENDING = "pending: judge 'j': target_stopped"


def row_of(at, *cells) -> SampleCells:
    sample = Sample(str(at), Query(f"q{at}"), "r", f"g{at}", None, f"q{at}")
    return SampleCells(LabelSample(sample), cells)


def cell(model="m", score=None, *, votes=(), by="judge", reason=None, patterns=()) -> Cell:
    reason = reason or (None if score is not None else "no verdict: judge 'j': unreadable")
    judged = Judged(score, reason, votes=tuple(votes), patterns=tuple(patterns))
    outcome = Outcome("key", model, Status.ANSWERED, text="an answer")
    decided = by if score is not None else ""
    scored = Scored(model, score, decided, reason, judged if by == "judge" else None)
    return Cell(model, outcome, scored, reason)


def vote(score, repeat=0, *, judge="j", order="", unreadable=0, status=Status.ANSWERED) -> Vote:
    verdict = None if score is None else {1.0: "yes", 0.0: "no"}.get(score, str(score))
    return Vote(judge, repeat, order, score, verdict, "", unreadable, status)


def test_a_judges_replies_are_counted_retries_among_them():
    votes = [
        [vote(1.0), vote(1.0, 1)],
        [vote(0.0, unreadable=2), vote(1.0, 1)],
        [vote(None, unreadable=3), vote(None, 1, status=Status.REFUSED)],
        [vote(None, status=Status.PENDING), vote(1.0, 1)],
    ]
    reasons = [None, None, None, PENDING]
    scores = [1.0, 0.5, None, None]
    rows = [
        row_of(at, cell(score=scores[at], votes=votes[at], reason=reasons[at])) for at in range(4)
    ]
    report = measure_trust(rows)
    (judge,) = report.judges
    assert judge.verdicts == {"no": 1, "yes": 4}
    # Seven votes ended, two of them without a verdict; the pending one says nothing yet.
    assert (judge.unscored.n, judge.unscored.value) == (7, pytest.approx(2 / 7))
    assert (judge.unreadable.n, judge.unreadable.value) == (10, 0.5)
    assert (judge.repeats.n, judge.repeats.value) == (2, 0.5)
    assert judge.repeats_difference == 0.5
    assert judge.orders is None
    # The pending answer is no answer without a verdict.
    assert (report.no_verdict.n, report.no_verdict.value) == (3, pytest.approx(1 / 3))


def test_orders_of_a_comparison_and_judges_among_each_other_agree_or_not():
    votes = [vote(1.0, order="ab"), vote(0.0, order="ba")]
    others = [vote(1.0, judge="k", order="ab"), vote(1.0, judge="k", order="ba")]
    report = measure_trust([row_of(0, cell(score=0.5, votes=[*votes, *others]))])
    first, second = report.judges
    assert (first.orders.value, second.orders.value) == (0.0, 1.0)
    assert first.repeats is None
    assert (report.between_judges.n, report.between_judges.value) == (2, 0.5)


def test_who_decided_and_what_is_suspicious_is_told_by_candidate():
    rows = [
        row_of(
            at,
            cell("a", 1.0, by="match"),
            cell("b", 1.0 if at else 0.0, patterns=["override"] if at == 1 else []),
            Cell("c", None, None, "ineligible: does_not_accept_image"),
        )
        for at in range(3)
    ]
    report = measure_trust(rows)
    assert report.decided == {"judge": 3, "match": 3}
    assert (report.samples, report.answered, report.scored) == (3, 6, 6)
    a, b, c = report.candidates
    assert (a.suspicious, b.suspicious, b.suspicious_score) == (0, 1, 1.0)
    assert b.mean_score == pytest.approx(2 / 3)
    assert c.answered == 0
    assert math.isnan(c.mean_score)


def marked(human, labels, *, groups=None):
    """Rows whose label and mark are given; ``None`` is no mark."""
    rows = [row_of(at, cell(score=label)) for at, label in enumerate(labels)]
    scores = {(str(at), "m"): mark for at, mark in enumerate(human) if mark is not None}
    return rows, Marks(scores, n_unsure=sum(mark is None for mark in human))


def test_agreement_with_people_is_that_of_the_textbook_when_all_is_marked():
    human = [1.0] * 25 + [0.0] * 25
    labels = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    rows, marks = marked(human, labels)
    (found,) = measure_trust(rows, marks=marks).human
    assert found.confusion == ((20, 5), (10, 15))
    assert found.accuracy.estimate == pytest.approx(0.7)
    assert found.kappa.estimate == pytest.approx(0.4)
    # By hand: standard errors sqrt(.7 * .3 / 50) = .065 and .065 / (1 - .5) = .130.
    assert found.accuracy.low == pytest.approx(0.7 - 1.96 * 0.065, abs=0.03)
    assert found.accuracy.high == pytest.approx(0.7 + 1.96 * 0.065, abs=0.03)
    assert found.kappa.low == pytest.approx(0.4 - 1.96 * 0.130, abs=0.05)
    assert found.kappa.high == pytest.approx(0.4 + 1.96 * 0.130, abs=0.05)
    assert (found.n, found.covered) == (50, 1.0)


def test_few_marks_that_all_agree_are_no_certainty():
    rows, marks = marked([1.0, 0.0] * 3, [1.0, 0.0] * 3)
    (found,) = measure_trust(rows, marks=marks).human
    assert (found.accuracy.estimate, found.accuracy.high) == (1.0, 1.0)
    # Wilson's bound of 6 in 6 is 6 / (6 + 1.96^2); chance agrees half of the time.
    assert found.accuracy.low == pytest.approx(6 / (6 + 1.96**2), abs=1e-3)
    assert (found.kappa.estimate, found.kappa.high) == (1.0, 1.0)
    assert found.kappa.low == pytest.approx((found.accuracy.low - 0.5) / 0.5)


def test_marks_that_all_disagree_are_no_certainty_either():
    rows, marks = marked([0.0, 1.0] * 3, [1.0, 0.0] * 3)
    (found,) = measure_trust(rows, marks=marks).human
    assert (found.accuracy.estimate, found.accuracy.low) == (0.0, 0.0)
    assert found.accuracy.high == pytest.approx(1 - 6 / (6 + 1.96**2), abs=1e-3)
    assert found.kappa.low == found.kappa.estimate == -1.0
    assert -1.0 < found.kappa.high < 0.0


def test_marks_of_one_habit_have_an_accuracy_and_no_kappa():
    rows, marks = marked([1.0] * 6, [1.0] * 6)
    (found,) = measure_trust(rows, marks=marks).human
    assert found.accuracy.low < 0.7
    assert math.isnan(found.kappa.estimate) and math.isnan(found.kappa.low)


def test_answers_to_one_sample_that_all_agree_count_as_few():
    rows = [row_of(at, *(cell(f"m{n}", 1.0) for n in range(10))) for at in range(2)]
    scores = {(str(at), f"m{n}"): 1.0 for at in range(2) for n in range(10)}
    (found,) = measure_trust(rows, marks=Marks(scores)).human
    assert found.accuracy.low == pytest.approx(2 / (2 + 1.96**2), abs=1e-3)


def test_a_balanced_sample_of_marks_is_weighed_to_all_labels():
    # 90 labels say yes and 9 of 10 are right; 10 say no and half of them are right.
    labels = [1.0] * 90 + [0.0] * 10
    human = [1.0] * 9 + [0.0] + [None] * 80 + [0.0] * 5 + [1.0] * 5
    rows, marks = marked(human, labels)
    report = measure_trust(rows, marks=marks)
    assert report.human[0].accuracy.estimate == pytest.approx(0.9 * 0.9 + 0.1 * 0.5)
    assert (report.marks.marks, report.marks.unsure) == (20, 80)


def test_kinds_that_nobody_looked_at_are_not_spoken_for():
    rows, marks = marked([1.0] * 5 + [None] * 15, [1.0] * 10 + [0.0] * 10)
    assert measure_trust(rows, marks=marks).human[0].covered == 0.5


def test_scorers_are_told_apart_where_there_are_several():
    rows = [row_of(at, cell("m", 1.0, by="match"), cell("n", 1.0)) for at in range(4)]
    scores = {(str(at), model): float(model == "m") for at in range(4) for model in "mn"}
    everyone, judge, match = measure_trust(rows, marks=Marks(scores)).human
    assert (everyone.by, judge.by, match.by) == ("all", "judge", "match")
    assert (everyone.accuracy.estimate, judge.accuracy.estimate) == (0.5, 0.0)
    assert match.accuracy.estimate == 1.0


def test_marks_without_a_label_or_an_answer_are_counted():
    rows = [row_of(0, cell()), row_of(1, cell(score=1.0))]
    marks = Marks({("0", "m"): 1.0, ("1", "m"): 1.0, ("9", "m"): 0.0, ("1", "x"): 0.0})
    report = measure_trust(rows, marks=marks)
    assert (report.marks.unscored, report.marks.unmatched) == (1, 2)
    assert report.human[0].n == 1
    with pytest.raises(DataError, match="None of the 1 marks"):
        measure_trust(rows, marks=Marks({("9", "m"): 1.0}))


def test_the_interval_of_kappa_holds_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(40):
        labels = (rng.uniform(size=120) < 0.5).astype(float)
        human = np.where(rng.uniform(size=120) < 0.8, labels, 1 - labels)  # kappa is 0.6
        rows, marks = marked(list(human), list(labels))
        kappa = measure_trust(rows, marks=marks, seed=seed).human[0].kappa
        held += kappa.low <= 0.6 <= kappa.high
    assert held >= 34


def test_a_seed_gives_the_same_report_and_json_brings_it_back():
    rows, marks = marked([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    one, two = (measure_trust(rows, marks=marks, seed=3) for _ in range(2))
    text = json.dumps(one.to_json(), allow_nan=False)
    assert text == json.dumps(two.to_json())
    assert repr(TrustReport.from_json(json.loads(text))) == repr(one)
    empty = measure_trust([])
    assert empty.no_verdict.n == 0
    assert repr(TrustReport.from_json(empty.to_json())) == repr(empty)


@pytest.mark.parametrize("content", [None, {}, {"schema_version": 9}, {"schema_version": 1}])
def test_what_is_no_report_is_refused(content):
    with pytest.raises(DataError, match=r"schema version|malformed"):
        TrustReport.from_json(content)


def printed(report) -> str:
    stream = io.StringIO()
    render_trust(report, Console(file=stream, width=120))
    return stream.getvalue()


def test_the_console_tells_shares_with_intervals_and_the_confusion():
    rows, marks = marked([1.0, 0.0, 1.0, None], [1.0, 1.0, 0.0, 0.0])
    votes = [vote(1.0), vote(0.0, 1)]
    rows.append(row_of(9, cell(score=1.0, votes=votes, patterns=["override"])))
    text = printed(measure_trust(rows, marks=marks))
    assert "Scores were decided by: judge 100.0%" in text
    assert "A person says yes: label yes 1, label no 1" in text
    assert "1 answers of m read like instructions to the judge" in text
    assert "repeats agree" in text
    assert "0.0% [0.0%, " in text
    assert "and 1 left open" in text


def test_the_console_asks_for_marks_where_there_are_none():
    text = printed(measure_trust([row_of(0, cell(score=1.0, votes=[vote(1.0)]))]))
    assert "router-train audit" in text
    assert "Against human marks" not in text
