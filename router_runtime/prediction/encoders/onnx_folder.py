"""The folder of an exported encoder: what ``exporting_encoders`` writes and ``onnx_encoder`` reads.

::

    encoder.json                     this manifest; written last, so that its existence means that
                                     the folder is complete
    text.<precision>.onnx, .bin      token ids to vectors: the graph, and its numbers
    picture.<precision>.onnx, .bin   pixels to vectors
    bpe_simple_vocab_16e6.txt.gz     the merges of CLIP's tokenizer, or
    tokenizer.json                   another tokenizer

To change the format: give a new form a class of its own beside those of today (a field with a
default would change the fingerprints of folders that exist), raise ``format_version`` and leave the
earlier numbers in its type; ``tests/data/encoder-v<n>.json`` are manifests of each version.

ONNX graphs are data: nothing in the folder is executed but the operators of ONNX Runtime. Every
file that is used is compared with the manifest's digest before it is read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import file_digest, fingerprint_of
from router_runtime.prediction.encoders.clip_pixels import (
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from router_runtime.prediction.encoders.processor_pixels import CroppedPreprocessing
from router_runtime.prediction.encoders.specs import EncoderSpec, Spec
from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel, problems

MANIFEST = "encoder.json"
EQUAL_WITHIN = 1e-4
"""Largest difference of L2-normalised vectors between two graphs that count as the same.

Kernels that add in another order differ by 1e-7 to 1e-5.
"""
EQUAL_COSINE = 0.9999
"""Least cosine from picture file to vector. Pixels here are rounded once where Pillow rounds twice,
and large JPEGs are decoded at a fraction of their size; of ViT-B-32 that leaves 0.999998."""

Precision = Literal["fp32", "int8"]
ServedPrecision = Literal["fp32", "bf16", "int8"]
"""``bf16`` computes the graphs of ``fp32`` in bfloat16, and is an encoder of its own."""
TOKENIZER_FILE = "tokenizer.json"
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_ANY_SPEC: TypeAdapter[EncoderSpec] = TypeAdapter(EncoderSpec)


class TextHalf(StrictModel):
    """How texts become token ids with CLIP's own tokenizer. What follows the end is never read.

    Parameters
    ----------
    dim : int
        Columns of the vectors.
    length : int
        Tokens of a full window, special tokens included.
    max_windows : int
        Windows kept of a long text.
    cleaning : str
        What the tokenizer does to a text first; see ``clip_tokenizer``.
    """

    dim: int = Field(ge=1)
    length: int = Field(ge=3)
    max_windows: int = Field(ge=1)
    tokenizer: Literal["clip"] = "clip"
    merges: FileName
    cleaning: Literal["lower", "whitespace", "canonicalize"]

    @property
    def words(self) -> str:
        """The tokenizer's file."""
        return self.merges


class JsonTextHalf(StrictModel):
    """How texts become token ids with a ``tokenizer.json``.

    Parameters
    ----------
    dim, length, max_windows : int
        As in ``TextHalf``.
    words : str
        The file.
    padding : {"ignored", "masked", "read"}
        What fills a shorter window up is never read; or is, unless the graph is told where the
        window ends; or is part of what the model was trained on, always to the full length.
    pad_id : int
        The token that fills up.
    """

    dim: int = Field(ge=1)
    length: int = Field(ge=3)
    max_windows: int = Field(ge=1)
    tokenizer: Literal["json"] = "json"
    words: FileName = TOKENIZER_FILE
    padding: Literal["ignored", "masked", "read"]
    pad_id: int = Field(ge=0)


AnyTextHalf = Annotated[TextHalf | JsonTextHalf, Field(discriminator="tokenizer")]


