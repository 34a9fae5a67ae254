"""A process that starts, decides once on a text and a picture, and tells how long and how large.

    python starting.py routed CONFIG PICTURE
    python starting.py open_clip CHECKPOINT PICTURE

The second is what a program does without model-router: open_clip loads the model, its transform and
its tokenizer, and both halves encode once.
"""

from __future__ import annotations

import json
import os
import sys
import time

STARTED = time.perf_counter()
os.environ.setdefault("OMP_NUM_THREADS", "1")
TEXT = "What is in the second row of this table?"


def routed(config: str, picture: str) -> None:
    from router_runtime import ModelRouter

    ModelRouter.from_config(config).decide(TEXT, [picture])
    if "torch" in sys.modules:
        raise SystemExit("torch was imported")


def with_open_clip(checkpoint: str, picture: str) -> None:
    import torch

    from router_runtime.weights import torch_setup  # noqa: F401  makes torchvision importable

    # isort: split
    import open_clip
    import PIL.Image

    torch.set_num_threads(1)
    name = "ViT-B-32-quickgelu"
    model, prepare = open_clip.create_model_from_pretrained(name, pretrained=checkpoint)
    tokenize = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        model.eval().encode_text(tokenize([TEXT]))
        model.encode_image(prepare(PIL.Image.open(picture))[None])


def resident_mb() -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    {"routed": routed, "open_clip": with_open_clip}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"seconds": time.perf_counter() - STARTED, "mb": resident_mb()}))
