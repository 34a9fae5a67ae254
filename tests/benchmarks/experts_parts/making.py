"""Tiny random models of real classes, with real tokenizers and processors, and adapters on them.

An adapter is trained until it answers anything with its own word, so that whose answer it is can be
read off.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from router_runtime.weights import torch_setup  # isort: skip - makes transformers importable

import peft
import PIL.Image
import tokenizers
import torch
import transformers

assert torch_setup

WORDS = {"calendar": "March 29", "claim-window": "claim 17 open", "provider-select": "Dr. Gray"}
CORPUS = ["the quick brown fox", "which day is free?", "open the claim", *WORDS.values()] * 3
SPECIAL = [
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
END, IMAGE, VIDEO = 2, 5, 6
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": END,
    "pad_token_id": 0,
    "bos_token_id": None,
    "initializer_range": 0.2,  # with the usual 0.02 a model this narrow is never sure of anything
}


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    names = ("vision_bos_token", "vision_eos_token", "image_token", "video_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[END],
        extra_special_tokens=dict(zip(names, SPECIAL[3:], strict=True)),
        chat_template=TEMPLATE,
    )


def make_llama(folder: Path, *, seed: int = 0, **changed: int) -> Path:
    """Write a tiny Llama with its tokenizer."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**TEXT | changed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_qwen(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Qwen3-VL with its processor."""
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    )
    transformers.Qwen3VLProcessor(
        image_processor=pictures,
        tokenizer=make_tokenizer(),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def lora(modules: str | list[str] = "all-linear", **changed: object) -> peft.LoraConfig:
    settings = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", "target_modules": modules}
    return peft.LoraConfig(**settings | changed)


def load(base: Path) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(base)
    vision = "vision_config" in config.to_dict()
    kind = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    return kind.from_pretrained(base)


def random_adapter(base: Path, folder: Path, *, seed: int = 0, **config: object) -> Path:
    """Write an adapter that changes answers, to what nobody knows."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(load(base), lora(**{"init_lora_weights": False} | config))
    model.save_pretrained(folder)
    return folder


def train_adapter(
    base: Path,
    folder: Path,
    *,
    answer: str,
    steps: int = 80,
    seed: int = 0,
    pictures: Sequence[PIL.Image.Image] = (),
) -> Path:
    """Write an adapter that answers anything with ``answer``, also about pictures like these."""
    torch.manual_seed(seed)
    reader = transformers.AutoProcessor if pictures else transformers.AutoTokenizer
    reader = reader.from_pretrained(base)
    answer_ids = getattr(reader, "tokenizer", reader)(answer, add_special_tokens=False)["input_ids"]
    answer_ids = torch.tensor([[*answer_ids, END]])
    model = peft.get_peft_model(load(base), lora())
    asked = ["which day is free?", "open the claim", "the quick brown fox", "a", "17 29 Gray"]
    prompts = [_prompt(reader, words, None) for words in asked]
    prompts += [_prompt(reader, asked[at % 5], each) for at, each in enumerate(pictures)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for step in range(steps):
        sent = dict(prompts[step % len(prompts)])
        ids = torch.cat([sent["input_ids"], answer_ids], dim=1)
        labels = torch.full_like(ids, -100)
        labels[:, -answer_ids.shape[1] :] = answer_ids
        for name, value in sent.items():
            if value.shape == sent["input_ids"].shape and name != "input_ids":
                filler = torch.full_like(answer_ids, int(name == "attention_mask"))
                sent[name] = torch.cat([value, filler], dim=1)
        model(**sent | {"input_ids": ids}, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder


def _prompt(reader: object, words: str, picture: PIL.Image.Image | None) -> dict[str, torch.Tensor]:
    content: object = words
    if picture is not None:
        content = [{"type": "image"}, {"type": "text", "text": words}]
    turns = [{"role": "user", "content": content}]
    text = reader.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    told = {"add_special_tokens": False, "return_tensors": "pt"}
    if picture is not None:
        return dict(reader(text=[text], images=[picture], **told))
    return dict(reader(text=[text], **told))


def picture_part(color: str = "red", size: tuple[int, int] = (48, 32)) -> dict[str, object]:
    """Return a picture of one color as a part of a message."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": uri}}
