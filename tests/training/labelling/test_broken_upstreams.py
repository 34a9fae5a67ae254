"""Every way in which the simulator breaks, met by candidates and by judges of a labelling run."""

from __future__ import annotations

from router_runtime.simulator.faults import FAULT_KINDS
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Status
from router_training.labelling.cells import cell_reader
from router_training.labelling.samples_stage import iter_samples
from router_training.labelling.walk import label

STILL_ANSWERS = {"usage_missing", "usage_nonsense", "duplicate_ids"}
REFUSED = {"status_400", "status_413", "status_422", "content_filter"}  # asking again is in vain
STOPPED = {"status_401", "status_403", "status_404", "insufficient_quota"} | {
    *("redirect_loop", "bad_gzip")  # nothing that this target is asked can be answered
}
ENDLESS = {"hang", "slow_trickle"}
SEES = {"modalities": ["text", "image"]}
JUDGE = {**SEES, "role": "judge", "judge": {"accuracy": 1}}
GOOD = {**SEES, "default_skill": [1, 1]}


def kind_of(fault):
    """Return how a call ends that always meets a fault."""
    if fault in STILL_ANSWERS:
        return Status.ANSWERED
    if fault in STOPPED:
        return Status.PENDING
    return Status.REFUSED if fault in REFUSED else Status.FAILED


def broken(model):
    return {name: {**model, "errors": {"rate": 1, "kinds": [name]}} for name in FAULT_KINDS}


def labelled(site, candidates, judges):
    """Label one sample, and return its cells, and how it went."""

    def entry(name, **more):
        timeout_s = 0.4 if name in ENDLESS else 60
        return {"id": name, "target": site.target(timeout_s=timeout_s), **more}

    content = {
        **site.content(),
        "data": {"path": "data/samples.jsonl", "limit": 1},
        "candidates": [entry(name, **SEES) for name in candidates],
        "judge": {
            "models": [entry(name) for name in judges],
            "structured": "text",
        },
        "scoring": {},
        "ask": {"attempts": 2, "max_wait_s": 0.05},
    }
    config = site.config(content)
    done = label(config, partly=True)
    with AnswerStore.read(config.work_dir) as store:
        (row,) = cell_reader(config, store).read(iter_samples(done.samples))
    return row.cells, done


def test_whatever_breaks_a_candidates_cell_is_answered_or_says_why_not_and_is_no_zero(
    open_site, records_of
):
    site = open_site(rows=1, models={**broken(GOOD), "judge": JUDGE})
    cells, _ = labelled(site, FAULT_KINDS, ["judge"])
    found = {cell.model_id: cell.kind or Status.ANSWERED for cell in cells}
    assert found == {fault: kind_of(fault) for fault in FAULT_KINDS}
    (record,) = records_of(site.folder / "records.jsonl")
    for fault in FAULT_KINDS:
        usable = fault in STILL_ANSWERS
        assert record["model_scores"][fault] == (1.0 if usable else None), fault
        assert (fault in record["unscored"]) != usable


def test_whatever_breaks_a_judges_vote_is_left_out_with_its_reason(open_site):
    site = open_site(rows=1, models={**broken(JUDGE), "good": GOOD})
    (cell,), _ = labelled(site, ["good"], FAULT_KINDS)
    assert {vote.model_id: vote.status for vote in cell.judged.votes} == {
        fault: kind_of(fault) for fault in FAULT_KINDS
    }
    for vote in cell.judged.votes:
        usable = vote.model_id in STILL_ANSWERS
        assert (vote.score, vote.verdict) == ((1.0, "yes") if usable else (None, None))
        assert (vote.reason is None) == usable
    assert (cell.score, cell.kind) == (None, "pending")  # stopped judges may still vote


def test_broken_judges_alone_leave_an_answer_without_a_score_and_never_at_zero(open_site):
    broken_ones = sorted(FAULT_KINDS.keys() - STILL_ANSWERS - STOPPED)
    site = open_site(rows=1, models={**broken(JUDGE), "good": GOOD})
    (cell,), done = labelled(site, ["good"], broken_ones)
    assert (cell.score, cell.kind) == (None, "no verdict")
    (reason,) = done.asked.judges["status_400"].reasons
    assert "answered status 400" in reason
    trust = done.tabulated.labelled_by.trust
    assert (trust.answered, trust.scored, trust.no_verdict.value) == (1, 0, 1.0)
    assert [judge.unscored.value for judge in trust.judges] == [1.0] * len(broken_ones)
