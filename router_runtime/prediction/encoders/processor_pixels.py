"""Pictures to the tensor that models of transformers read, without transformers.

Their processors (in Pillow form) resize a picture to a fixed size, which is ``clip_pixels``'s
``squash``, or resize its shorter side to one size and cut the middle out in another, smaller one:
DINOv2 takes 224 pixels out of 256. Where an odd number of pixels is cut off, more are cut off at
the end, where open_clip rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.clip_pixels import Interpolation, Place, Preprocessing

_INTERPOLATIONS: Final[dict[int, Interpolation]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_RESCALED: Final = 1 / 255
_DONE: Final = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True)
class CroppedPreprocessing(Preprocessing):
    """Resize the shorter side, cut the middle out.

    Parameters
    ----------
    shorter_side : int
        After resizing; at least ``height`` and ``width``, which are equal.

    Raises
    ------
    EncoderError
        A value is outside its range.
    """

    shorter_side: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.height != self.width or self.shorter_side < self.height:
            raise EncoderError(
                f"pictures whose shorter side is {self.shorter_side} cannot be cut to "
                f"{self.height} x {self.width}: only to a square within. Correct it in the "
                "encoder's configuration."
            )

    def _places(self, width: int, height: int) -> tuple[Place, Place]:
        short = min(width, height)
        rows, columns = (int(self.shorter_side * side / short) for side in (height, width))
        return self._middle(rows), self._middle(columns)

    def _middle(self, resized: int) -> Place:
        return Place(resized, (resized - self.height) // 2, slice(self.height))


def from_processor(config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of an image processor's ``to_dict()``.

    Raises
    ------
    EncoderError
        It does something else than to resize, perhaps cut, and normalise.
    """
    size, crop = config.get("size") or {}, config.get("crop_size") or {}
    shared: dict[str, Any] = {
        "mean": tuple(config.get("image_mean") or ()),
        "std": tuple(config.get("image_std") or ()),
        "interpolation": _INTERPOLATIONS.get(int(config.get("resample") or 0)),
    }
    plain = (
        all(config.get(name) for name in _DONE)
        and not config.get("do_pad")
        and abs(float(config.get("rescale_factor") or 0) - _RESCALED) < 1e-9
        and None not in shared.values()
    )
    cut = bool(config.get("do_center_crop"))
    if plain and not cut and _given(size) == {"height", "width"}:
        return Preprocessing(size["height"], size["width"], resize_mode="squash", **shared)
    if plain and cut and _given(size) == {"shortest_edge"} and _given(crop) == {"height", "width"}:
        return CroppedPreprocessing(
            crop["height"], crop["width"], shorter_side=size["shortest_edge"], **shared
        )
    told = {name: config.get(name) for name in ("size", "crop_size", "resample", *_DONE)}
    raise EncoderError(
        f"pictures of this model are prepared in a way that is not exported ({told}). Serve it "
        "with 'engine: torch'."
    )


def _given(size: Mapping[str, Any]) -> set[str]:
    return {name for name, value in size.items() if value is not None}
