from __future__ import annotations

import base64
from io import BytesIO

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import QueryError
from router_runtime.messages import (
    TextRule,
    query_from_messages,
    query_from_prompt,
    request_requirements,
)
from router_runtime.types import Query, Requirements


def png(colour):
    buffer = BytesIO()
    PIL.Image.new("RGB", (2, 2), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def uri(colour):
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


def user(content):
    return {"role": "user", "content": content}


def text_of(*messages, **rule):
    return query_from_messages(messages, rule=TextRule(**rule)).text


def colours(query):
    return [PIL.Image.open(BytesIO(image.data)).getpixel((0, 0)) for image in query.images]


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_one_user_turn_is_routed_on_as_it_stands():
    assert query_from_messages([user("Hi there")]) == Query("Hi there", prompt_chars=8)


def test_a_prompt_is_one_user_turn():
    assert query_from_prompt("Hi", [png("red")]) == query_from_messages(
        [user([{"type": "image_url", "image_url": {"url": uri("red")}}, "Hi"])]
    )


def test_the_parts_stand_in_order_system_context_question():
    text = text_of(
        {"role": "system", "content": "Be kind."},
        user("one"),
        {"role": "assistant", "content": "two"},
        user("three"),
    )
    assert text == "Be kind.\n\none\n\ntwo\n\nthree"


def test_developer_is_another_name_of_system():
    assert text_of({"role": "developer", "content": "abcdef"}, user("q"), system_chars=3) == (
        "abc\n\nq"
    )


def test_context_is_kept_newest_first_and_the_crossing_turn_keeps_its_end():
    turns = [user("aaaa"), user("bbbb"), user("cccc"), user("q")]
    assert text_of(*turns, context_chars=6) == "bb\n\ncccc\n\nq"
    assert text_of(*turns, context_chars=0) == "q"


def test_a_long_system_prompt_cannot_hide_the_question():
    # LLM Router v2 joined from the start and cut at its encoder's 77 tokens.
    system = {"role": "system", "content": "rule " * 2000}
    first, second = (text_of(system, user(q)) for q in ("What is 2+2?", "Write a sonnet."))
    assert first != second
    assert first.endswith("What is 2+2?")


def test_the_last_user_turn_is_never_cut_and_stands_last_even_before_tool_turns():
    question = "q" * 10_000
    text = text_of(
        user(question),
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "42"},
        context_chars=10,
    )
    assert text == "42\n\n" + question


def test_prompt_chars_count_everything_including_tool_calls():
    call = {"function": {"name": "add", "arguments": "{1}"}}
    query = query_from_messages(
        [
            {"role": "system", "content": "s" * 1000},
            user("h" * 3000),
            {"role": "assistant", "tool_calls": [call]},
            user("q"),
        ]
    )
    assert query.prompt_chars == 1000 + 3000 + 6 + 1


def test_all_pictures_of_the_whole_conversation_count_in_order():
    query = query_from_messages(
        [
            user([{"type": "image_url", "image_url": {"url": uri("red")}}, "first"]),
            {"role": "assistant", "content": "ok"},
            user(
                [
                    {"type": "image_url", "image_url": uri("blue")},
                    {"type": "input_text", "text": "second"},
                    {"type": "input_image", "image_url": uri("lime")},
                    {"type": "image", "image": png("red")},
                    {"type": "image", "source": {"type": "base64", "data": uri("blue")[22:]}},
                ]
            ),
        ]
    )
    assert colours(query) == [RED, BLUE, LIME, RED, BLUE]


def test_placeholders_take_the_separate_column_in_order():
    turns = [
        user([{"type": "image"}, {"type": "text", "text": "a"}]),
        user([{"type": "image", "image": png("lime")}, {"type": "image"}]),
    ]
    query = query_from_messages(turns, images=[png("red"), png("blue")])
    assert colours(query) == [RED, LIME, BLUE]


def test_a_separate_column_without_placeholders_is_added():
    assert colours(query_from_messages([user("a")], images=[png("red"), png("blue")])) == [
        RED,
        BLUE,
    ]


@pytest.mark.parametrize("count", [0, 2])
def test_placeholders_and_column_must_agree(count):
    with pytest.raises(QueryError, match=f"1 picture placeholders .* {count} pictures"):
        query_from_messages([user([{"type": "image"}])], images=[png("red")] * count)


@pytest.mark.parametrize("prompt", ["cat.png", "What is in cat.png", "https://example.org/a.png"])
def test_a_prompt_that_looks_like_a_path_or_url_stays_text(prompt, tmp_path, monkeypatch):
    # LLM Router v2 opened a prompt that ended in .png.
    (tmp_path / "cat.png").write_bytes(png("red"))
    monkeypatch.chdir(tmp_path)
    query = query_from_prompt(prompt, allow_paths=True)
    assert (query.text, query.images) == (prompt, ())


