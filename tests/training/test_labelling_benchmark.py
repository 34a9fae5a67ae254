"""The labelling benchmark runs end to end on a few samples, and its verdicts are right."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import labelling
from labelling_parts.footprint import Footprint, Step
from labelling_parts.footprint import rows as memory_rows
from labelling_parts.table import Row
from labelling_parts.throughput import Load, Round, Throughput

TINY = ["--samples", "6", "--models", "2", "--per-model", "4", "--latency-s", "0.01"]
TINY += ["--rounds", "1", "--one-by-one", "4", "--rows", "20"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a tiny run prints, and the folder of its temporary folders."""
    folder = tmp_path_factory.mktemp("labelling")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(texts))
        assert labelling.main([*TINY, "--json", "--folder", str(folder)]) == 0
    return json.loads("\n".join(printed)), folder


def test_both_parts_are_measured_on_real_calls_and_real_records(found):
    content, _ = found
    share, one_by_one = content["rows"]
    assert 0 < share["measured"] < 1
    assert 0 < one_by_one["measured"] < 100
    (size,) = content["memory"]
    assert list(size["steps"]) == ["keep", "collect", "tabulate"]
    assert all(step["peak"] > 2**20 for step in size["steps"].values())


def test_every_temporary_folder_is_removed(found):
    assert list(found[1].iterdir()) == []


def test_check_turns_a_missed_target_into_the_exit_status(monkeypatch, capsys):
    def measure(rate):
        slow = Throughput(
            Load(), (Round(2000 / rate, cpu_s=4, provider_cpu_s=2, others=0.0),), 8.0, 0.2
        )
        monkeypatch.setattr("labelling_parts.throughput.measure", lambda load, folder: slow)
        return labelling.main(["--only", "throughput", "--check"])

    assert measure(rate=257) == 0
    assert measure(rate=255) == 1
    assert "MISSED" in capsys.readouterr().out


def test_rates_are_of_the_round_that_others_disturbed_least():
    disturbed = Round(40.0, cpu_s=4, provider_cpu_s=2, others=0.6)
    quiet = Round(8.0, cpu_s=4, provider_cpu_s=2, others=0.1)
    found = Throughput(Load(), (disturbed, quiet), one_by_one_s=8.0, one_by_one_cpu_s=0.2)
    assert found.rate == 250
    ideal, one_by_one = found.rows()
    assert ideal.measured == 250 / 320  # 64 places, each for 0.2 s
    assert one_by_one.measured == 250 / 5
    assert [ideal.met, one_by_one.met] == [False, True]


def test_memory_is_compared_with_the_smallest_size_and_bound_at_the_largest():
    step = Step(peak=200, seconds=1.0, cpu_s=1.0)
    small = Footprint(10, 2, before=50, steps={"keep": step, "collect": replace(step, peak=240)})
    middle = replace(small, samples=100, steps={"keep": replace(step, peak=300)})
    large = replace(small, samples=1000, steps={"keep": replace(step, peak=312)})
    first, last = memory_rows([small, middle, large])
    assert (first.measured, first.met) == (1.25, None)
    assert (last.measured, last.met) == (1.3, False)


def test_a_line_without_a_target_is_neither_met_nor_missed():
    assert Row("what", "1", "2", 0.5).met is None
    assert Row("what", "1", "2", 0.5, target=0.5, at_most=True).met is True
