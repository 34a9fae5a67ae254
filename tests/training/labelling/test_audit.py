from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter

import PIL.Image
import pytest
from markupsafe import escape

from router_runtime.errors import DataError
from router_runtime.types import Image, Query
from router_training.labelling import audit
from router_training.labelling.audit import draw, entry_of, render_page, table
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.cells import Cell, SampleCells
from router_training.labelling.judge import Judged, Vote
from router_training.labelling.marks import read_marks
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import Scored
from router_training.samples import Sample

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>document.title = 'RUN'</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def picture(side=900) -> Image:
    stream = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((side, side // 2)).save(stream, format="PNG")
    return Image(stream.getvalue(), "image/png")


def row_of(name, *cells, prompt="What is it?", images=(), reference="a cat") -> SampleCells:
    query = Query(prompt, tuple(images))
    sample = Sample(str(name), query, reference, "g", "animals", prompt)
    return SampleCells(LabelSample(sample), cells)


def cell(model="m", score=1.0, *, text="It is a cat.", explanation="Same.", patterns=()) -> Cell:
    verdict = None if score is None else "yes" if score else "no"
    reason = "no verdict: judge 'j': unreadable" if score is None else None
    vote = Vote("j", 0, "", score, verdict, explanation, reason=None if score is not None else "?")
    judged = Judged(score, reason, explanation, (vote,), tuple(patterns))
    outcome = Outcome("key", model, Status.ANSWERED, text=text)
    by = "" if score is None else "judge"
    return Cell(model, outcome, Scored(model, score, by, reason, judged), reason)


def unanswered(model="m") -> Cell:
    outcome = Outcome("key", model, Status.REFUSED, reason="HTTP 400")
    return Cell(model, outcome, Scored(model, None, "", "refused: HTTP 400"), "refused: HTTP 400")


def rows(n=200):
    """Many right answers of one model, few wrong or unjudged ones, and another model."""
    for at in range(n):
        score = None if at % 40 == 0 else 0.0 if at % 20 == 1 else 1.0
        yield row_of(at, cell("m", score), unanswered("x") if at % 2 else cell("x", 1.0))


def drawn(found, wanted=40, seed=0):
    by_place = draw(found, rows=wanted, seed=seed)
    return {(place, model) for place, models in by_place.items() for model in models}


def test_rare_kinds_are_drawn_before_common_ones():
    cells = {(at, c.model_id): c for at, row in enumerate(rows()) for c in row.cells}
    kinds = Counter(cells[one].stratum for one in drawn(rows()))
    # 5 answers without a verdict and 10 wrong ones are all taken; the two other kinds share.
    assert kinds[("m", "none")] == 5
    assert kinds[("m", "no")] == 10
    assert kinds[("m", "yes")] + kinds[("x", "yes")] == 25
    assert abs(kinds[("m", "yes")] - kinds[("x", "yes")]) <= 1
    assert all(cells[one].answer is not None for one in drawn(rows()))


def test_the_seed_draws_and_later_answers_replace_few():
    assert drawn(rows()) == drawn(rows())
    assert drawn(rows()) != drawn(rows(), seed=1)
    assert len(drawn(rows(200)) & drawn(rows(210))) >= 30


def test_fewer_answers_than_wanted_are_all_taken():
    assert len(drawn(rows(10), wanted=100)) == 15
    assert drawn([], wanted=3) == set()


def test_the_table_opens_in_a_spreadsheet_and_its_marks_come_back(tmp_path):
    entries = [
        entry_of(row, row.cells[0])
        for row in (row_of("=1+1", cell("-m", text='=HYPERLINK("http://x")')), row_of(7, cell("m")))
    ]
    data = table(entries)
    lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert list(lines[0])[:3] == ["id", "model", "human"]
    assert lines[0]["answer"] == '\'=HYPERLINK("http://x")'
    assert (lines[1]["score"], lines[1]["decided_by"]) == ("1", "judge")
    assert lines[1]["verdicts"] == "j: yes"
    assert not any(value[:1] in "=+-@" for line in lines for value in line.values() if value)
    filled = data.decode("utf-8-sig").replace("'=1+1,'-m,,", "'=1+1,'-m,no,")
    (tmp_path / "audit.csv").write_text(filled)
    assert dict(read_marks(tmp_path / "audit.csv").scores) == {("=1+1", "-m"): 0.0}


def policy_of(page):
    return html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.fixture(scope="module")
def page():
    hostile = row_of(
        HOSTILE,
        cell(HOSTILE, 0.0, text=HOSTILE, explanation=HOSTILE, patterns=["override"]),
        prompt=HOSTILE,
        reference=HOSTILE,
    )
    shown = row_of("7", cell("m"), cell("n", None), images=[picture()])
    return render_page(
        [entry_of(hostile, hostile.cells[0]), *(entry_of(shown, c) for c in shown.cells)]
    )


def test_the_page_allows_its_own_style_and_script_and_nothing_else(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = policy_of(page)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; script-src "
        f"'sha256-{digest(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    for absent in ("<link", "<iframe", "<object", "<form", "<base", "http://", "https:", "fetch("):
        assert absent not in page


def test_nothing_of_the_data_is_markup(page):
    assert "<img src=x" not in page
    assert html.escape("<img src=x onerror=alert(1)>") in page
    assert page.count("<script>") == 1
    assert "49" not in re.sub(r"base64,[^\"]+|sha256-[^']+", "", page.split("<main")[1])


def test_an_entry_shows_all_that_is_needed_to_judge_and_the_verdict_last(page):
    entry = page.split('<article class="entry"')[2]
    order = ["What is it?", "a cat", "It is a cat.", "<details>", "j: yes", "Same.", 'value="yes"']
    places = [entry.index(text) for text in order]
    assert places == sorted(places)
    assert 'data-id="7" data-model="m"' in entry
    width, height = re.search(r'width="(\d+)" height="(\d+)"', entry).groups()
    assert (width, height) == ("768", "384")
    assert "unreadable" in page.split('<article class="entry"')[3]


def test_equal_entries_give_equal_pages_and_pictures_can_be_left_out(page):
    row = row_of(1, cell(), images=[picture(40)])
    entries = [entry_of(row, row.cells[0])]
    assert render_page(entries) == render_page(entries)
    bare = render_page(entries, pictures=False)
    assert "data:image" not in bare
    assert "Pictures that are not shown: 1." in bare


def test_pictures_beyond_the_room_are_counted_and_long_texts_cut(monkeypatch):
    monkeypatch.setattr(audit, "MAX_PICTURE_BYTES", 10)
    row = row_of(1, cell(text="x" * 30_000), images=[picture(40)])
    page = render_page([entry_of(row, row.cells[0])])
    assert "Pictures that are not shown: 1." in page
    assert "… (30,000 characters)" in page


def test_without_any_answer_there_is_nothing_to_look_at(tmp_path):
    from router_runtime.yaml_config import validate
    from router_training.labelling.answer_store import AnswerStore
    from router_training.labelling.config import LabelConfig
    from router_training.labelling.samples_stage import keep_samples

    (tmp_path / "s.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    content = {
        "data": {"path": str(tmp_path / "s.jsonl")},
        "candidates": [{"id": "m", "target": {"kind": "vllm", "base_url": "http://127.0.0.1:9"}}],
        "scoring": {"scorers": {"match": "exact"}, "default": ["match"]},
        "work_dir": str(tmp_path / "work"),
    }
    config = validate(LabelConfig, content, source="label.yml")
    samples = keep_samples(config)
    with AnswerStore.open(config.work_dir, holder="test") as store:
        with pytest.raises(DataError, match="collect some first"):
            audit.export(config, samples, store, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


PROBE = """
const found = {};
const key = letter => document.dispatchEvent(new KeyboardEvent('keydown', {key: letter}));
const entries = [...document.querySelectorAll('.entry')];
entries[0].focus();
key('y');
found.next = document.activeElement === entries[1];
entries[1].querySelector('input[value=no]').click();
found.told = document.querySelector('output').textContent;
found.classes = entries.map(entry => entry.className);
const blobs = [];
URL.createObjectURL = blob => { blobs.push(blob); return '#'; };
document.querySelector('.bar button').click();
document.querySelectorAll('.bar input')[0].click();
found.hidden = entries.map(entry => getComputedStyle(entry).display === 'none');
document.querySelectorAll('.bar input')[1].click();
found.open = [...document.querySelectorAll('details')].every(one => one.open);
found.loads = performance.getEntriesByType('resource').map(e => e.name);
found.title = document.title;
found.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.kept = Object.keys(localStorage).length;
blobs[0].text().then(text => {
  found.csv = text;
  document.body.replaceChildren();
  document.body.textContent = 'FOUND' + JSON.stringify(found) + 'DNUOF';
});
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (apt-get install chromium)")
def test_marks_are_kept_and_downloaded_and_nothing_is_loaded(page, tmp_path):
    allowed = str(escape("script-src '"))
    assert page.count(allowed) == 1
    added = str(escape(f"script-src 'sha256-{digest(PROBE)}' '"))
    copy = page.replace(allowed, added).replace("</body>", f"<script>{PROBE}</script></body>")
    (tmp_path / "page.html").write_text(copy, encoding="utf-8")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run"),
        *("--enable-logging=stderr", "--window-size=1200,900", "--virtual-time-budget=2000"),
        *(f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", (tmp_path / "page.html").as_uri()),
    ]
    done = subprocess.run(  # noqa: S603 - the system's browser on our own page
        command, capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"FOUND(.*)DNUOF", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(found[1]))
    assert found["next"]
    assert found["told"] == "2 of 3 marked"
    assert found["classes"] == ["entry yes", "entry no", "entry"]
    assert found["hidden"] == [True, True, False]
    assert found["open"]
    assert (found["loads"], found["title"], found["kept"]) == ([], "Audit of labels", 1)
    assert found["wider"] <= 0
    (tmp_path / "marks.csv").write_text(found["csv"])
    marks = read_marks(tmp_path / "marks.csv")
    assert dict(marks.scores) == {(HOSTILE, HOSTILE): 1.0, ("7", "m"): 0.0}
    assert marks.n_unsure == 1
