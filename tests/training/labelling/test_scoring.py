import asyncio
import re

import pytest

from router_runtime.errors import DataError, TargetStatusError
from router_runtime.targets.fake import FakeTarget
from router_runtime.types import Image, Query
from router_runtime.yaml_config import validate
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.config import LabelConfig
from router_training.labelling.responses import StoredAsker, call_for, live_asker, models_of
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import Scored, Scoring, judge_all
from router_training.samples import Sample

BLOCK = re.compile(r'<data-([0-9a-f]{16}) name="(\w+)">\n(.*?)\n</data-\1>', re.DOTALL)
TARGET = {"kind": "compatible", "base_url": "http://127.0.0.1:9/v1"}


def config(*candidates, scoring=None, judge=True, **keys):
    content = {
        "data": {"path": "rows.jsonl"},
        "candidates": [{"id": name, "target": TARGET} for name in candidates or ("c",)],
        "scoring": scoring or {},
        **keys,
    }
    if judge:
        models = [{"id": "j", "target": {**TARGET, "model": "judge-model"}}]
        content["judge"] = {"models": models, **(judge if isinstance(judge, dict) else {})}
    return validate(LabelConfig, content, source="test")


def labelled(number=1, *, reference="Paris", dataset=None, scorers=(), images=()):
    prompt = f"Question {number}?"
    sample = Sample(f"s{number}", Query(prompt, images), reference, "g", dataset, prompt)
    return LabelSample(sample, scorers)


class Nobody:
    """An asker that nobody should ask."""

    async def ask(self, model_id, call, *, repeat=0):
        raise AssertionError("nobody is to be asked")


class Says:
    """Judges that always say the same."""

    def __init__(self, text):
        self.text = text

    async def ask(self, model_id, call, *, repeat=0):
        return Outcome("k", model_id, Status.ANSWERED, text=self.text)


def scored(settings, text="Paris", *, sample=None, asker=None, status=Status.ANSWERED):
    outcome = Outcome("k", "c", status, text=text, reason=None if text else "why")
    scoring = Scoring(settings, asker or Nobody())
    found = scoring.score(sample or labelled(), outcome, outcomes={"c": outcome})
    return asyncio.run(found)


YES, NO = '{"verdict": "yes"}', '{"verdict": "no"}'
CHEAP_FIRST = {
    "scorers": {"match": "exact", "overlap": {"kind": "overlap", "decides": "good"}},
    "default": ["match", "overlap", "judge"],
}


def test_the_first_scorer_that_decides_ends_it():
    assert scored(config(scoring=CHEAP_FIRST), "paris") == Scored("c", 1.0, by="match")


def test_what_gives_less_than_full_marks_goes_on_to_the_judge():
    found = scored(config(scoring=CHEAP_FIRST), "It is Paris.", asker=Says(YES))
    assert (found.score, found.by, found.judged.score) == (1.0, "judge", 1.0)
    found = scored(config(scoring=CHEAP_FIRST), "It is Rome.", asker=Says(NO))
    assert (found.score, found.by) == (0.0, "judge")


def test_of_the_last_scorer_every_score_stands():
    scoring = {**CHEAP_FIRST, "default": ["match", "overlap"]}
    found = scored(config(scoring=scoring, judge=False), "It is Paris")
    assert (found.score, found.by) == (0.5, "overlap")


def test_a_scorer_that_decides_both_is_final_and_one_that_cannot_tell_is_not():
    scoring = {"scorers": {"number": "numeric"}, "default": ["number", "judge"]}
    sample = labelled(reference="3")
    assert scored(config(scoring=scoring), "4", sample=sample).by == "number"
    assert scored(config(scoring=scoring), "four", sample=sample, asker=Says(NO)).by == "judge"


def test_nothing_that_decides_is_unscored_with_every_reason():
    scoring = {"scorers": {"match": "exact", "number": "numeric"}, "default": ["match", "number"]}
    found = scored(config(scoring=scoring, judge=False), "four", sample=labelled(reference="3"))
    assert found == Scored(
        "c", None, reason="no verdict: match: not full marks; number: no number is named"
    )


def test_an_unreadable_verdict_is_unscored_and_never_zero():
    found = scored(config(), asker=Says("Yes!"))
    assert found.score is None
    assert found.reason == "no verdict: judge 'j': unreadable after 3 tries"


