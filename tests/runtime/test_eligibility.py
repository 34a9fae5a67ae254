from __future__ import annotations

from router_runtime.eligibility import (
    NO_IMAGE,
    NO_JSON,
    NO_TOOLS,
    NOT_CONFIGURED,
    TOO_LONG,
    Capabilities,
    find_eligible,
)
from router_runtime.types import Image, Modality, Query, Requirements

PICTURE = Image(b"x", "image/png")
TEXT_ONLY = Capabilities(modalities=frozenset({Modality.TEXT}))
ANYTHING = Capabilities()


def test_a_text_model_is_not_asked_about_a_picture():
    found = find_eligible([Query("hi"), Query("see", (PICTURE,))], [TEXT_ONLY, ANYTHING])
    assert found.mask.tolist() == [[True, True], [False, True]]
    assert found.reason(1, 0) == NO_IMAGE
    assert found.reason(0, 0) == ""


def test_a_picture_without_text_needs_no_text_model():
    image_only = Capabilities(modalities=frozenset({Modality.IMAGE}))
    found = find_eligible([Query("", (PICTURE,)), Query("hi")], [image_only])
    assert found.mask.tolist() == [[True], [False]]


def test_the_context_window_counts_prompt_and_answer():
    window = Capabilities(context_window=1000)
    short = Query("x" * 3600)  # 900 tokens
    capped = Query("x" * 3600, requirements=Requirements(max_output_tokens=200))
    long_history = Query("x", prompt_chars=8000)
    found = find_eligible([short, capped, long_history], [window, ANYTHING])
    assert found.mask[:, 0].tolist() == [True, False, False]
    assert found.mask[:, 1].all()
    assert found.reason(1, 0) == TOO_LONG


def test_tools_and_json_mode_are_hard_needs():
    plain = Capabilities(tools=False, json_mode=False)
    needs = [Query("a", requirements=Requirements(tools=True))]
    needs.append(Query("a", requirements=Requirements(json_mode=True)))
    found = find_eligible(needs, [plain])
    assert [found.reason(0, 0), found.reason(1, 0)] == [NO_TOOLS, NO_JSON]


def test_blocked_and_excluded_candidates_keep_their_reason():
    blocked = Capabilities(blocked=NOT_CONFIGURED)
    found = find_eligible([Query("a")], [blocked, ANYTHING, ANYTHING], excluded={1: "unhealthy"})
    assert found.mask.tolist() == [[False, False, True]]
    assert [found.reason(0, column) for column in range(3)] == [NOT_CONFIGURED, "unhealthy", ""]


def test_no_query_gives_no_row():
    assert find_eligible([], [ANYTHING, TEXT_ONLY]).mask.shape == (0, 2)
