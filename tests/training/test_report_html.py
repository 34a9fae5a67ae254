from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace

import pytest

from router_training.report_examples import Example
from router_training.report_html import render_html, write_html
from router_training.thumbnails import Thumbnail

PROMPT = "the prompt: <script>alert('x')</script>\n   keeps   spaces & {{ 7 * 7 }}"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "]]></style><b>",
]


def example(**fields):
    return Example(
        **{
            "title": "Record <b>7</b>",
            "facts": {"chosen": "a & <i>b</i>"},
            "prompt": PROMPT,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def page(small_report):
    return render_html(small_report, title="Report <1>", facts={"made": "2026-11-20 <now>"})


def policy_of(page):
    content = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    return html.unescape(content)


def test_the_page_loads_nothing(page):
    assert not re.search(r"""(?:src|href|action|data|srcset)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.search(r"@import|url\((?!#)", page)
    for absent in ("<script", "<link", "<iframe", "<object", "<form", "<base", "http://", "https:"):
        assert absent not in page


def test_the_policy_allows_the_one_style_element_and_data_pictures_only(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy_of(page) == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert page.count("<style") == 1
    assert 'style="' not in page


def test_what_is_shown_is_escaped(make_report):
    report = make_report(names=HOSTILE, queries=60)
    text = render_html(report, title=HOSTILE[0], facts={"x": HOSTILE[1]}, examples=[example()])
    body = text.split("</style>", 1)[1]
    for tag in ("<script", "<img src=x", "<b>7", "<i>b", "</style>"):
        assert tag not in body
    assert "{{ 7 * 7 }}" in text and "49{%" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_prompt_keeps_its_spaces_and_lines(small_report):
    text = render_html(small_report, examples=[example(prompt="\n  two\n   three")])
    assert '<pre class="prompt" dir="auto">\n\n  two\n   three</pre>' in text


def test_without_examples_no_prompt_is_in_the_page_and_with_them_it_says_so(small_report, page):
    picture = Thumbnail("data:image/png;base64,AAAA", 20, 10)
    shown = render_html(small_report, examples=[example(pictures=(picture,), notes=("a note",))])
    assert "the prompt:" in shown
    assert "This page holds prompts and pictures" in shown
    assert '<img src="data:image/png;base64,AAAA" width="20" height="10" alt="Picture 1' in shown
    assert "a note" in shown
    for absent in ("the prompt:", "This page holds", "<img", "Worst regrets"):
        assert absent not in page


def test_equal_arguments_give_equal_bytes(small_report):
    first, second = (render_html(small_report, examples=[example()]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("which", ["small_report", "large_report"])
def test_every_part_is_there(which, request):
    report = request.getfixturevalue(which)
    text = render_html(report)
    for heading in ("Cost and quality", "What to expect", "Where it fails", "Slices", "Models"):
        assert f">{heading}</h2>" in text
    for model in report.models:
        assert html.escape(model.model_id) in text
    assert text.count("<svg ") == 5
    assert text.count('role="img" aria-label="') == 5
    assert "lambda_per_usd: 40.0" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_unknown_costs_leave_no_curve_and_no_number(make_report):
    text = render_html(make_report(3, costs="unknown", queries=60))
    assert "No cost is known, so there is no curve." in text
    assert ">nan<" not in text.lower()


def test_without_curve_figures_the_page_promises_no_second_table(make_report):
    text = render_html(make_report(1, costs="unknown", queries=60))
    assert "Read off the test curves" not in text
    assert "second table" not in text


def test_the_figure_says_where_models_are_drawn_on_other_queries(small_report):
    first, *others = small_report.strategies
    assert first.kind == "model"
    partly = replace(first, outcome=replace(first.outcome, n_unserved=3))
    report = replace(small_report, strategies=(partly, *others))
    words = "is drawn by the others alone"
    assert words in render_html(report)
    assert words not in render_html(small_report)


def test_half_a_character_does_not_stop_the_page(small_report, tmp_path):
    page = render_html(small_report, examples=[example(prompt="half \ud83d of a pair")])
    write_html(page, tmp_path / "x" / "report.html")
    assert "half ? of a pair" in (tmp_path / "x" / "report.html").read_text(encoding="utf-8")


def test_durations_are_shown_where_some_are_known(page, small_report):
    assert "median s" not in page
    first, *others = small_report.models
    timed = replace(small_report, models=(replace(first, median_seconds=1.25), *others))
    assert "<td>1.250</td></tr>" in render_html(timed)