def test_a_remote_picture_is_refused_with_the_remedy():
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(QueryError, match=r"not fetched.*data URI"):
        query_from_messages([user([part])])


def test_a_path_is_refused_unless_allowed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    part = {"type": "image_url", "image_url": {"url": str(path)}}
    with pytest.raises(QueryError):
        query_from_messages([user([part])])
    assert colours(query_from_messages([user([part])], allow_paths=True)) == [RED]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ("Hi", "list"),
        ({"role": "user"}, "list"),
        (["Hi"], r"messages\[0\] is str"),
        ([{"content": "Hi"}], "role is None"),
        ([{"role": "robot", "content": "Hi"}], "robot"),
        ([{"role": ["user"], "content": "Hi"}], "role"),
        ([user(None)], "content is missing"),
        ([user(3)], "int"),
        ([user({"type": "text"})], "list"),
        ([user([3])], "type None"),
        ([user([{"type": "input_audio"}])], "input_audio"),
        ([user([{"type": "text"}])], "without its text"),
        ([user([{"type": "image_url"}])], "without its picture"),
        ([user([{"type": "image_url", "image_url": {}}])], "dict"),
        ([user("  ")], "neither text nor a picture"),
        ([user("")], "neither text nor a picture"),
    ],
)
def test_other_shapes_are_refused_by_place(messages, words):
    with pytest.raises(QueryError, match=words):
        query_from_messages(messages)


@pytest.mark.parametrize(("prompt", "images"), [(None, ()), ("a", png("red")), ("a", "x.png")])
def test_a_prompt_is_text_and_images_a_list(prompt, images):
    with pytest.raises(QueryError):
        query_from_prompt(prompt, images)


def test_a_picture_alone_is_enough():
    query = query_from_prompt("", [png("red")])
    assert (query.text, len(query.images)) == ("", 1)


def test_a_system_prompt_alone_is_the_question_and_whole():
    assert text_of({"role": "system", "content": "S" * 500}, system_chars=0) == "S" * 500


def test_a_refusal_of_an_assistant_turn_is_its_text():
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert text_of(user("Do it"), refused, user("Why?")) == "Do it\n\nI cannot.\n\nWhy?"


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "12345"}}]},
        {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "12345"}}]},
        {"function_call": {"name": "f", "arguments": "12345"}},
    ],
)
def test_calls_of_every_kind_count_as_characters(calls):
    query = query_from_messages([user("Hi"), {"role": "assistant", "content": None} | calls])
    assert (query.text, query.prompt_chars) == ("Hi", 8)


def test_a_conversation_without_user_turn_is_routed_on_its_context():
    assert text_of({"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}) == (
        "s\n\na"
    )


def test_lone_surrogates_become_question_marks():
    assert query_from_prompt("a\ud800b").text == "a?b"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Requirements()),
        ({"tools": [{}]}, Requirements(tools=True)),
        ({"functions": [{}]}, Requirements(tools=True)),
        ({"tools": [{}], "tool_choice": "none"}, Requirements()),
        ({"tools": []}, Requirements()),
        ({"response_format": {"type": "json_schema"}}, Requirements(json_mode=True)),
        ({"response_format": {"type": "text"}}, Requirements()),
        ({"max_tokens": 5}, Requirements(max_output_tokens=5)),
        ({"max_tokens": 5, "max_completion_tokens": 7}, Requirements(max_output_tokens=7)),
        ({"max_tokens": None}, Requirements()),
    ],
)
def test_requirements_are_read_from_the_body(body, expected):
    assert request_requirements(body) == expected


@pytest.mark.parametrize(
    "body", [{"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "5"}, {"response_format": 1}]
)
def test_malformed_requirements_are_query_errors(body):
    with pytest.raises(QueryError):
        request_requirements(body)


turn = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(min_size=1, max_size=40),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(turn, max_size=6), st.text("abc", min_size=1), st.integers(0, 60))
def test_the_text_ends_with_the_question_and_stays_within_the_budgets(turns, question, budget):
    rule = TextRule(context_chars=budget, system_chars=10)
    query = query_from_messages([*turns, user(question)], rule=rule)
    assert query.text.endswith(question)
    separators = 2 * (len(turns) + 1)
    assert len(query.text) <= 10 + budget + separators + len(question)
    assert query.prompt_chars == sum(len(t["content"]) for t in turns) + len(question)