class PictureHalf(StrictModel):
    """How pictures become pixels; the fields are those of ``clip_pixels.Preprocessing``."""

    dim: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: ResizeMode
    interpolation: Interpolation
    fill_color: int

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns a picture into pixels."""
        return Preprocessing(**self.model_dump(exclude={"dim"}))


class CroppedPictureHalf(PictureHalf):
    """The same for ``processor_pixels.CroppedPreprocessing``."""

    shorter_side: int = Field(ge=1)

    @property
    def preprocessing(self) -> CroppedPreprocessing:
        """What turns a picture into pixels."""
        return CroppedPreprocessing(**self.model_dump(exclude={"dim"}))


AnyPictureHalf = CroppedPictureHalf | PictureHalf


def picture_half(preprocessing: Preprocessing, *, dim: int) -> AnyPictureHalf:
    """Return what a manifest keeps of ``preprocessing``."""
    kind = CroppedPictureHalf if isinstance(preprocessing, CroppedPreprocessing) else PictureHalf
    return kind.model_validate({"dim": dim, **dataclasses.asdict(preprocessing)})


class Measured(StrictModel):
    """What an export found on its own samples, against the encoder that was exported.

    Parameters
    ----------
    samples : int
    max_abs_difference : float
        Of the L2-normalised vectors, both made of the same token ids and the same pixels.
    mean_cosine, min_cosine : float
        From text or picture file to vector, tokens and pixels being made here and there.
    """

    samples: int = Field(ge=1)
    max_abs_difference: float = Field(ge=0)
    mean_cosine: float
    min_cosine: float

    @property
    def equal(self) -> bool:
        """Whether the two differ by the order of additions and the rounding of pixels alone."""
        return self.max_abs_difference <= EQUAL_WITHIN and self.min_cosine >= EQUAL_COSINE


class HalfFile(StrictModel):
    """One graph.

    Parameters
    ----------
    file, data : str
        The graph, and the numbers in it. A file of its own can be mapped into memory, which takes
        half of the time and less memory than reading it as a part of the graph.
    parameters : int
        Numbers in it.
    weight_bits : int
        Of the quantised matrices; 32 where none is. Seven bits do not saturate the 16-bit sums of
        processors without VNNI, eight do.
    fp32_blocks : tuple of int
        Transformer blocks that stay in float32, because they lost most.
    measured : Measured
    """

    file: FileName
    data: FileName
    parameters: int = Field(ge=1)
    weight_bits: Literal[7, 8, 32] = 32
    fp32_blocks: tuple[int, ...] = ()
    measured: Measured


class Variant(StrictModel):
    """Both halves in one precision."""

    text: HalfFile | None
    picture: HalfFile | None

    @property
    def equal(self) -> bool:
        """Whether it gives what the exported encoder gives."""
        return all(half is None or half.measured.equal for half in (self.text, self.picture))


class OnnxManifest(StrictModel):
    """``encoder.json``.

    Parameters
    ----------
    spec : dict
        The exported encoder's spec.
    source_fingerprint : str
        Its fingerprint.
    text, picture
        None where it has no such half.
    variants : mapping of precision to Variant
    files : mapping of name to hex sha256
        Every file of the folder but this one.
    """

    format_version: Literal[1, 2] = 2
    created_by: str
    spec: dict[str, Json]
    source_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    text: AnyTextHalf | None
    picture: AnyPictureHalf | None
    variants: dict[Precision, Variant] = Field(min_length=1)
    files: dict[FileName, str]

    @property
    def encoder_spec(self) -> EncoderSpec:
        """The exported encoder's spec.

        Raises
        ------
        EncoderError
            It is none of this version.
        """
        try:
            return _ANY_SPEC.validate_python(self.spec)
        except ValidationError as error:
            raise EncoderError(
                f"the exported encoder's spec is not understood: {problems(error)}. Export the "
                "encoder again."
            ) from error

    def used_files(self, precision: ServedPrecision) -> tuple[str, ...]:
        """Return the files that a precision needs."""
        variant = self.variants[exported_as(precision)]
        names = [self.text.words] if self.text is not None else []
        for half in (variant.text, variant.picture):
            names += [] if half is None else [half.file, half.data]
        return tuple(sorted(names))

    def fingerprint(self, precision: ServedPrecision) -> str:
        """Return the fingerprint of the encoder that a precision makes.

        It covers the source's own (weights, preprocessing, windows), the graphs with their
        quantised weights, and what is done to texts and pictures here.
        """
        return fingerprint_of(
            {
                "kind": "onnx",
                "source": self.source_fingerprint,
                "precision": precision,
                "text": self.text and self.text.model_dump(mode="json"),
                "picture": self.picture and self.picture.model_dump(mode="json"),
                "files": {name: self.files.get(name) for name in self.used_files(precision)},
            }
        )

    def stands_for(self, precision: ServedPrecision) -> str | None:
        """Return the fingerprint of the encoder that a precision equals; None: of no other."""
        equal = precision != "bf16" and self.variants[precision].equal
        return self.source_fingerprint if equal else None

    @property
    def served(self) -> tuple[ServedPrecision, ...]:
        """The precisions in which it can be served."""
        exported: list[ServedPrecision] = [*self.variants]
        return (*exported, "bf16") if "fp32" in exported else tuple(exported)


def exported_as(precision: ServedPrecision) -> Precision:
    """Return the precision whose files are read."""
    return "fp32" if precision == "bf16" else precision


def read_manifest(folder: Path) -> OnnxManifest:
    """Return the manifest of one exported encoder.

    Raises
    ------
    EncoderError
        The folder is not complete, or another version wrote it.
    """
    path = folder / MANIFEST
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(
            f"'{folder}' is no complete exported encoder: {MANIFEST} cannot be read. Export it "
            f"with: model-router export-encoder SPEC --output {folder}"
        ) from error
    try:
        manifest = OnnxManifest.model_validate_json(content)
    except ValidationError as error:
        raise EncoderError(
            f"'{path}' is damaged or of another version ({problems(error)}). Export the encoder "
            "again."
        ) from error
    unlisted = {
        name
        for precision in manifest.variants
        for name in manifest.used_files(precision)
        if name not in manifest.files
    }
    if unlisted:
        raise EncoderError(
            f"'{path}' is damaged: it has no digest of '{min(unlisted)}'. Export the encoder again."
        )
    return manifest


def find_exported(folder: Path, spec: Spec) -> tuple[Path, OnnxManifest]:
    """Return the exported encoder of ``spec``: ``folder`` itself, or a folder in it.

    Raises
    ------
    EncoderError
        There is none; the message names those that are there.
    """
    places = _places(folder)
    wanted = spec.model_dump(mode="json")
    others = []
    for place in places:
        manifest = read_manifest(place)
        if manifest.encoder_spec.model_dump(mode="json") == wanted:
            return place, manifest
        others.append(_shown(manifest.spec))
    there = f"it holds {'; '.join(others)}" if others else "it holds no exported encoder"
    raise EncoderError(
        f"'{folder}' holds no export of the encoder {_shown(wanted)}: {there}. Export it with: "
        f"model-router export-encoder SPEC --output {folder}"
    )


def exported_fingerprints(folder: Path) -> list[tuple[ServedPrecision, str]]:
    """Return precision and fingerprint of all that a folder, or the folders in it, can serve.

    Raises
    ------
    EncoderError
        A manifest is damaged.
    """
    manifests = [read_manifest(place) for place in _places(folder)]
    return [(p, manifest.fingerprint(p)) for manifest in manifests for p in manifest.served]


def _places(folder: Path) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST}"))


def variant_of(folder: Path, manifest: OnnxManifest, precision: ServedPrecision) -> Variant:
    """Return the files of a folder that one precision reads.

    Raises
    ------
    EncoderError
        It was not exported.
    """
    stored = exported_as(precision)
    if stored not in manifest.variants:
        raise EncoderError(
            f"'{folder}' holds no {stored} (exported: {', '.join(sorted(manifest.variants))}). "
            f"Export it with: model-router export-encoder SPEC --precision {stored}"
        )
    return manifest.variants[stored]


def checked_file(folder: Path, manifest: OnnxManifest, name: str) -> Path:
    """Return the path of a file, having compared its digest.

    Raises
    ------
    EncoderError
        The file is missing or changed.
    """
    path = folder / name
    try:
        digest = file_digest(path)
    except OSError as error:
        raise EncoderError(
            f"'{path}' cannot be read ({error.strerror}). Export the encoder again."
        ) from error
    if digest != manifest.files[name]:
        raise EncoderError(f"'{path}' was changed after it was exported. Export the encoder again.")
    return path


def _shown(spec: dict[str, Json]) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.items() if value is not None)
