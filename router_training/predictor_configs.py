"""What a training run may learn: heads on features, ``head:`` in YAML, and ``predictor:`` instead.

``fitting`` fits heads; ``learners`` knows who learns which predictor. The adapter of another kind
adds a config here and a line there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

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
    epochs : int
        Passes over the training rows at most.
    batch_size : int
        Rows of a step.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises linearly over ``warmup_ratio`` of the steps and falls to 0.
    warmup_ratio : float
        Share of the steps in which the learning rate rises.
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
    rank : int
        Of LoRA's matrices.
    alpha : float
        What they add is multiplied by ``alpha / rank``.
    dropout : float
        Share of their inputs that is left out at random while they learn.
    target_modules : tuple of str
        Ends of the names of the linear modules that are adapted; empty: all of the language model
        but its output.
    epochs : int
        Passes over the training rows at most.
    batch_size : int
        Rows that are computed together.
    accumulation : int
        So many batches make one step.
    eval_batch_size : int
        Rows that are measured together.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises linearly over ``warmup_ratio`` of the steps, then follows
        ``schedule`` to 0, or stays.
    warmup_ratio : float
        Share of the steps in which the learning rate rises.
    schedule : str
        How it goes on from there: along a line or a cosine to 0, or staying.
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
    system : str or None
        What is told first; None: words that name the models.
    question : str or None
        What is asked after the request; None: which model it is for.
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


class _HeadConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PlateauConfig(_HeadConfig):
    """Learn more slowly where validation no longer improves.

    Parameters
    ----------
    factor : float
        What the learning rate is multiplied by.
    patience : int
        Evaluations without a better validation loss that are borne; the next one lowers the rate.
    min_learning_rate : float
        It is not lowered further.
    """

    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(default=2, ge=0)
    min_learning_rate: float = Field(default=1e-6, ge=0)


class MlpConfig(_HeadConfig):
    """Neural head; the defaults are the published router's.

    Parameters
    ----------
    hidden_dims : tuple of int
        Widths of the hidden layers.
    dropout : float
        Share of a layer that is left out at random while it learns.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size : int
        Rows of one step.
    epochs : int
        Passes over the training rows at most.
    patience : int
        Evaluations on validation without a better one that end training.
    evaluate_steps : int or None
        Steps from one evaluation to the next; None: an epoch.
    plateau : PlateauConfig or None
        None: the learning rate stays as it is.
    tensorboard : Path or None
        Folder in which every fit gets a folder of figures for TensorBoard. It changes nothing that
        is learned and is kept in no artifact.
    ensemble : int
        Networks that differ in their seed only; their logits are averaged.
    label_smoothing : float
        Scores are drawn this share of the way to one half.
    pos_weight : str
        ``balanced`` gives good and bad answers of a model equal weight in its loss, whose total
        stays the same; the shift of the odds that this causes is taken out of the logits again.
    standardise : bool
        Features are centred and scaled by their training mean and deviation.
    search : int
        Random-search trials over the published grid, next to the settings given here; the lowest
        validation log loss wins.
    device : str
        ``auto`` takes a GPU when there is one. Only ``cpu`` is reproducible to the bit.
    """

    kind: Literal["mlp"] = "mlp"
    hidden_dims: tuple[Annotated[int, Field(ge=1, le=16_384)], ...] = (512, 256, 128)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=64, ge=2)
    epochs: int = Field(default=50, ge=1)
    patience: int = Field(default=10, ge=1)
    evaluate_steps: int | None = Field(default=None, ge=1)
    plateau: PlateauConfig | None = None
    tensorboard: Path | None = Field(default=None, exclude=True)
    weight_decay: float = Field(default=1e-5, ge=0)
    ensemble: int = Field(default=1, ge=1, le=64)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    pos_weight: Literal["none", "balanced"] = "none"
    standardise: bool = True
    search: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class XGBoostConfig(_HeadConfig):
    """Gradient-boosted trees, one booster per model.

    Parameters
    ----------
    n_estimators : int
        Trees at most.
    max_depth : int
        Of one tree.
    learning_rate : float
        What one tree adds.
    subsample : float
        Share of the rows that one tree sees.
    colsample : float
        Share of the features that one tree sees.
    min_child_weight : float
        The least weight of a leaf, as XGBoost measures it.
    reg_lambda : float
        L2 penalty on leaves.
    patience : int
        Rounds without a better validation log loss that end a booster.
    threads : int
        0 takes every core, which pays on an otherwise idle machine only.
    """

    kind: Literal["xgboost"] = "xgboost"
    n_estimators: int = Field(default=400, ge=1)
    max_depth: int = Field(default=4, ge=1, le=16)
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    subsample: float = Field(default=0.8, gt=0, le=1)
    colsample: float = Field(default=0.5, gt=0, le=1)
    min_child_weight: float = Field(default=5.0, ge=0)
    reg_lambda: float = Field(default=2.0, ge=0)
    patience: int = Field(default=30, ge=1)
    threads: int = Field(default=1, ge=0)


class LogisticConfig(_HeadConfig):
    """Linear head.

    Parameters
    ----------
    C : tuple of float
        Inverse strengths of the L2 penalty (as in scikit-learn, on standardised features), among
        which validation chooses.
    max_iterations : int
        Of the solver.
    """

    kind: Literal["logistic"] = "logistic"
    C: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0), min_length=1
    )
    max_iterations: int = Field(default=300, ge=1)


class KnnConfig(_HeadConfig):
    """Nearest neighbours on a projection of the features.

    Parameters
    ----------
    metric : str
        Of the distance.
    k : tuple of int
        Numbers of neighbours, among which validation chooses.
    components : tuple of int
        Numbers of principal components, among which validation chooses.
    pseudo_count : float
        Neighbours that scored the model's base rate, added to the real ones.
    """

    kind: Literal["knn"] = "knn"
    metric: Literal["cosine", "euclidean"] = "cosine"
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 20, 40, 80, 160), min_length=1)
    components: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(16, 64), min_length=1
    )
    pseudo_count: float = Field(default=2.0, gt=0)


class PriorConfig(_HeadConfig):
    """Base rates; has no settings."""

    kind: Literal["prior"] = "prior"


MemberConfig: TypeAlias = Annotated[
    MlpConfig | XGBoostConfig | LogisticConfig | KnnConfig | PriorConfig,
    Field(discriminator="kind"),
]


class StackConfig(_HeadConfig):
    """Shrunken combination of other heads.

    Parameters
    ----------
    heads : tuple of configs
        The members; a stack cannot be one.
    folds : int
        Cross-validation folds from whose left-out predictions the weights are fitted.
    shrinkage : float
        Strength, in rows, of the pull of a model's weights towards the weights common to all
        models, and of those towards equal weights.
    """

    kind: Literal["stack"] = "stack"
    heads: tuple[MemberConfig, ...] = Field(
        default=(LogisticConfig(), KnnConfig(), MlpConfig()), min_length=1
    )
    folds: int = Field(default=5, ge=2, le=50)
    shrinkage: float = Field(default=20.0, ge=0)


HeadConfig: TypeAlias = Annotated[
    MlpConfig | XGBoostConfig | LogisticConfig | KnnConfig | PriorConfig | StackConfig,
    Field(discriminator="kind"),
]
