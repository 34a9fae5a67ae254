"""The three tables of real outcomes, as training configs, and what is asked of the router on each.

Neither features nor head are named here: they are what ``router-train run`` does when the user says
nothing. Two tables record no cost; their prices are nominal, so that US dollars there say which
call is dearer and by about how much, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router_runtime.types import Json
from router_training.config import TrainingConfig

Sense = Literal[">=", "<="]


@dataclass(frozen=True)
class Demand:
    """A bound on a figure of the default recipe, mean over the seeds.

    Parameters
    ----------
    figure : str
        A key of ``measures.FIGURES``.
    sense : str
        ``>=`` or ``<=``.
    bound : float
    level : str
        ``must`` or ``aim``.
    """

    figure: str
    sense: Sense
    bound: float
    level: Literal["must", "aim"]

    def met(self, value: float) -> bool:
        """Whether ``value`` keeps the bound; NaN never does."""
        return value >= self.bound if self.sense == ">=" else value <= self.bound


@dataclass(frozen=True)
class Table:
    """One table of outcomes.

    Parameters
    ----------
    key, title : str
    records : str
        File name in the data folder.
    images : str or None
        Folder of pictures in the data folder.
    candidates : tuple of mappings
        Nominal prices, as in a training config; empty where real dollars are recorded.
    demands : tuple of Demand
    hidden_model : str
        The candidate that is hidden and added back.
    left_out : bool
        Whether it has several data sets, to be left out in turn.
    """

    key: str
    title: str
    records: str
    images: str | None
    candidates: tuple[Mapping[str, Json], ...]
    demands: tuple[Demand, ...]
    hidden_model: str
    left_out: bool = True

    def config(
        self, data: Path, *, seed: int, work: Path, limit: int | None = None, minilm: bool = False
    ) -> TrainingConfig:
        """Return the run on this table: data, prices and seed, with the default recipe."""
        content: dict[str, Json] = {
            "data": {"path": data / self.records, "limit": limit},
            "candidates": list(self.candidates),
            "output": work / "artifact",
            "work_dir": work,
            "seed": seed,
        }
        if self.images is not None:
            content["data"]["image_root"] = data / self.images
        if minilm:
            content["features"] = {"encoders": ["embedded", "sentence"]}
        return TrainingConfig.model_validate(content)


def _per_call(model_id: str, usd: float) -> Mapping[str, Json]:
    price = {"input_mtok": 0, "output_mtok": 0, "image": usd}
    return {"id": model_id, "modalities": ["text", "image"], "price": price}


def _per_mtok(model_id: str, input_usd: float, output_usd: float) -> Mapping[str, Json]:
    return {"id": model_id, "price": {"input_mtok": input_usd, "output_mtok": output_usd}}


TABLES: dict[str, Table] = {
    table.key: table
    for table in (
        Table(
            key="mmlu",
            title="RouteLLM MMLU (GPT-4 and Mixtral; nominal USD)",
            records="routellm_mmlu_gpt4_mixtral.jsonl.gz",
            images=None,
            candidates=(
                _per_mtok("mistralai/Mixtral-8x7B-Instruct-v0.1", 0.24, 0.24),
                _per_mtok("gpt-4-1106-preview", 10, 30),
            ),
            demands=(
                Demand("auc", ">=", 0.735, "must"),
                Demand("brier", "<=", 0.160, "must"),
                Demand("ece", "<=", 0.030, "must"),
                Demand("apgr", ">=", 0.660, "must"),
                Demand("cpt80", "<=", 0.60, "must"),
                Demand("auc", ">=", 0.755, "aim"),
                Demand("apgr", ">=", 0.69, "aim"),
                Demand("cpt50", "<=", 0.27, "aim"),
                Demand("cpt80", "<=", 0.55, "aim"),
            ),
            hidden_model="mistralai/Mixtral-8x7B-Instruct-v0.1",
            left_out=False,
        ),
        Table(
            key="routerbench",
            title="RouterBench (ARC-C, MBPP, WinoGrande; 11 models; real USD)",
            records="routerbench_0shot_arc_mbpp_winogrande.jsonl.gz",
            images=None,
            candidates=(),
            demands=(
                Demand("aiq", ">=", 0.848, "must"),
                Demand("brier", "<=", 0.195, "must"),
                Demand("ece", "<=", 0.045, "must"),
                Demand("gap_98", ">=", -0.022, "must"),
                Demand("cost_98", "<=", 0.55, "must"),
                Demand("aiq", ">=", 0.860, "aim"),
                Demand("gap_98", ">=", -0.022, "aim"),
                Demand("cost_98", "<=", 0.45, "aim"),
            ),
            hidden_model="mistralai/mixtral-8x7b-chat",
        ),
        Table(
            key="blindtest",
            title="BlindTest (4 VLMs, pictures; nominal USD)",
            records="blindtest_4vlm.jsonl.gz",
            images="blindtest_images",
            candidates=(
                _per_call("gemini-1.5-pro", 0.0009),
                _per_call("gpt-4o", 0.00425),
                _per_call("claude-3-sonnet", 0.0047),
                _per_call("claude-3.5-sonnet", 0.0048),
            ),
            demands=(
                Demand("auc", ">=", 0.855, "must"),
                Demand("brier", "<=", 0.137, "must"),
                Demand("ece", "<=", 0.035, "must"),
                Demand("lead", ">=", 0.045, "must"),
                Demand("picture_auc", ">=", 0.10, "must"),
                Demand("auc", ">=", 0.88, "aim"),
                Demand("lead", ">=", 0.07, "aim"),
                Demand("parity_cost", "<=", 0.25, "aim"),
            ),
            hidden_model="gemini-1.5-pro",
        ),
    )
}
"""The tables by key, with the musts and aims that are stated for the default recipe."""

LEFT_OUT_GAP, LEFT_OUT_BRIER = 0.005, 0.005
"""On a data set left out of training: most accuracy lost against always taking the default model,
and most Brier score above the training mean's."""