def test_after_a_judge_without_verdict_the_next_scorer_may_decide():
    scoring = {"scorers": {"match": "exact"}, "default": ["judge", "match"]}
    assert scored(config(scoring=scoring), asker=Says("Yes!")).by == "match"


def test_a_verdict_that_is_to_come_is_waited_for():
    class Later:
        async def ask(self, model_id, call, *, repeat=0):
            return Outcome("k", model_id, Status.PENDING, reason="budget_reached")

    scoring = {"scorers": {"match": "exact"}, "default": ["judge", "match"]}
    found = scored(config(scoring=scoring), asker=Later())
    assert (found.score, found.reason) == (None, "pending: judge 'j': budget_reached")


@pytest.mark.parametrize("status", [Status.REFUSED, Status.FAILED, Status.PENDING])
def test_what_has_no_answer_is_unscored_as_it_ended(status):
    found = scored(config(), None, status=status)
    assert found == Scored("c", None, reason=f"{status.value}: why")


def test_a_samples_own_scorers_go_before_its_data_sets_and_these_before_the_default():
    scoring = {
        "scorers": {"match": "exact", "number": "numeric", "choice": "choice"},
        "default": ["match"],
        "datasets": {"maths": ["number"]},
    }
    names = Scoring(config(scoring=scoring, judge=False), Nobody()).names_for
    assert names(labelled()) == ("match",)
    assert names(labelled(dataset="other")) == ("match",)
    assert names(labelled(dataset="maths")) == ("number",)
    assert names(labelled(dataset="maths", scorers=("choice",))) == ("choice",)


@pytest.mark.parametrize("name", ["guess", "judge"])
def test_a_sample_that_asks_for_a_scorer_that_is_not_there_is_refused_by_name(name):
    settings = config(scoring=CHEAP_FIRST | {"default": ["match"]}, judge=False)
    with pytest.raises(DataError, match=rf"'s1' asks for the scorer '{name}'.*known: match, over"):
        scored(settings, sample=labelled(scorers=(name,)))


def test_a_data_set_that_no_sample_is_of_is_told(caplog):
    settings = config(
        scoring={"scorers": {"match": "exact"}, "datasets": {"Quiz": ["match"], "math": ["match"]}}
    )
    scoring = Scoring(settings, Says(YES))
    scoring.warn_of_unused()
    assert not caplog.records  # nothing was scored, so nothing is known
    scoring.names_for(labelled(dataset="quiz"))
    scoring.names_for(labelled(dataset="math"))
    scoring.warn_of_unused()
    (record,) = caplog.records
    assert "'Quiz'" in record.message and "'math', 'quiz'" in record.message


def test_the_baseline_is_found_among_the_samples_outcomes():
    settings = config("c", "base", judge={"rubric": "pairwise", "baseline": "base"})
    scoring = Scoring(settings, Says('{"winner": "tie"}'))
    mine, theirs = (Outcome("k", name, Status.ANSWERED, text=name) for name in ("c", "base"))

    async def both():
        outcomes = {"c": mine, "base": theirs}
        return [await scoring.score(labelled(), o, outcomes=outcomes) for o in (mine, theirs)]

    assert [found.score for found in asyncio.run(both())] == [0.5, 0.5]


# ------------------------------------------------------------------------------ all samples


def verdict(call):
    """Compare answer with reference, as text alone."""
    if "response_format" in call.parameters:
        return TargetStatusError("no such format", status=400, retryable=False)
    blocks = {name: text for _, name, text in BLOCK.findall(call.messages[1]["content"])}
    if blocks["answer"] == "odd":
        return "Who knows"
    return f"Verdict: {'yes' if blocks['answer'] == blocks['reference'] else 'no'}"


SAMPLES = tuple(
    labelled(n, reference=("Paris", "Rome", "none")[n % 3], scorers=()) for n in range(30)
)


def answer(sample, model_id):
    if model_id == "good":
        return sample.sample.reference
    return ("Paris", "odd")[int(sample.sample.id[1:]) % 2]


