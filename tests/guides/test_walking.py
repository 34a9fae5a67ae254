"""The walk of a guide finds what is wrong with it, and says where."""

from __future__ import annotations

import pytest
from guides_parts.blocks import FaultyPageError, blocks_of
from guides_parts.command_lines import problems_of_commands
from guides_parts.walking import Walk, reader_folder

FAULTS = {
    "```bash\ntrue\nfalse\n```": "page.md:2: ended with status 1, not 0 line 3: false",
    "```bash\nfalse | true\n```": "page.md:2: ended with status 1",
    "<!-- check: exit 2 -->\n```bash\ntrue\n```": "page.md:3: ended with status 0, not 2",
    "```bash\nmake nonsense\n```": "page.md:2: make has no target 'nonsense'",
    "```bash\ncat configs/no.yml\n```": "page.md:2: there is no configs/no.yml",
    "```bash\nmodel-router rout x\n```": "page.md:2: model-router has no command 'rout'",
    "<!-- check: not run, slow -->\n```bash\nmodel-router route --imag x\n```": (
        "page.md:3: model-router route has no option '--imag'"
    ),
    "<!-- check: not run -->\n```bash\ntrue\n```": "no check of a bash block is called 'not run'",
    "<!-- check: background until http://127.0.0.1:8080/ -->\n```bash\necho no\n```": (
        "page.md:3: ended before http://127.0.0.1:"
    ),
    "text\n\n```python\nimport sys\nsys.exit(3)\n```": "page.md:4: ended with status 3",
    "```python\nif\n```": "page.md:2: SyntaxError",
    '```python title="mine.py"\nif\n```': "page.md:2: SyntaxError",
    "```yaml\na: [\n```": "page.md:2: is no yaml",
    "```json\n{a: 1}\n```": "page.md:2: is no json",
    "<!-- check: policy -->\n```yaml\npolicy: {kind: dearest}\n```": "page.md:3: ValidationError",
    "<!-- check: polices -->\n```yaml\na: 1\n```": "no check is called 'polices'",
    '```text title="../up.txt"\nx\n```': "'../up.txt' is outside of the folder",
    "```sql\nselect 1\n```": "nothing checks a block of 'sql' without a title",
    "```\nx\n```": "page.md:1: begin a block with ```LANGUAGE",
    "```bash\ntrue\n": "page.md:1: the block has no end",
    "---\nneeds: [nothing]\n---\n": "page.md:2: nothing makes 'nothing'",
}


@pytest.fixture
def walked(tmp_path, programs):
    """Walks a text as a page, and returns the folder of its reader."""

    def walk(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        folder = reader_folder(page, tmp_path / "reader", lambda need: tmp_path)
        (tmp_path / "scratch").mkdir()
        Walk(page, folder, tmp_path / "scratch", programs).go()
        return folder

    return walk


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_told_with_its_place(walked, text, monkeypatch):
    monkeypatch.setattr("guides_parts.programs.Programs.start", lambda self, text: None)
    with pytest.raises(FaultyPageError) as told:
        walked(text)
    assert FAULTS[text] in str(told.value)


def test_blocks_share_a_folder_an_environment_and_files(walked):
    folder = walked(
        '```yaml title="parts/a.yml"\nport: 8080\n```\n'
        "```bash\nexport NAME=world\ncd parts\n```\n"
        "```bash\necho hello $NAME \\\n  > said.txt\nmake test  # is not run\n```\n"
        "- in a list\n\n    ```python\n    import os\n"
        "    print(os.environ['NAME'], file=open('from_python.txt', 'w'))\n    ```\n"
        "```text\nwhatever ((\n```\n"
    )
    assert (folder / "parts" / "said.txt").read_text() == "hello world\n"
    assert (folder / "parts" / "from_python.txt").read_text() == "world\n"
    port = int((folder / "parts" / "a.yml").read_text().removeprefix("port: "))
    assert port != 8080
    assert f"port: {port}" in (folder / "configs" / "service.yml").read_text()


def test_what_runs_in_the_background_is_asked_and_ended(walked):
    server = "python -m http.server --bind 127.0.0.1 9123"
    folder = walked(
        f"<!-- check: background until http://127.0.0.1:9123/configs/ -->\n```bash\n{server}\n```\n"
        "```bash\ncurl -sf http://127.0.0.1:9123/configs/router.yml > got.yml\n```\n"
    )
    assert (folder / "got.yml").read_text() == (folder / "configs" / "router.yml").read_text()


def test_a_program_of_the_page_is_its_real_self_in_a_process_of_its_own(walked):
    folder = walked(
        "<!-- check: exit 2 -->\n"
        '```bash\nmodel-router route --artifact no "x" 2> refused.txt\n```\n'
        "```bash\nmodel-router route --quiet hello | tee model.txt\n```\n"
    )
    assert (folder / "refused.txt").read_text().startswith("error: ")
    assert (folder / "model.txt").read_text().strip() in ("weak", "strong")


def test_a_comment_two_lines_long_belongs_to_the_block_below_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- check: not run,\n  needs a GPU -->\n\n```bash\nx\n```\n\n```bash\ny\n```\n"
    )
    assert [block.check for block in blocks_of(page)] == ["not run, needs a GPU", ""]


def test_commands_and_options_are_known_by_the_programs_themselves():
    assert problems_of_commands("model-router keys create --config c --name n") == []
    assert problems_of_commands("model-router keys make") == [
        "model-router keys has no command 'make'"
    ]
    assert problems_of_commands("router-train run c.yml \\\n  --datum x") == [
        "router-train run has no option '--datum'"
    ]
    assert problems_of_commands("router-train generate-routing-data --calendar-dataset x") == []
