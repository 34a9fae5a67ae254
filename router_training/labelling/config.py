"""YAML to a validated ``LabelConfig``: what ``router-train collect``, ``judge`` and ``label`` do.

Paths are relative to the config file. Candidates and judges are described as the service's config
describes them.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from router_runtime.config import CandidateConfig, PriceConfig, check_candidates
from router_runtime.target_config import (
    AzureTargetConfig,
    LoraVllmTargetConfig,
    PeftTargetConfig,
    TargetConfig,
)
from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel, read_yaml, validate, with_overrides

JUDGE = "judge"
"""The name by which scoring refers to the LLM judge."""

Column = Annotated[str, Field(min_length=1)]


class ColumnsConfig(StrictModel):
    """Which columns of the source hold what; ``a.b`` reaches into structs.

    A column that is not named here is found under the key's own name (and its usual synonyms)
    where the source has it.
    """

    id: Column | None = Field(default=None, description="What names a row.")
    prompt: Column | None = Field(default=None, description="The question.")
    system: Column | None = Field(default=None, description="A system prompt.")
    answer: Column | None = Field(default=None, description="The reference answer.")
    images: tuple[Column, ...] = Field(default=(), description="Pictures.")
    messages: Column | None = Field(default=None, description="Conversations; see ``shape``.")
    texts: Column | None = Field(default=None, description="Conversations; see ``shape``.")
    conversations: Column | None = Field(default=None, description="Conversations; see ``shape``.")
    choices: Column | None = Field(
        default=None, description="Possible answers, which the prompt lists with letters."
    )
    group: Column | None = Field(
        default=None, description="What keeps rows together when data are split."
    )
    dataset: Column | None = Field(default=None, description="The name of a row's data set.")
    scorer: Column | None = Field(default=None, description="Names of a row's scorers.")


class SourceConfig(StrictModel):
    """A data set to label, read through Hugging Face ``datasets``.

    Parameters
    ----------
    path : str
        A hub id, a ``save_to_disk`` folder, a file, a folder of files or a glob pattern.
    kind : str
        ``auto`` tells them apart by looking.
    name : str or None
        Subset of a hub data set.
    split : str or None
        Split of a hub data set; may be left out where there is one.
    revision : str or None
        Of a hub data set.
    streaming : bool
        Read a hub data set without downloading all of it.
    shape : str
        How a row holds a conversation; ``auto`` looks at the columns. ``prompt``: columns of text
        (and pictures). ``messages``: OpenAI's turns, with an ``images`` column as TRL has it.
        ``texts``: FineVision's list of user and assistant turns. ``conversations``: turns with
        ``from`` and ``value``.
    columns : ColumnsConfig
        Which columns hold what.
    dataset : str or None
        The data set's name in the records, where no column gives it; None: from ``path``.
    limit : int or None
        Rows to take; None: all.
    shuffle : bool
        Take them at random (seeded; a streamed source is shuffled in a buffer) instead of the
        first.
    image_root : Path or None
        Where picture paths in rows start.
    on_bad_row : str
        ``error`` ends at a row that cannot be used, ``skip`` leaves it out and counts it.
    """

    path: str = Field(min_length=1)
    kind: Literal["auto", "hub", "disk", "parquet", "json", "csv"] = "auto"
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    shape: Literal["auto", "prompt", "messages", "texts", "conversations"] = "auto"
    columns: ColumnsConfig = ColumnsConfig()
    dataset: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    image_root: Path | None = None
    on_bad_row: Literal["error", "skip"] = "error"


class AskConfig(StrictModel):
    """How candidates are asked.

    Parameters
    ----------
    system : str or None
        A system prompt put before every conversation that has none.
    parameters : mapping
        Sent with every call to a candidate; a target's own ``parameters`` go before them.
    attempts : int
        Tries of one call before it counts as failed.
    max_wait_s : float
        Longest pause between two tries; a longer ``Retry-After`` counts as a failure.
    """

    system: str | None = Field(default=None, min_length=1)
    parameters: dict[str, Json] = Field(default_factory=dict)
    attempts: int = Field(default=5, ge=1, le=20)
    max_wait_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)


class ScorerBase(StrictModel):
    """What every scorer has.

    Parameters
    ----------
    decides : str
        ``both``: its score stands. ``good``: only full marks stand, anything else goes to the next
        scorer, as an answer may be right in other words. Of a list's last scorer all scores stand.
    """

    decides: Literal["both", "good"] = "both"


class ExactConfig(ScorerBase):
    """Whether answer and reference are the same text.

    Parameters
    ----------
    normalise : bool
        Forgive case, punctuation, articles and blanks.
    """

    kind: Literal["exact"]
    normalise: bool = True
    decides: Literal["both", "good"] = "good"


class ChoiceConfig(ScorerBase):
    """The letter (or text) of a multiple choice; no letter found is no score of its own.

    Parameters
    ----------
    letters : str
        Of the choices, in order.
    """

    kind: Literal["choice"]
    letters: str = Field(default="ABCDEFGHIJ", min_length=2, pattern=r"^[A-Z]+$")


class NumericConfig(ScorerBase):
    """The number that the answer gives as its result against the reference's.

    Parameters
    ----------
    relative, absolute : float
        Tolerances; within either is right.
    """

    kind: Literal["numeric"]
    relative: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    absolute: float = Field(default=1e-9, ge=0, allow_inf_nan=False)


class RegexConfig(ScorerBase):
    """1 where a pattern is found in the answer.

    Parameters
    ----------
    pattern : str
        A regular expression; ``{reference}`` in it stands for the escaped reference.
    ignore_case : bool
        Let capital and small letters be the same.
    """

    kind: Literal["regex"]
    pattern: str = Field(min_length=1)
    ignore_case: bool = True


class OverlapConfig(ScorerBase):
    """Word overlap with the reference.

    Parameters
    ----------
    measure : str
        ``f1`` of the words, or ``rouge_l`` of the longest common subsequence.
    """

    kind: Literal["overlap"]
    measure: Literal["f1", "rouge_l"] = "f1"


class PythonConfig(ScorerBase):
    """A function of yours.

    Parameters
    ----------
    function : str
        ``module:name``; takes (sample, answer text) and returns a score or None.
    version : str
        Told with the records (in ``scoring_sha256``); raise it when the function does something
        else.
    """

    kind: Literal["python"]
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    version: str = ""


ScorerConfig = Annotated[
    ExactConfig | ChoiceConfig | NumericConfig | RegexConfig | OverlapConfig | PythonConfig,
    Field(discriminator="kind"),
]


class ScoringConfig(StrictModel):
    """Which scorers judge which samples, cheapest first.

    A sample's own ``scorer`` goes first, then its data set's. ``judge`` is the LLM judge.

    Parameters
    ----------
    scorers : mapping of name to ScorerConfig
        By names of yours; a kind alone stands for its defaults.
    default : tuple of str
        Names of ``scorers``, or ``judge``, for samples of which nothing else is said.
    datasets : mapping of data set to tuple of str
        The same for the samples of one data set.
    """

    scorers: dict[str, ScorerConfig] = Field(default_factory=dict)
    default: tuple[str, ...] = (JUDGE,)
    datasets: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("scorers", mode="before")
    @classmethod
    def _short_names(cls, value: Json) -> Json:
        """Let ``match: exact`` stand for its defaults."""
        if not isinstance(value, dict):
            return value
        return {k: {"kind": v} if isinstance(v, str) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _known(self) -> ScoringConfig:
        if JUDGE in self.scorers:
            raise ValueError(f"'{JUDGE}' is the LLM judge's name; name the scorer otherwise")
        for where, names in {"default": self.default, **self.datasets}.items():
            if not names:
                raise ValueError(f"{where}: name at least one scorer")
            for name in names:
                if name != JUDGE and name not in self.scorers:
                    known = ", ".join([*self.scorers, JUDGE])
                    raise ValueError(f"{where}: there is no scorer '{name}' (known: {known})")
        return self


class JudgeModelConfig(StrictModel):
    """One model that judges; as a candidate, without what only candidates have.

    Parameters
    ----------
    id : str
        What the records call it.
    target : TargetConfig
        Where it is called.
    price : PriceConfig or None
        US dollars.
    images : bool
        Whether it sees the pictures of a sample.
    """

    id: str = Field(min_length=1)
    target: TargetConfig
    price: PriceConfig | None = None
    images: bool = True


class JudgeConfig(StrictModel):
    """The LLM judge.

    Parameters
    ----------
    models : tuple of JudgeModelConfig
        One or several.
    rubric : str
        ``correctness`` (against the reference, yes or no), ``quality`` (without a reference, 1 to
        10), ``pairwise`` (against the answer of ``baseline``, in both orders), or the path of a
        template.
    baseline : str or None
        The candidate that ``pairwise``, or a template that names a winner, compares with.
    repeats : int
        Verdicts per model.
    combine : str or None
        ``majority`` of the verdicts (a tie is no score) or their ``mean``. None: the mean of a
        rubric with a scale, whose scores seldom have a majority, and the majority of others.
    invalid_retries : int
        How often an answer that is no verdict is asked for again; then the cell is unscored.
    structured : str
        ``json_schema`` or ``json_object``: asked of the endpoint; ``text``: parsed strictly;
        ``auto``: the best that the endpoint accepts.
    parameters : mapping
        Sent with every call to a judge.
    allow_candidates : bool
        Let a candidate judge; the records and the card then say so.
    """

    models: tuple[JudgeModelConfig, ...] = Field(min_length=1)
    rubric: str = "correctness"
    baseline: str | None = None
    repeats: int = Field(default=1, ge=1, le=25)
    combine: Literal["majority", "mean"] | None = None
    invalid_retries: int = Field(default=2, ge=0, le=10)
    structured: Literal["auto", "json_schema", "json_object", "text"] = "auto"
    parameters: dict[str, Json] = Field(default_factory=lambda: {"temperature": 0})
    allow_candidates: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.rubric == "pairwise" and self.baseline is None:
            raise ValueError("rubric 'pairwise' needs a 'baseline' to compare with")
        if self.rubric in ("correctness", "quality") and self.baseline is not None:
            raise ValueError(f"rubric '{self.rubric}' compares with nobody; remove 'baseline'")
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError("two judges have the same id; rename one")
        return self


class LabelConfig(StrictModel):
    """One labelling run.

    Parameters
    ----------
    data : SourceConfig
        What is labelled.
    candidates : tuple of CandidateConfig
        Who is asked, each with a ``target``.
    max_cost_usd : Decimal or None
        Candidates and judges together, over all runs with this work folder.
    output : Path
        The records: ``.jsonl``, ``.json`` (also ``.gz``), ``.parquet``, or a folder for sharded
        Parquet.
    rows_per_shard : int
        Rows of one Parquet file in a folder.
    work_dir : Path
        Where samples and all answers are kept.
    engine : str
        ``local`` or ``ray``.
    ray_address : str or None
        A running Ray cluster (``auto`` finds it); None starts one on this machine.
    seed : int
        Of ``shuffle`` and of the audit sample.
    """

    data: SourceConfig
    candidates: tuple[CandidateConfig, ...] = Field(min_length=1)
    ask: AskConfig = AskConfig()
    judge: JudgeConfig | None = None
    scoring: ScoringConfig = ScoringConfig()
    max_cost_usd: Decimal | None = Field(default=None, ge=0)
    output: Path = Path("records.jsonl")
    rows_per_shard: int = Field(default=10_000, ge=1)
    work_dir: Path = Path("runs/label")
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _consistent(self) -> LabelConfig:
        check_candidates(self.candidates)
        for candidate in self.candidates:
            if candidate.target is None:
                raise ValueError(f"candidate '{candidate.id}' has no 'target' to be asked at")
        lists = (self.scoring.default, *self.scoring.datasets.values())
        if self.judge is None and any(JUDGE in names for names in lists):
            raise ValueError("scoring names 'judge' and there is no 'judge' section; add one")
        if self.judge is not None:
            self._check_judge(self.judge)
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("ray_address is for engine 'ray' alone; set that, or remove it")
        if self.max_cost_usd is not None:
            prices = {entry.id: entry.price for entry in self.candidates}
            prices |= {} if self.judge is None else {m.id: m.price for m in self.judge.models}
            for model_id, price in prices.items():
                if price is None:
                    raise ValueError(f"max_cost_usd needs a price for '{model_id}'")
        return self

    def _check_judge(self, judge: JudgeConfig) -> None:
        ids = {candidate.id for candidate in self.candidates}
        if judge.baseline is not None and judge.baseline not in ids:
            raise ValueError(f"judge.baseline '{judge.baseline}' is no candidate")
        if both := self.judging_candidates:
            if not judge.allow_candidates:
                raise ValueError(
                    f"'{both[0]}' would judge its own answers; take another judge, or write "
                    "judge.allow_candidates: true"
                )

    @property
    def judging_candidates(self) -> tuple[str, ...]:
        """Ids of the candidates that also judge: the same id, or the same model at one target."""
        if self.judge is None:
            return ()
        judges = {model.id for model in self.judge.models}
        places = {_place(model.id, model.target) for model in self.judge.models}
        return tuple(
            candidate.id
            for candidate in self.candidates
            if candidate.id in judges
            or (candidate.target and _place(candidate.id, candidate.target) in places)
        )


def _place(model_id: str, target: TargetConfig) -> tuple[str, str]:
    match target:
        case AzureTargetConfig():
            url = target.endpoint
        case LoraVllmTargetConfig():
            url = min(target.base_urls)
        case PeftTargetConfig():
            url = str(target.experts)
        case _:
            url = target.base_url
    return url.rstrip("/"), target.model or model_id


def load_label_config(path: str | Path, *, overrides: dict[str, Json] | None = None) -> LabelConfig:
    """Read and validate a labelling config.

    Parameters
    ----------
    path : path
        A YAML file.
    overrides : mapping, optional
        Values from the command line by dotted key (``data.limit``); a ``Path`` among them is
        relative to the current folder.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    """
    file = Path(path)
    content = with_overrides(read_yaml(file), overrides or {}, source=str(file))
    config = validate(LabelConfig, content, source=str(file))
    base = file.parent.resolve()
    root = config.data.image_root
    data = config.data.model_copy(
        update={
            "path": _located(config.data.path, base),
            "image_root": None if root is None else (base / root).resolve(),
        }
    )
    judge = config.judge
    if judge is not None and judge.rubric.endswith((".md", ".txt", ".jinja")):
        judge = judge.model_copy(update={"rubric": str((base / judge.rubric).resolve())})
    moved = {
        "data": data,
        "judge": judge,
        "output": (base / config.output).resolve(),
        "work_dir": (base / config.work_dir).resolve(),
    }
    return config.model_copy(update=moved)


def _located(path: str, base: Path) -> str:
    """Make a path of something that is there absolute; leave hub ids and patterns' names alone."""
    local = any(mark in path for mark in "*?[") or (base / path).exists()
    local = local or path.startswith((".", "/"))
    if not local:
        return path
    place = base / path
    return str(place.parent.resolve() / place.name)  # a link keeps its own name
