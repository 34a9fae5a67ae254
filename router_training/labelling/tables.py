"""Labelling on the console: what it would cost, how asking ended, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_runtime.console import plain_table
from router_training.labelling.ask_local import Asked
from router_training.labelling.estimate import Basis, Estimate
from router_training.labelling.responses import Tally
from router_training.labelling.walk import Labelled
from router_training.wording import percent

_MAX_REASONS: Final = 8
_STATES: Final = ("answered", "refused", "failed", "pending")
_BASES: Final[Mapping[Basis, str]] = {
    "observed": "as the answers so far",
    "max_tokens": "as max_tokens allows",
    "assumed": "assumed, as nothing is known",
}


def usd(value: Decimal | None) -> str:
    """Return dollars with cents, or with four digits after the point where they are few."""
    if value is None:
        return "unknown"
    return f"${value:,.2f}" if value >= 100 else f"${value:.4f}"


def render_estimate(found: Estimate, console: Console, *, max_cost_usd: Decimal | None) -> None:
    """Print what is still to be asked of whom, and what that is expected to cost."""
    table = plain_table(f"Still to ask ({found.samples:,} samples)")
    table.add_column("model", overflow="fold")
    for header in ("calls", "kept", "ineligible", "tokens in", "out", "USD"):
        table.add_column(header, justify="right", no_wrap=True)
    for model in found.models:
        name = model.model_id if model.role == "candidate" else f"{model.model_id} (judge)"
        tokens = (_short(model.input_tokens), _short(model.output_tokens))
        counts = (f"{n:,}" for n in (model.calls, model.kept, model.ineligible))
        table.add_row(name, *counts, *tokens, usd(model.cost_usd))
    console.print(table)
    for basis, words in _BASES.items():
        names = [m.model_id for m in found.models if m.calls and m.output_basis == basis]
        if names:
            console.print(f"Tokens out {words}: {', '.join(names)}.")
    unpriced = f", without {', '.join(found.unpriced)} (no price)" if found.unpriced else ""
    console.print(f"{found.calls:,} calls for about {usd(found.cost_usd)}{unpriced}.")
    console.print("Repeated tries come on top; answers that a scorer recognises need no judge.")
    if max_cost_usd is not None:
        left = max_cost_usd - found.spent_usd
        console.print(f"max_cost_usd leaves {usd(max(left, Decimal(0)))} of {usd(max_cost_usd)}.")
        if found.cost_usd > left:
            console.print("That is likely to end the run before it is done.")


def _short(tokens: int) -> str:
    if tokens >= 10_000_000:
        return f"{tokens / 1e6:,.0f}M"
    return f"{tokens / 1e3:,.0f}k" if tokens >= 10_000 else f"{tokens:,}"


def render_labelled(done: Labelled, console: Console) -> None:
    """Print how every candidate and judge stands, and what it cost."""
    console.print(_candidates(done))
    if done.asked.judges:
        console.print(_judges(done.asked))
    for line in _reasons(done.asked):
        console.print(line, soft_wrap=True)
    spent = f"spent {usd(done.spent_usd)} in this run, {usd(done.total_usd)} in all"
    unknown = ""
    if done.estimated_usd:
        unknown = f", and at most {usd(done.estimated_usd)} for calls that told no cost"
    console.print(spent + unknown)


def missing(done: Labelled, *, max_cost_usd: Decimal | None) -> tuple[str, ...]:
    """Return why a run is not at its end, a line each; empty where it is."""
    asked = done.asked
    lines = [f"{name} was stopped: {why}" for name, why in asked.stopped.items()]
    if asked.budget_reached:
        cap = "" if max_cost_usd is None else f" of {usd(max_cost_usd)}"
        line = f"The budget{cap} is reached; raise max_cost_usd to go on."
        if max_cost_usd is not None and done.total_usd + done.estimated_usd < max_cost_usd:
            line += (
                " Until it has ended, a call counts with the most that it may cost: a lower "
                "max_tokens lets more of them in."
            )
        lines.append(line)
    if answers := sum(tally.pending for tally in asked.candidates.values()):
        lines.append(f"{answers:,} answers of candidates are still to come.")
    if asked.judged is not None and asked.judged.pending:
        lines.append(f"{asked.judged.pending:,} answers are still to be judged.")
    for name, tally in asked.candidates.items():
        if tally.failed and not (tally.answered or tally.refused or tally.pending):
            lines.append(f"{name} answered nothing: all of its {tally.failed:,} calls failed.")
    return tuple(lines)


def _candidates(done: Labelled) -> Table:
    table = plain_table(f"Candidates ({done.n_samples:,} samples)")
    table.add_column("model", overflow="fold")
    for header in (*_STATES, "ineligible", "USD now"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, tally in done.asked.candidates.items():
        counts = (*_ended(tally), f"{tally.ineligible:,}")
        table.add_row(name, *counts, _spent(done.asked, name, tally))
    return table


def _judges(asked: Asked) -> Table:
    table = plain_table("Judges (calls of this run)")
    table.add_column("model", overflow="fold")
    for header in (*_STATES, "USD now"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, tally in asked.judges.items():
        table.add_row(name, *_ended(tally), _spent(asked, name, tally))
    return table


def _ended(tally: Tally) -> tuple[str, ...]:
    counts = (tally.answered, tally.refused, tally.failed, tally.pending)
    return tuple(f"{count:,}" for count in counts)


def _spent(asked: Asked, model_id: str, tally: Tally) -> str:
    """Return what a model's answers cost in this run, with a plus where some told no cost."""
    cost = usd(asked.spent.get(model_id, Decimal(0)))
    return f"{cost}+" if tally.unpriced else cost


def _reasons(asked: Asked) -> Iterator[Text]:
    """Say why there are cells without an answer, or without a score."""
    for name, tally in {**asked.candidates, **asked.judges}.items():
        told = [r for r in tally.reasons if not r.startswith(("ineligible", "pending"))]
        for reason in told[:_MAX_REASONS]:
            yield Text(f"- {name}: {tally.reasons[reason]:,} {reason}")
    judged = asked.judged
    if judged is None:
        return
    scored, unscored = sum(judged.scored.values()), sum(judged.unscored.values())
    if judged.by:
        by = ", ".join(f"{name} {count:,}" for name, count in judged.by.items())
        yield Text(f"Scores by: {by}.")
    if unscored:
        share = percent(unscored / (scored + unscored))
        yield Text(f"{unscored:,} answers ({share}) have no score:")
    for reason, count in list(judged.reasons.items())[:_MAX_REASONS]:
        yield Text(f"- {count:,} {reason}")
