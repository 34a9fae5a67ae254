"""Predictors that a training run may learn instead of a head on features: ``predictor:`` in YAML.

``learners`` knows who learns which; the adapter of another kind adds a config here and a line
there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router_runtime.prediction.prompted import PromptedConfig
from router_runtime.yaml_config import StrictModel

Objective = Literal["auto", "one", "several"]


class SequenceConfig(StrictModel):
    """A transformer that reads the text, fine-tuned whole.

    Parameters
    ----------
    base : str
        Local folder or hub id of a transformers model with a tokenizer; weights as safetensors.
    objective : str
        ``one``: exactly one label of a row is right (softmax). ``several``: any number of models
        may be good, unscored ones teach nothing (a sigmoid each). ``auto``: whichever the training
        rows show.
    epochs, batch_size : int
        Passes over the training rows at most, and rows of a step.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises linearly over ``warmup_ratio`` of the steps and falls to 0.
    warmup_ratio : float
    max_grad_norm : float
        Longer gradients are cut to this length.
    patience : int
        Epochs without a better validation before it stops.
    max_tokens : int
        Longer texts keep their end, where the question stands.
    """

    kind: Literal["sequence"] = "sequence"
    base: str = Field(default="distilbert-base-uncased", min_length=1)
    objective: Objective = "auto"
    epochs: int = Field(default=3, ge=1, le=1000)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=5e-5, gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    patience: int = Field(default=2, ge=1)
    max_tokens: int = Field(default=256, ge=8, le=1 << 20)


Schedule = Literal["linear", "cosine", "constant"]


class AdapterConfig(StrictModel):
    """A LoRA adapter on the experts' own base, which names the model that should answer.

    Parameters
    ----------
    base : str
        Local folder or hub id of a causal or vision-language model with a chat template; weights as
        safetensors.
    revision : str or None
        Of a hub id.
    dtype : str
        Type of the base's weights; ``auto`` is that of the file, and float32 where a GPU computes
        nothing in bfloat16. The adapter itself learns in float32.
    rank, alpha, dropout : int, float, float
        Of LoRA.
    target_modules : tuple of str
        Ends of the names of the linear modules that are adapted; empty: all of the language model
        but its output.
    epochs, batch_size : int
        Passes over the training rows at most, and rows that are computed together.
    accumulation : int
        So many batches make one step.
    eval_batch_size : int
        Rows that are measured together.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises linearly over ``warmup_ratio`` of the steps, then follows
        ``schedule`` to 0, or stays.
    warmup_ratio : float
    schedule : str
    max_grad_norm : float
        Longer gradients are cut to this length.
    patience : int
        Epochs without a better validation before it stops.
    gradient_checkpointing : bool
        Compute again instead of keeping: less memory, more time, the same numbers.
    max_tokens : int
        Longer prompts lose the beginning of the request's text.
    max_side : int
        Larger pictures are shrunk to so many pixels a side.
    system, question : str or None
        What is told first, and asked; None: words that name the models.
    """

    kind: Literal["adapter"] = "adapter"
    base: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0, le=1e6)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[Annotated[str, Field(pattern=r"^[\w.]+$")], ...] = ()
    epochs: int = Field(default=3, ge=1, le=1000)
    batch_size: int = Field(default=4, ge=1, le=4096)
    accumulation: int = Field(default=2, ge=1, le=4096)
    eval_batch_size: int = Field(default=4, ge=1, le=4096)
    learning_rate: float = Field(default=2e-4, gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    schedule: Schedule = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    patience: int = Field(default=3, ge=1)
    gradient_checkpointing: bool = False
    max_tokens: int = Field(default=4096, ge=16, le=1 << 20)
    max_side: int = Field(default=1280, ge=16, le=1 << 16)
    system: str | None = None
    question: str | None = None


PredictorConfig = Annotated[
    AdapterConfig | SequenceConfig | PromptedConfig, Field(discriminator="kind")
]
