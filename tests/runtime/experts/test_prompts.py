import pytest

from router_runtime.errors import RequestError
from router_runtime.experts.config import BaseConfig
from router_runtime.images import ImageLimits

torch = pytest.importorskip("torch")
base_model = pytest.importorskip("router_runtime.experts.base_model", exc_type=ImportError)
prompts = pytest.importorskip("router_runtime.experts.prompts", exc_type=ImportError)

from experts_parts.making import picture_part as picture  # noqa: E402


@pytest.fixture(scope="module")
def makers(llama, qwen):
    return {
        name: prompts.PromptMaker(base_model.load_base(BaseConfig(model=str(folder))))
        for name, folder in {"text": llama, "vision": qwen}.items()
    }


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def written(maker, messages):
    prompt = maker.make(messages)
    tokens = prompt.tensors["input_ids"][0]
    assert len(tokens) == prompt.n_tokens
    return maker._base.tokenizer.decode(tokens)


def test_the_models_template_writes_the_conversation(makers):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    assert written(makers["text"], messages) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_pictures_stand_where_they_were_sent(makers):
    text = {"type": "text", "text": "or"}
    prompt = makers["vision"].make(user(picture(), text, picture("blue", (64, 64))))
    assert prompt.tensors["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 8]]
    shown = written(makers["vision"], user(picture(), text, picture("blue", (64, 64))))
    assert shown.count("<|image_pad|>") == 6 + 16
    assert "<|vision_end|>or<|vision_start|>" in shown


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "list of messages"),
        ([], "one at least"),
        (["hi"], r"messages\[0\]"),
        ([{"role": "tool", "content": "x"}], "roles"),
        ([{"role": "user", "content": None}], r"messages\[0\]"),
        ([{"role": "user", "content": []}], r"messages\[0\]"),
        (user({"type": "text"}), "without a text"),
        (user({"type": "input_audio"}), "neither a text nor a picture"),
        (user({"type": "image_url", "image_url": {}}), "without an URL"),
        (user({"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}), "not fetched"),
        (user({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), "neither a data URI"),
        (user({"type": "text", "text": "<|image_pad|>" * 3}, picture()), "own tokens"),
    ],
)
def test_what_cannot_be_read_is_a_400_that_says_so(makers, messages, words):
    with pytest.raises(RequestError, match=words) as caught:
        makers["vision"].make(messages)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_text_model_refuses_pictures(makers):
    with pytest.raises(RequestError, match="reads text only"):
        makers["text"].make(user(picture()))


def test_a_picture_beyond_the_caps_is_refused(makers):
    small = prompts.PromptMaker(makers["vision"]._base, limits=ImageLimits(max_pixels=100))
    with pytest.raises(RequestError, match="pixels"):
        small.make(user(picture()))


def test_messages_beyond_the_context_are_refused_with_both_numbers(makers):
    with pytest.raises(RequestError, match="512") as caught:
        makers["text"].make([{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"
