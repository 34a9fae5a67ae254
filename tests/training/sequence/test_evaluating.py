from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from router_runtime.errors import DataError, MissingDependencyError, RouterError
from router_runtime.router_inference import RouterInference
from router_training.fine_tuning.wandb_log import wandb_run
from router_training.sequence.categories import read_categories
from router_training.sequence.evaluating import Evaluated, evaluate_rows, print_evaluated

COUNTS = np.array([[8, 2, 0], [1, 9, 0], [0, 5, 5]])
FOUND = Evaluated(("math", "science", "[bold]code"), COUNTS)


def quiet(done, total):
    pass


def test_figures_by_hand():
    assert FOUND.rows == 30
    assert FOUND.accuracy == pytest.approx(22 / 30)
    told = FOUND.to_json()
    assert told["confusion"] == COUNTS.tolist()
    assert told["categories"]["[bold]code"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "rows": 10,
    }
    assert json.dumps(told)


def test_the_table_says_what_a_category_is_taken_for():
    stream = io.StringIO()
    print_evaluated(FOUND, Console(file=stream, width=120))
    text = stream.getvalue()
    assert "accuracy 0.7333" in text and "[bold]code" in text
    assert "science (5)" in text and "science (2)" in text


def test_a_router_is_measured_on_rows_that_it_never_saw(router_model, files):
    router = RouterInference.from_pretrained(router_model[0], device="cpu")
    data = read_categories(files / "test.jsonl", categories=router.categories)
    seen = []
    found = evaluate_rows(router, data, lambda done, total: seen.append((done, total)))
    assert found.accuracy > 0.9 and found.macro_f1 > 0.9
    assert found.counts.sum(axis=1).tolist() == [20, 20, 20]
    assert seen[-1] == (60, 60)
    with pytest.raises(DataError, match="no row"):
        evaluate_rows(router, data.take([]), quiet)


@pytest.mark.parametrize("n", [2, 3, 40])
def test_the_picture_is_a_png_of_the_matrix(tmp_path, n):
    pytest.importorskip("matplotlib")
    from router_training.sequence.plot_confusion import confusion_figure, write_confusion

    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (n, n)) + 30 * np.eye(n, dtype=np.int64)
    names = [f"category {at}" for at in range(n)]
    write_confusion(counts, names, tmp_path / "deep" / "matrix.png")
    with Image.open(tmp_path / "deep" / "matrix.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
    (axes, _) = confusion_figure(counts, names).axes
    numbers = [text.get_text() for text in axes.texts]
    assert len(numbers) == (np.count_nonzero(counts) if n <= 30 else 0)


def test_the_picture_is_not_put_into_an_artifact(router_model):
    pytest.importorskip("matplotlib")
    from router_training.sequence.plot_confusion import write_confusion

    with pytest.raises(RouterError, match="artifact's folder"):
        write_confusion(COUNTS, ("a", "b", "c"), router_model[0] / "matrix.png")


# --------------------------------------------------------------------------- W&B


def test_without_wandb_it_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingDependencyError, match=r"model-router\[wandb\]"),
        wandb_run("p", settings={}),
    ):
        pass


def test_figures_go_to_the_run_which_is_finished_whatever_happens(monkeypatch):
    import sys
    import types

    heard = []

    class Run:
        def log(self, figures, *, step):
            heard.append((step, figures))

        def finish(self):
            heard.append("finished")

    def init(**given):
        heard.append(given)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(ZeroDivisionError), wandb_run("p", settings={"epochs": 3}) as record:
        record({"loss": 1.0}, step=4)
        raise ZeroDivisionError
    assert heard == [{"project": "p", "config": {"epochs": 3}}, (4, {"loss": 1.0}), "finished"]
