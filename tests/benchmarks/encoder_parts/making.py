"""Tiny random encoders of real classes, with real tokenizers and processors."""

from __future__ import annotations

import json
from pathlib import Path

from router_runtime.weights import torch_setup  # isort: skip - makes transformers importable

import safetensors.torch
import tokenizers
import torch
import transformers
from experts_parts.making import END, TEXT

assert torch_setup

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
PICTURE = TOWER | {"image_size": 32, "patch_size": 16}
CORPUS = ["the quick brown fox jumps over the lazy dog", "what is the capital of Peru?"] * 5
LETTERS = tokenizers.pre_tokenizers.ByteLevel.alphabet()


def tokenizer(kind: str, length: int) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer trained on the spot, with the special tokens of ``kind``."""
    pad, start, end = "<pad>", "<|startoftext|>", "<|endoftext|>"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[pad, start, end], initial_alphabet=LETTERS
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}" if kind == "clip" else f"$A {end}",
        special_tokens=[(start, 1), (end, 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"] if kind == "clip" else ["input_ids"],
    )


def save(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    width: int = 16,
    side: int = 32,
    patch: int = 16,
    crop: bool = True,
) -> torch.nn.Module:
    """Write a tiny random model of ``kind`` with its processors; return the model.

    ``side`` and ``patch`` are the pixels of its pictures and of their parts. Without ``crop`` the
    whole of a picture is seen, squashed.
    """
    torch.manual_seed(seed)
    tower = TOWER | {"hidden_size": width}
    picture = tower | {"image_size": side, "patch_size": patch}
    text = tower | {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size = {"height": side, "width": side}
    resize = {"size": {"shortest_edge": side} if crop else size, "crop_size": size}
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text | {"max_position_embeddings": 20},
            vision_config=picture,
            projection_dim=12,
        )
        model = transformers.CLIPModel(config)
        transformers.CLIPImageProcessor(**resize).save_pretrained(folder)
    elif kind == "siglip":
        config = transformers.SiglipConfig(
            text_config=text | {"max_position_embeddings": 16}, vision_config=picture
        )
        model = transformers.SiglipModel(config)
        transformers.SiglipImageProcessor(size=size).save_pretrained(folder)
    else:
        classes = {
            "dinov2": ("Dinov2Config", "Dinov2Model"),
            "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
        }
        config_class, model_class = (getattr(transformers, name) for name in classes[kind])
        model = model_class(config_class(**picture))
        transformers.BitImageProcessor(
            **resize, image_mean=[0.5] * 3, image_std=[0.2] * 3
        ).save_pretrained(folder)
    if kind in ("clip", "siglip"):
        tokenizer(kind, 20 if kind == "clip" else 16).save_pretrained(folder)
    for parameter in model.parameters():  # make a random model's outputs differ visibly
        if parameter.dim() > 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def make_open_clip(folder: Path, *, seed: int = 0, side: int = 32, patch: int = 16) -> Path:
    """Write a tiny random model as open_clip reads it from a folder; it sees whole pictures."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": side, "layers": 1, "width": 64, "patch_size": patch},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    statistics = {"mean": [0.5] * 3, "std": [0.2] * 3, "resize_mode": "squash"}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": statistics})
    )
    torch.manual_seed(seed)
    state = open_clip.CLIP(**config).state_dict()
    noisy = {k: v + 0.1 * torch.randn_like(v) if v.dim() > 1 else v for k, v in state.items()}
    tensors = {name: tensor.contiguous() for name, tensor in noisy.items()}
    safetensors.torch.save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def make_llava(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny LLaVA, whose pictures all have the same number of tokens, with its processor."""
    torch.manual_seed(seed)
    words = turns_tokenizer(["<image>"])
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**PICTURE),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    ).save_pretrained(folder)
    return folder


def make_idefics3(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Idefics3, whose rows are padded to as many pictures, with its processor."""
    torch.manual_seed(seed)
    special = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    words = turns_tokenizer(special)
    config = transformers.Idefics3Config(
        vision_config=PICTURE | {"patch_size": 8},
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=words,
        image_seq_len=4,
        chat_template=words.chat_template,
    ).save_pretrained(folder)
    return folder


def turns_tokenizer(special: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of turns in which ``special[0]`` stands for a picture."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=TEXT["vocab_size"],
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=LETTERS,
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    assert inner.token_to_id("</s>") == END
    template = (
        "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + special[0] + "{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106 - no secret
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        extra_special_tokens={"image_token": special[0]},
        chat_template=template,
    )
