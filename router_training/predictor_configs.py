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


PredictorConfig = Annotated[SequenceConfig | PromptedConfig, Field(discriminator="kind")]