async def kept(store, settings, samples, *, without=()):
    """Keep an answer of every candidate for every sample."""
    for sample in samples:
        for candidate in settings.candidates:
            call = call_for(sample, candidate, settings.ask)
            asker = StoredAsker(store, models_of(settings))
            key = (await asker.ask(candidate.id, call)).key
            if (sample.sample.id, candidate.id) not in without:
                text = answer(sample, candidate.id)
                await store.append(Outcome(key, candidate.id, Status.ANSWERED, text=text))


def run_judge(folder, settings, samples, judge, *, keep=True, without=()):
    async def run():
        with AnswerStore.open(folder, holder="test") as store:
            if keep:
                await kept(store, settings, samples, without=without)
            stored = StoredAsker(store, models_of(settings))
            async with live_asker(settings, {"j": judge}, store) as asker:
                return await judge_all(lambda: samples, settings, stored, asker)

    return asyncio.run(run())


def all_scores(folder, settings, samples):
    """Return what is known of every cell, asking nobody."""

    async def run():
        with AnswerStore.read(folder) as store:
            asker = StoredAsker(store, models_of(settings))
            scoring = Scoring(settings, asker)
            found = {}
            for sample in samples:
                outcomes = {
                    c.id: await asker.ask(c.id, call_for(sample, c, settings.ask))
                    for c in settings.candidates
                }
                for name, outcome in outcomes.items():
                    cell = await scoring.score(sample, outcome, outcomes=outcomes)
                    found[sample.sample.id, name] = cell
            return found

    return asyncio.run(run())


def test_every_answer_is_judged_once_and_what_is_kept_tells_the_same_scores(tmp_path):
    settings = config("good", "mixed", judge={"invalid_retries": 1})
    judge = FakeTarget("j", verdict, model="judge-model")
    summary = run_judge(tmp_path, settings, SAMPLES, judge)
    assert summary.scored == {"good": 30, "mixed": 15}
    assert summary.unscored == {"mixed": 15}
    assert summary.reasons == {"no verdict: judge 'j': unreadable after 2 tries": 15}
    assert summary.by == {"judge": 45}
    assert summary.pending == 0
    probes, same_as_the_other_candidates = 2, 5
    assert judge.calls == probes + 45 - same_as_the_other_candidates + 15 * 2

    found = all_scores(tmp_path, settings, SAMPLES)
    for sample in SAMPLES:
        assert found[sample.sample.id, "good"].score == 1.0
        mixed = answer(sample, "mixed")
        expected = None if mixed == "odd" else float(mixed == sample.sample.reference)
        assert found[sample.sample.id, "mixed"].score == expected


def test_judging_anew_asks_nobody(tmp_path):
    settings = config("good", "mixed")
    first = run_judge(tmp_path, settings, SAMPLES, FakeTarget("j", verdict, model="judge-model"))
    again = FakeTarget("j", verdict, model="judge-model")
    assert run_judge(tmp_path, settings, SAMPLES, again, keep=False) == first
    assert again.calls == 0


def test_a_repeat_more_asks_only_for_itself(tmp_path):
    good = config("good")
    run_judge(tmp_path, good, SAMPLES, FakeTarget("j", verdict, model="judge-model"))
    judge = FakeTarget("j", verdict, model="judge-model")
    twice = config("good", judge={"repeats": 2})
    run_judge(tmp_path, twice, SAMPLES, judge, keep=False)
    assert judge.calls == 30


def test_a_judge_that_is_stopped_leaves_its_cells_pending(tmp_path):
    def refuse(call):
        return TargetStatusError("bad key", status=401, retryable=False, whole_target=True)

    settings = config("good")
    summary = run_judge(tmp_path, settings, SAMPLES, FakeTarget("j", refuse, model="judge-model"))
    assert summary.pending == 30
    assert summary.scored == {}
    assert all(c.score is None for c in all_scores(tmp_path, settings, SAMPLES).values())


def test_answers_that_are_not_there_are_not_judged(tmp_path):
    settings = config("good", "mixed")
    judge = FakeTarget("j", verdict, model="judge-model")
    without = {(sample.sample.id, "mixed") for sample in SAMPLES}
    summary = run_judge(tmp_path, settings, SAMPLES, judge, without=without)
    assert (summary.scored, summary.unscored) == ({"good": 30}, {})


