"""How a category router does on labelled texts: accuracy, macro-F1, confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from router_runtime.console import plain_table
from router_runtime.errors import DataError
from router_runtime.router_inference import RouterInference
from router_runtime.types import Int, Json, Progress
from router_training.fine_tuning.figures import confusion, macro_f1, per_label
from router_training.labels import Evaluations
from router_training.versioned import plain

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Figures on some rows.

    Parameters
    ----------
    categories : tuple of str
    counts : ndarray of shape (n_categories, n_categories), int64
        Rows are true, columns are said.
    """

    categories: tuple[str, ...]
    counts: Int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose category was told."""
        return float(self.counts.trace() / self.rows)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the categories that occur or were said."""
        return macro_f1(self.counts)

    def to_json(self) -> Json:
        """Return plain values."""
        return plain(
            {
                "rows": self.rows,
                "accuracy": self.accuracy,
                "macro_f1": self.macro_f1,
                "categories": per_label(self.counts, self.categories),
                "confusion": self.counts.tolist(),
            }
        )


def evaluate_rows(router: RouterInference, data: Evaluations, progress: Progress) -> Evaluated:
    """Ask for every row.

    Parameters
    ----------
    router : RouterInference
    data : Evaluations
        Columns are the router's categories, in order.
    progress : callable

    Raises
    ------
    DataError
        There is no row.
    """
    if not len(data):
        raise DataError("There is no row to evaluate on.")
    said: list[str] = []
    texts = [query.text for query in data.queries]
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        said += [found["category"] for found in router.route_batch(chunk)]
        progress(len(said), len(texts))
    place = {category: at for at, category in enumerate(router.categories)}
    truth = data.labels.Y.argmax(axis=1)
    told = truth * 0 + [place[category] for category in said]
    return Evaluated(router.categories, confusion(truth, told, n_labels=len(place)))


def print_evaluated(found: Evaluated, console: Console) -> None:
    """Print accuracy, macro-F1 and a row per category."""
    console.print(
        f"accuracy {found.accuracy:.4f}, macro-F1 {found.macro_f1:.4f} on {found.rows} rows"
    )
    table = plain_table("Categories")
    table.add_column("category", overflow="fold")
    for header in ("rows", "precision", "recall", "F1", "most often taken for"):
        table.add_column(header, justify="right")
    for at, (category, told) in enumerate(per_label(found.counts, found.categories).items()):
        wrong = found.counts[at].copy()
        wrong[at] = 0
        taken = f"{found.categories[int(wrong.argmax())]} ({wrong.max()})" if wrong.any() else ""
        shares = (
            "-" if told[name] is None else f"{told[name]:.3f}"
            for name in ("precision", "recall", "f1")
        )
        table.add_row(Text(category), str(told["rows"]), *shares, Text(taken))
    console.print(table)
