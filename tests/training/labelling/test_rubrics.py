import json
import re

import pytest

from router_runtime.errors import ConfigError
from router_runtime.types import Image
from router_training.labelling.rubrics import (
    BUILT_IN,
    JudgeData,
    Rubric,
    judge_call,
    load,
    parse_template,
)

TEXTS = {
    "prompt": "How high is it?",
    "reference": "330 m",
    "answer": "It is 330 metres.",
    "answer_a": "It is 330 metres.",
    "answer_b": "No idea.",
}
PICTURE = Image(b"\x89PNG not decoded here", "image/png")
BLOCK = re.compile(r'<data-([0-9a-f]{16}) name="(\w+)">\n(.*?)\n</data-\1>', re.DOTALL)


def call(rubric, mode="text", parameters=None, **data):
    return judge_call(
        rubric, JudgeData(**{"texts": TEXTS, **data}), mode=mode, parameters=parameters or {}
    )


def said(made):
    """Return the user message's text, without pictures."""
    content = made.messages[1]["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


@pytest.mark.parametrize(
    ("name", "verdict", "fields"),
    [
        ("correctness", "yes_no", {"prompt", "pictures", "reference", "answer"}),
        ("quality", "score", {"prompt", "pictures", "answer"}),
        ("pairwise", "winner", {"prompt", "pictures", "answer_a", "answer_b"}),
    ],
)
def test_the_packages_templates_are_there(name, verdict, fields):
    rubric = load(name)
    assert (rubric.name, rubric.version, rubric.verdict) == (name, 1, verdict)
    assert rubric.needs == fields
    assert len(rubric.digest) == 64


def test_every_placeholder_becomes_a_block_of_its_text():
    for name in BUILT_IN:
        rubric = load(name)
        blocks = BLOCK.findall(said(call(rubric)))
        assert {field: text for _, field, text in blocks} == {
            field: TEXTS[field] for field in rubric.needs - {"pictures"}
        }
        assert len({nonce for nonce, _, _ in blocks}) == 1


def test_a_call_is_a_system_and_a_user_message_that_ends_with_how_to_reply():
    made = call(load("correctness"))
    assert [message["role"] for message in made.messages] == ["system", "user"]
    assert said(made).endswith("your verdict: 'Verdict: yes' or 'Verdict: no'.")
    assert "Pictures" not in said(made)
    assert "Its pictures:\nnone\n" in said(made)
    assert said(call(load("quality"))).endswith("'Verdict: 1' to 'Verdict: 10', a whole number.")
    assert said(call(load("pairwise"), "json_object")).endswith('"winner": "A" or "B" or "tie"}')


def test_the_mode_decides_the_response_format_whatever_parameters_say():
    rubric = load("quality")
    own = {"temperature": 0, "response_format": {"type": "text"}}
    schema = call(rubric, "json_schema", own).parameters["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["score"]["enum"] == list(range(1, 11))
    assert schema["schema"]["required"] == ["explanation", "score"]
    assert call(rubric, "json_object", own).parameters == {
        "temperature": 0,
        "response_format": {"type": "json_object"},
    }
    assert call(rubric, "text", own).parameters == {"temperature": 0}


def test_pictures_stand_in_their_block_as_data_uris():
    content = call(load("correctness"), pictures=(PICTURE, PICTURE)).messages[1]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "text"]
    assert re.search(r'<data-[0-9a-f]{16} name="pictures">\n$', content[0]["text"])
    assert content[3]["text"].startswith("\n</data-")
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_judge_that_may_not_see_pictures_is_told_how_many_there_are():
    made = call(load("correctness"), pictures=(PICTURE, PICTURE), show=False)
    assert "Its pictures:\n2, not shown\n" in made.messages[1]["content"]


def test_equal_data_makes_equal_calls_and_other_data_another_nonce():
    rubric = load("correctness")
    assert call(rubric, pictures=(PICTURE,)) == call(rubric, pictures=(PICTURE,))
    other = Image(b"another", "image/png")
    nonces = {
        BLOCK.search(said(made))[1]
        for made in (
            call(rubric),
            call(rubric, pictures=(PICTURE,)),
            call(rubric, pictures=(other,)),
            call(rubric, texts={**TEXTS, "answer": "330"}),
        )
    }
    assert len(nonces) == 4


def test_a_digest_that_stands_in_the_data_is_taken_again(monkeypatch):
    from router_training.labelling import rubrics

    monkeypatch.setattr(rubrics, "NONCE_DIGITS", 1)  # one digit is in most texts
    held = "every digit but one: 0123456789abcde"
    made = said(call(load("correctness"), texts={**TEXTS, "answer": held}))
    assert '<data-f name="answer">' in made


def test_placeholders_within_data_are_text():
    answer = "{{reference}} {{prompt}} {{pictures}} {{x}}"
    made = said(call(load("correctness"), texts={**TEXTS, "answer": answer}))
    assert {name: text for _, name, text in BLOCK.findall(made)}["answer"] == answer
    assert made.count(TEXTS["reference"]) == 1


def test_half_of_a_surrogate_pair_breaks_nothing():
    made = call(load("correctness"), texts={**TEXTS, "answer": "\ud83d"})
    assert "\ud83d" in said(made)


CUSTOM = """---
name: terse
version: 3
verdict: score
scale: [0, 5]
---

[system]
Grade it.

[user]
{{prompt}} {{answer}}
"""


def test_a_file_makes_a_rubric_of_its_own(tmp_path):
    path = tmp_path / "terse.md"
    path.write_bytes(b"\xef\xbb\xbf" + CUSTOM.replace("\n", "\r\n").encode())
    rubric = load(str(path))
    assert rubric == Rubric("terse", 3, "score", "Grade it.", "{{prompt}} {{answer}}", (0, 5))
    assert rubric.values == (0, 1, 2, 3, 4, 5)


def test_every_part_of_a_template_is_in_its_digest():
    digests = {
        parse_template(CUSTOM.replace(old, new), source="t").digest
        for old, new in (
            ("", ""),
            ("terse", "long"),
            ("version: 3", "version: 4"),
            ("[0, 5]", "[0, 6]"),
            ("Grade it", "Mark it"),
            ("{{prompt}} {{answer}}", "{{answer}}"),
        )
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[user]", "user", "a rubric is '---', YAML, '---'"),
        ("version: 3", "version: [", "t: not valid YAML"),
        ("version: 3", "version: 0", "version"),
        ("version: 3", "colour: red", "colour"),
        ("verdict: score", "verdict: yes_no", "go together"),
        ("scale: [0, 5]\n", "", "go together"),
        ("[0, 5]", "[5, 0]", "'scale' must rise by 1 to 100"),
        ("[0, 5]", "[0, 500]", "'scale' must rise by 1 to 100"),
        ("{{prompt}}", "{{promt}}", "there is no placeholder {{promt}} (known: prompt, "),
        ("{{prompt}}", "{{answer}}", "{{answer}} stands twice"),
        ("{{answer}}", "{{answer_a}}", "takes exactly {{answer}}"),
        ("{{answer}}", "the answer", "takes exactly {{answer}}"),
        ("Grade it", "Grade {{answer}}", "[system] has one"),
    ],
)
def test_a_broken_template_is_refused_with_what_is_wrong(old, new, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_template(CUSTOM.replace(old, new), source="t")


def test_a_missing_file_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="'corectness' is neither one of correctness, quality"):
        load("corectness")


def test_calls_are_plain_json():
    made = call(load("pairwise"), "json_schema", pictures=(PICTURE,))
    json.dumps([list(made.messages), dict(made.parameters)])