def test_a_text_only_candidate_is_not_looked_up_for_a_picture(tmp_path):
    settings = config("good", judge={"structured": "text"})
    candidate = settings.candidates[0].model_copy(update={"modalities": ("text",)})
    settings = settings.model_copy(update={"candidates": (candidate,)})
    picture = Image(b"\x89PNG not decoded here", "image/png")
    samples = (labelled(1, images=(picture,)), labelled(2))
    judge = FakeTarget("j", verdict, model="judge-model")
    summary = run_judge(tmp_path, settings, samples, judge)
    assert summary.scored == {"good": 1}


def test_a_bad_sample_ends_judging_with_its_error(tmp_path):
    settings = config("good")
    samples = (labelled(1), labelled(2, scorers=("guess",)))
    with pytest.raises(DataError, match="'s2' asks for the scorer 'guess'"):
        run_judge(tmp_path, settings, samples, FakeTarget("j", verdict, model="judge-model"))


def test_no_more_samples_are_read_than_the_judges_need(tmp_path):
    settings = config("good", judge={"structured": "text"})
    ahead = []
    judge = FakeTarget("j", lambda call: ahead.append(read[0] - len(ahead)) or verdict(call))
    judge.model = "judge-model"
    read = [0]

    def samples():
        for n in range(300):
            read[0] += 1
            yield labelled(n)

    async def run():
        with AnswerStore.open(tmp_path, holder="test") as store:
            await kept(store, settings, list(samples()))
            read[0] = 0
            stored = StoredAsker(store, models_of(settings))
            async with live_asker(settings, {"j": judge}, store) as asker:
                return await judge_all(samples, settings, stored, asker)

    assert asyncio.run(run()).scored == {"good": 300}
    assert max(ahead) <= 2 * settings.judge.models[0].target.max_concurrency + 1


# ------------------------------------------------------------------------------ over HTTP


@pytest.fixture(scope="module")
def simulator():
    pytest.importorskip("starlette")
    from router_runtime.simulator.config import SimulatorConfig
    from router_runtime.simulator.serve import SimulatorServer

    judges = {
        name: {"role": "judge", "judge": {"accuracy": 1.0}, "response_formats": formats}
        for name, formats in (
            ("schema", ["json_schema", "json_object"]),
            ("object", ["json_object"]),
            ("plain", []),
        )
    }
    for judge in judges.values():
        judge |= {"modalities": ["text", "image"], "latency": {"median_s": 0.001}}
    with SimulatorServer(SimulatorConfig(models=judges)) as server:
        yield server.base_url


@pytest.mark.parametrize("name", ["schema", "object", "plain"])
@pytest.mark.parametrize("rubric", ["correctness", "quality", "pairwise"])
def test_endpoints_with_and_without_structured_replies_judge_alike(
    tmp_path, simulator, name, rubric
):
    from router_runtime.targets.registry import build_target

    target = {"kind": "compatible", "base_url": simulator, "model": name}
    judge = {"models": [{"id": "j", "target": target}], "rubric": rubric}
    settings = config(
        "good", "bad", judge=judge | ({"baseline": "bad"} if rubric == "pairwise" else {})
    )
    picture = Image(b"\x89PNG\r\n\x1a\n not decoded here", "image/png")
    sample = labelled(1, reference="Lisbon", images=(picture,))
    texts = {"good": "It is Lisbon.", "bad": "It is Oslo."}
    outcomes = {n: Outcome("k", n, Status.ANSWERED, text=text) for n, text in texts.items()}

    async def run():
        with AnswerStore.open(tmp_path, holder="test") as store:
            built = build_target("j", settings.judge.models[0].target)
            async with live_asker(settings, {"j": built}, store) as asker:
                scoring = Scoring(settings, asker)
                return [
                    await scoring.score(sample, o, outcomes=outcomes) for o in outcomes.values()
                ]

    good, bad = asyncio.run(run())
    assert (good.reason, bad.reason) == (None, None)
    if rubric == "correctness":
        assert (good.score, bad.score) == (1.0, 0.0)
    elif rubric == "quality":  # without a reference the simulator has an answer of its own
        assert 0 <= good.score <= 1 and 0 <= bad.score <= 1
    else:
        assert bad.score == 0.5 and good.score in (0.5, 1.0)
    assert good.judged.explanation
