"""Model folders: local ones as they are, hub ids through the hub's cache; one place for its errors.

Models are then loaded from the folder alone, so that the network is asked once, and what the folder
lacks is an error instead of a second download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from router_runtime.errors import EncoderError

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Weights as safetensors, configuration, vocabulary. No pickles, no Python code."""

OTHER_RUNTIMES = ("onnx", "openvino")
"""Folders of a repository that hold the same model once more, for other runtimes."""


def model_folder(
    model: str, *, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES
) -> Path:
    """Return the folder of ``model``: a local folder, or a hub id's snapshot.

    Raises
    ------
    EncoderError
        Neither; the message says what to do.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")):
        raise EncoderError(f"model folder '{model}' does not exist. Give an existing folder.")
    return snapshot(model, revision=revision, patterns=patterns)


def snapshot(model: str, *, revision: str | None = None, patterns: Sequence[str]) -> Path:
    """Return the local copy of a hub repository's files that match ``patterns``.

    Without a network, or with ``HF_HUB_OFFLINE=1``, the copy that an earlier download left is
    taken; if there is none the answer comes at once, without retries.

    Raises
    ------
    EncoderError
        The repository is not there, not public, or cannot be reached and was never downloaded.
    """
    at = f"'{model}'" + (f" at revision '{revision}'" if revision else "")
    try:
        path = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=[f"{folder}/*" for folder in OTHER_RUNTIMES],
        )
    except LocalEntryNotFoundError as error:
        raise EncoderError(
            f"weights of {at} are not on this machine and the model hub cannot be reached. Run "
            "once with a network (and without HF_HUB_OFFLINE), or copy the model to this machine "
            "and give its path."
        ) from error
    except GatedRepoError as error:
        raise EncoderError(
            f"model {at} is gated: accept its licence on the hub and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise EncoderError(
            f"model {at} is neither a local folder nor known to the model hub. Check the name and "
            "the revision; for a private model set HF_TOKEN."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise EncoderError(
            f"download of {at} failed ({type(error).__name__}). Try again, or copy the model to "
            "this machine and give its path."
        ) from error
    return Path(path)
