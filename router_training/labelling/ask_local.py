"""Ask candidates and judges from this process: one event loop, one budget, one open store.

What another engine has to return is the same ``Asked``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from router_runtime.targets.base import Target
from router_runtime.targets.registry import build_target
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.config import LabelConfig
from router_training.labelling.own_loop import OwnLoop
from router_training.labelling.progress import Watch
from router_training.labelling.responses import (
    BUDGET_REACHED,
    CollectSummary,
    StoredAsker,
    Tally,
    collect,
    live_asker,
    models_of,
)
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import JudgeSummary, judge_all
from router_training.labelling.spending import total

Stage: TypeAlias = Literal["collect", "judge"]

COLLECT: Final[Stage] = "collect"
JUDGE: Final[Stage] = "judge"


@dataclass(frozen=True)
class Asked:
    """How asking ended.

    Parameters
    ----------
    candidates : mapping of model id to Tally
        How every cell stands now, whenever it was asked.
    judged : JudgeSummary or None
        None where the judges' stage was not wanted.
    judges : mapping of model id to Tally
        The calls to judges that this run made, or did not come to; verdicts that were kept are not
        among them.
    spent : mapping of model id to Decimal
        What answers cost that this run asked for, where it is known.
    stopped : mapping of model id to str
        Targets that were given up, and why.
    budget_reached : bool
        A call was not sent because of ``max_cost_usd``.
    """

    candidates: Mapping[str, Tally]
    judged: JudgeSummary | None
    judges: Mapping[str, Tally]
    spent: Mapping[str, Decimal]
    stopped: Mapping[str, str]
    budget_reached: bool

    @property
    def pending(self) -> int:
        """Answers and verdicts that are still to come; 0 when all is done."""
        answers = CollectSummary(self.candidates).pending
        return answers + (0 if self.judged is None else self.judged.pending)


@dataclass
class _Calls:
    """Calls to one target, as they end."""

    ended: Counter[str] = field(default_factory=Counter)
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.ended[outcome.status] += 1
        if outcome.status is not Status.ANSWERED:
            # what follows the kind of a reason may differ from call to call, without end
            self.reasons[f"{outcome.status}: {(outcome.reason or '').partition(': ')[0]}"] += 1
        elif outcome.cost_usd is None:
            self.unpriced += 1
        else:
            self.cost_usd = total([self.cost_usd, outcome.cost_usd])

    def tally(self) -> Tally:
        counts = {status.value: self.ended[status] for status in Status}
        reasons = dict(self.reasons.most_common())
        return Tally(**counts, cost_usd=self.cost_usd, unpriced=self.unpriced, reasons=reasons)


class Listener:
    """Passes on what a watch is told, and remembers what the summary needs of it."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.calls: dict[str, _Calls] = {}
        self.spent: dict[str, Decimal] = {}
        self.budget_reached = False

    def started(self, model_id: str, total: int | None) -> None:
        self._watch.started(model_id, total)

    def ineligible(self, model_id: str) -> None:
        self._watch.ineligible(model_id)

    def ended(self, outcome: Outcome, *, asked: bool) -> None:
        if asked or outcome.status is Status.PENDING:
            self.calls.setdefault(outcome.model_id, _Calls()).add(outcome)
        if asked:
            before = self.spent.get(outcome.model_id)
            self.spent[outcome.model_id] = total([before, outcome.cost_usd])
        self.budget_reached |= outcome.reason == BUDGET_REACHED
        self._watch.ended(outcome, asked=asked)

    def stopped(self, model_id: str, why: str) -> None:
        self._watch.stopped(model_id, why)

    def draining(self, calls: int) -> None:
        self._watch.draining(calls)


def build_targets(config: LabelConfig, stages: Collection[Stage]) -> dict[str, Target]:
    """Return the targets that the stages ask, so that what one lacks is said before any is asked.

    Raises
    ------
    ConfigError
        A key is not set, or a target cannot be built.
    MissingDependencyError
        The ``openai`` package is not installed.
    """
    wanted = {entry.id: entry.target for entry in config.candidates if COLLECT in stages}
    if config.judge is not None and JUDGE in stages:
        wanted |= {entry.id: entry.target for entry in config.judge.models}
    return {
        model_id: build_target(model_id, target)
        for model_id, target in wanted.items()
        if target is not None
    }


def ask_local(
    config: LabelConfig,
    samples: Callable[[], Iterable[LabelSample]],
    store: AnswerStore,
    *,
    targets: Mapping[str, Target],
    stages: Collection[Stage],
    n_samples: int,
    watch: Watch,
) -> Asked:
    """Ask what the stages need and is not kept, from one event loop.

    Parameters
    ----------
    config : LabelConfig
    samples : callable
        Returns a fresh iterator over all samples.
    store : AnswerStore
        Open to write.
    targets : mapping of model id to Target
        From ``build_targets`` for the same stages; closed at the end.
    stages : collection of str
        ``collect``, ``judge`` or both.
    n_samples : int
    watch : Watch

    Raises
    ------
    RouterError
        A sample cannot be read, or an answer not be kept.
    KeyboardInterrupt
        After calls in flight have ended, or at once at a second Ctrl-C.
    """
    with OwnLoop() as loop:
        return loop.run(
            _asked(config, samples, store, targets, stages=stages, n_samples=n_samples, watch=watch)
        )


async def _asked(
    config: LabelConfig,
    samples: Callable[[], Iterable[LabelSample]],
    store: AnswerStore,
    targets: Mapping[str, Target],
    *,
    stages: Collection[Stage],
    n_samples: int,
    watch: Watch,
) -> Asked:
    heard = Listener(watch)
    kept = StoredAsker(store, models_of(config))
    judged: JudgeSummary | None = None
    async with live_asker(config, targets, store, watch=heard) as asker:
        if COLLECT in stages:
            collected = await collect(samples, config, asker, watch=heard, n_samples=n_samples)
        else:
            collected = await collect(samples, config, kept)
        heard.calls.clear()  # from here on only judges are asked
        if JUDGE in stages:
            judged = await judge_all(samples, config, kept, asker, watch=heard)
        stopped = asker.stopped
    return Asked(
        candidates=collected.tallies,
        judged=judged,
        judges={model_id: calls.tally() for model_id, calls in heard.calls.items()},
        spent=heard.spent,
        stopped=stopped,
        budget_reached=heard.budget_reached,
    )
