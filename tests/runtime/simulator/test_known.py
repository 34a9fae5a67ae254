from __future__ import annotations

import pytest

from router_runtime.errors import ConfigError, DataError
from router_runtime.simulator.known import KnownAnswer, answer_line, read_answers, text_digest

A = "a" * 64
B = "b" * 64


def read(folder, *lines):
    (folder / "answers.jsonl").write_text("".join(lines))
    return read_answers(folder / "answers.jsonl")


def test_what_is_written_is_found_again(tmp_path):
    sum_, chart = KnownAnswer("5", "arithmetic", 0.1, 12.0), KnownAnswer("7", "chart", 0.9)
    known = read(
        tmp_path,
        answer_line("What is 2 + 3?", sum_),
        "\n",
        answer_line("Read A.", chart, images_sha256=[A]),
    )
    assert known.find("  What is 2 + 3?\n", []) == sum_
    assert known.find("Read A.", [A]) == chart
    assert known.by_topic == {"arithmetic": ["5"], "chart": ["7"]}


def test_pictures_and_their_order_belong_to_the_prompt(tmp_path):
    line = answer_line("Compare.", KnownAnswer("left", "t", 0.5), images_sha256=[A, B])
    known = read(tmp_path, line)
    assert known.find("Compare.", [A, B])
    assert not any(known.find("Compare.", other) for other in ([], [A], [B, A]))


def test_a_prompt_may_be_given_by_its_digest_alone(tmp_path):
    line = f'{{"prompt_sha256": "{text_digest("Hush")}", "answer": "x", "topic": "t"}}\n'
    assert read(tmp_path, line).find("Hush", []).text == "x"


def test_of_two_answers_to_one_prompt_the_first_counts(tmp_path):
    lines = [answer_line("Q", KnownAnswer(text, "t", 0.5)) for text in ("first", "second")]
    assert read(tmp_path, *lines).find("Q", []).text == "first"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "row 2"),
        ('{"prompt": "q", "topic": "t"}', "field 'answer'"),
        ('{"answer": "a", "topic": "t"}', "prompt_sha256"),
        ('{"prompt": "q", "answer": "a", "topic": "t", "difficulty": 2}', "difficulty"),
        ('{"prompt": "q", "answer": "a", "topic": "t", "images_sha256": ["x"]}', "images_sha256"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_not_shown(tmp_path, line, said):
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, answer_line("Q", KnownAnswer("a", "t", 0.5)), line + "\n")
    assert "answers.jsonl" in str(caught.value)


def test_a_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(ConfigError, match=r"router-train simulate .* --unlabelled"):
        read_answers(tmp_path / "none.jsonl")
