from __future__ import annotations

import pytest

from router_runtime.simulator.config import SimulatedModelConfig, TopicConfig
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.known import KnownAnswer, KnownAnswers
from router_runtime.simulator.skills import answer, find_or_make_up, says, success_chance

NOTHING = KnownAnswers()


def answers(right, skill, n=400, known=NOTHING, topic="t"):
    model = SimulatedModelConfig(skills={topic: skill})
    return [answer(right, model, known, draws=Draws.of("skills", at)) for at in range(n)]


def test_the_chance_falls_from_the_easy_to_the_hard_end():
    assert success_chance((0.9, 0.1), 0.5) == pytest.approx(0.5)
    assert success_chance((0.9, 0.1), 0.0) == pytest.approx(0.9, abs=0.01)
    assert success_chance((0.9, 0.1), 1.0) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_the_share_of_good_answers_is_the_skill(difficulty):
    said = answers(KnownAnswer("42", "t", difficulty), (0.9, 0.3), n=3000)
    share = sum(each.good for each in said) / len(said)
    assert share == pytest.approx(success_chance((0.9, 0.3), difficulty), abs=0.03)


def test_another_topic_has_the_default_skill():
    model = SimulatedModelConfig(skills={"t": (0, 0)}, default_skill=(1, 1))
    other = answer(KnownAnswer("5", "u", 0.5), model, NOTHING, draws=Draws.of("x"))
    same = answer(KnownAnswer("5", "t", 0.5), model, NOTHING, draws=Draws.of("x"))
    assert other.good and not same.good


@pytest.mark.parametrize(
    "text", ["42", "-7", "0", "9.95", "-0.05", "B", "the copper lantern", "It is about a river."]
)
def test_good_answers_say_what_is_right_and_bad_ones_do_not(text):
    known = KnownAnswers(by_topic={"t": [text, "the silver bridge", "a longer other answer"]})
    right = KnownAnswer(text, "t", 0.5)
    assert all(says(each.text, text) for each in answers(right, (1, 1), known=known))
    wrong = {each.text for each in answers(right, (0, 0), known=known)}
    assert not any(says(each, text) for each in wrong)
    assert len(wrong) > 5


def test_containing_means_whole_words_and_whole_numbers():
    assert says("The answer is 42.", "42") and says("THE Copper\nlantern!", "the copper lantern")
    assert not says("The answer is 142.", "42") and not says("It is -42.", "42")
    assert not says("42.5 it is", "42") and not says("anything", "") and not says("x", "?")


def test_unknown_prompts_get_an_answer_that_all_models_share():
    topics = {"code": TopicConfig(match="Python"), "late": TopicConfig(match=".")}

    def made_up(prompt, seed=0, pictures=()):
        return find_or_make_up(prompt, pictures, known=NOTHING, topics=topics, seed=seed)

    assert made_up("Write Python.") == made_up("Write Python.")
    assert made_up("Write Python.").topic == "code" and made_up("Hello").topic == "late"
    texts = {made_up("Hi").text, made_up("Hi", 1).text, made_up("Hi", pictures=("a",)).text}
    assert len(texts) == 3
    assert find_or_make_up("\n", (), known=NOTHING, topics=topics, seed=0).topic == "other"
