"""Small adapters' data sets with real pictures."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image


def _picture(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (shade % 256, shade // 256, 77)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def write_adapter(tmp_path):
    """Write ``<name>/train.jsonl`` with ``rows`` rows, ``per_picture`` of them to a picture."""

    def write(name: str, rows: int, *, first_shade: int, per_picture: int = 1) -> Path:
        folder = tmp_path / name
        (folder / "shots").mkdir(parents=True)
        lines = []
        for at in range(rows):
            shot = f"shots/{at // per_picture}.png"
            (folder / shot).write_bytes(_picture(first_shade + at // per_picture))
            turns = [
                {"from": "human", "value": f"<image>\n{name} request {at}"},
                {"from": "gpt", "value": "done()"},
            ]
            row = {"id": f"{name}-{at}", "image": shot, "conversations": turns}
            lines.append(json.dumps(row))
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "train.jsonl"

    return write


@pytest.fixture
def adapters(write_adapter):
    """Three data sets of 40 rows: (name, path)."""
    names = ("calendar", "claim-window", "provider-select")
    return {name: write_adapter(name, 40, first_shade=1000 * at) for at, name in enumerate(names)}
