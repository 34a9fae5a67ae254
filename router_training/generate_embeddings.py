"""Stage 2: evaluation records to embedding arrays, with the published script's names and flags.

    python router_training/generate_embeddings.py \
        --train-json hf_evaluations_train.json --test-json hf_evaluations_test.json \
        --clip-server 0.0.0.0:51000

writes ``hf_train_embeddings.npy`` and ``hf_test_embeddings.npy`` (float32, text half then picture
half) and, last, ``hf_embeddings_metadata.json``. Vectors are kept in a cache as they come, so that
an interrupted run continues. ``router-train embed`` does the same for a config.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's folder first on the path, where ``config`` or ``evaluate`` would hide
    # other packages' modules of that name. The repository's root is what belongs there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from router_runtime.console import require

    require("router_training.pipeline", extra="train")

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from router_runtime.console import out, progress_bar, run_app
from router_runtime.errors import ConfigError
from router_runtime.legacy import plain_features
from router_runtime.prediction.encoders.specs import (
    ClipSpec,
    EmbeddedSpec,
    EncoderRuntime,
    EncoderSpec,
    RemoteSpec,
    SentenceSpec,
)
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import F32, Progress, Query
from router_training.embed import prepare_encoders
from router_training.formats import Row
from router_training.labels import evaluations_from_rows, read_evaluations
from router_training.pictures import Pictures
from router_training.stage_files import (
    METADATA,
    TEST_EMBEDDINGS,
    TRAIN_EMBEDDINGS,
    write_embeddings,
)


class EncoderName(StrEnum):
    """Values of ``--encoder``; ``remote`` is clip-as-service, ``nvclip`` an NV-CLIP NIM."""

    CLIP = "clip"
    REMOTE = "remote"
    NVCLIP = "nvclip"
    SENTENCE = "sentence"
    EMBEDDED = "embedded"


_SPECS: dict[EncoderName, EncoderSpec] = {
    EncoderName.CLIP: ClipSpec(),
    EncoderName.REMOTE: RemoteSpec(
        protocol="clip-as-service", url="http://127.0.0.1:51000", model="ViT-B-32", dim=512
    ),
    EncoderName.NVCLIP: RemoteSpec(),
    EncoderName.SENTENCE: SentenceSpec(),
    EncoderName.EMBEDDED: EmbeddedSpec(),
}


def load_embedding_model(clip_server: str | None = None) -> EmbeddingGenerator:
    """Return what turns queries into the published layout.

    Parameters
    ----------
    clip_server : str, optional
        ``host:port`` of clip-as-service; default: the environment's ``CLIP_SERVER``. Without
        either, CLIP runs in this process (extra ``clip``).

    Raises
    ------
    EncoderError, MissingDependencyError
        If the encoder cannot be had.
    """
    spec = encoder_spec(None, clip_server or os.environ.get("CLIP_SERVER"))
    return _generator(plain_features(spec), (), EncoderRuntime(), None)


def generate_embeddings_for_dataset(
    client: EmbeddingGenerator,
    data: Sequence[Mapping[str, Any]],
    max_samples: int | None = None,
    *,
    image_root: str | Path = ".",
    progress: Progress | None = None,
) -> F32:
    """Return the embeddings of evaluation records.

    All pictures of a record count: their vectors are averaged. The half of a missing modality is
    zeros.

    Parameters
    ----------
    client : EmbeddingGenerator
        From ``load_embedding_model``.
    data : sequence of mapping
        Records with ``prompt``, ``images`` and ``model_scores``.
    max_samples : int, optional
        Only the first ones.
    image_root : path
        Where pictures given as paths lie.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    ndarray of shape (n_records, n_features), float32

    Raises
    ------
    DataError
        Naming the record and the field that cannot be used.
    """
    rows = (Row(number, record) for number, record in enumerate(data[:max_samples], start=1))
    evaluations = evaluations_from_rows(
        rows, source="data", pictures=Pictures(Path(image_root)), rule=client.spec.text
    )
    return client.encode(evaluations.queries, progress=progress)


def encoder_spec(name: EncoderName | None, clip_server: str | None) -> EncoderSpec:
    """Return the encoder's spec; without a name, ``remote`` if a server is given and else ``clip``.

    Raises
    ------
    ConfigError
        If a server is given for an encoder that runs in this process.
    """
    if name is None:
        name = EncoderName.REMOTE if clip_server else EncoderName.CLIP
    spec = _SPECS[name]
    if not clip_server:
        return spec
    if not isinstance(spec, RemoteSpec):
        raise ConfigError(
            f"--encoder {name} runs in this process and uses no server; leave out --clip-server "
            "(and the variable CLIP_SERVER), or choose --encoder remote."
        )
    address = clip_server.removeprefix("grpc://")
    url = address if "://" in address else f"http://{address}"
    return spec.model_copy(update={"url": url.rstrip("/")})


def _generator(
    features: FeatureSpec,
    training_queries: Sequence[Query],
    runtime: EncoderRuntime,
    cache: Path | None,
) -> EmbeddingGenerator:
    encoders = prepare_encoders(
        features, training_queries, runtime=runtime, seed=0, cache_folder=cache
    )
    return EmbeddingGenerator(features, encoders)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    train_json: Annotated[Path, typer.Option(help="Records to train on.")] = Path(
        "hf_evaluations_train.json"
    ),
    test_json: Annotated[Path, typer.Option(help="Records to test on.")] = Path(
        "hf_evaluations_test.json"
    ),
    clip_server: Annotated[
        str | None,
        typer.Option(envvar="CLIP_SERVER", help="host:port of clip-as-service (protocol: http)."),
    ] = None,
    encoder: Annotated[
        EncoderName | None, typer.Option(help="Default: remote with a server, else clip.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the arrays go.")] = Path("."),
    cache_dir: Annotated[
        Path | None, typer.Option(help="Default: .cache in the output folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per call of the encoder.")] = 64,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first ones.")] = None,
) -> None:
    """Turn evaluation records into embedding arrays."""
    features = plain_features(encoder_spec(encoder, clip_server))
    train, test = (
        read_evaluations(path, rule=features.text).queries[:max_samples]
        for path in (train_json, test_json)
    )
    out.print(f"Loaded {len(train)} train samples and {len(test)} test samples")
    generator = _generator(
        features, train, EncoderRuntime(batch_size=batch_size), cache_dir or output_dir / ".cache"
    )
    with progress_bar("train embeddings") as progress:
        X_train = generator.encode(train, progress=progress)
    with progress_bar("test embeddings") as progress:
        X_test = generator.encode(test, progress=progress)
    write_embeddings(output_dir, generator, train=(train, X_train), test=(test, X_test))
    for name, array in ((TRAIN_EMBEDDINGS, X_train), (TEST_EMBEDDINGS, X_test)):
        out.print(f"Saved {output_dir / name}: {array.shape[0]} x {array.shape[1]}")
    out.print(f"Saved {output_dir / METADATA}")


if __name__ == "__main__":
    run_app(app)
