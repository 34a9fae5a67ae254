import asyncio
import math

import pytest

from router_runtime.errors import ArtifactError, RequestError

pytest.importorskip("torch")
pytest.importorskip("router_runtime.experts.service", exc_type=ImportError)

from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.service import Experts


def ask(experts, model, content="which day?", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    return experts.answer(experts.read(body | fields))


def test_the_base_and_its_adapters_are_models(serving, making):
    experts = serving()
    assert experts.models == ("base", *sorted(making.WORDS))
    with pytest.raises(RequestError, match="'nobody' does not exist"):
        experts.read({"model": "nobody", "messages": []})


def test_an_adapter_that_cannot_be_served_is_named_at_the_start(serving, changed):
    with pytest.raises(ArtifactError, match="'bad'"):
        serving(adapters={"bad": changed(peft_type="IA3")})


def test_leaving_a_stream_early_cancels_the_request(serving):
    experts = serving()

    async def leave():
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
        events = experts.events(experts.read(body | {"max_tokens": 400}))
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert all(row.cancelled for row in experts.engine._running)
    experts.engine.call(lambda pool: None)
    assert experts.engine.running == 0


def test_a_vision_language_base_serves_texts_and_pictures_in_one_batch(making, qwen, tmp_path):
    picture = making.picture_part

    folders = {
        name: making.random_adapter(qwen, tmp_path / name, seed=at, modules=modules, lora_alpha=400)
        for at, (name, modules) in enumerate({"one": ["q_proj"], "eyes": ["qkv"]}.items())
    }
    config = ExpertsConfig(base={"model": str(qwen)}, name="base", adapters=folders, max_tokens=8)
    experts = Experts.load(config)
    text = {"type": "text", "text": "what is this?"}
    asked = [
        (model, content)
        for model in ("base", "one", "eyes")
        for content in ([picture(), text], "and without", [text, picture("blue", (64, 64))])
    ]

    async def both():
        alone = [(await ask(experts, *each)).text for each in asked]
        together = await asyncio.gather(*(ask(experts, *each) for each in asked))
        return alone, [end.text for end in together]

    try:
        alone, together = asyncio.run(both())
    finally:
        experts.close()
    assert together == alone
    base, one, eyes = alone[:3], alone[3:6], alone[6:]
    assert all(a != b for a, b in zip(base, one, strict=True))
    assert [a != b for a, b in zip(base, eyes, strict=True)] == [True, False, True]


def test_scores_are_the_log_probabilities_of_whole_answers(serving, making, llama, adapters):
    experts = serving()
    messages = [{"role": "user", "content": "which day?"}]
    texts = [*making.WORDS.values(), "a"]
    found = experts.score("calendar", messages, texts)
    assert found[0] - max(found[1:]) > 3
    assert sum(math.exp(score) for score in found) <= 1
    other = experts.score("claim-window", messages, texts)
    assert other[1] == max(other)
    assert experts.score("base", messages, texts) != pytest.approx(found, abs=1.0)

    torch = making.torch
    model = making.peft.PeftModel.from_pretrained(making.load(llama), adapters["calendar"]).eval()
    prompt = experts._prompts.make(messages).tensors["input_ids"]
    for text, score in zip(texts, found, strict=True):
        ids = torch.tensor([*experts.engine.pool.base.tokenizer(text)["input_ids"], making.END])
        with torch.inference_mode():
            logits = model(torch.cat([prompt, ids[None]], dim=1)).logits[0]
        said = logits[prompt.shape[1] - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(float(said.gather(-1, ids[:, None]).sum()), abs=1e-4)
    with pytest.raises(RequestError, match="nobody"):
        experts.score("nobody", messages, texts)
    with pytest.raises(RequestError, match="512"):
        experts.score("base", messages, ["long " * 400])


def test_scores_of_a_vision_language_base_depend_on_the_picture(making, qwen):
    config = ExpertsConfig(base={"model": str(qwen)}, name="base")
    experts = Experts.load(config)
    try:
        seen = [
            experts.score(
                "base",
                [{"role": "user", "content": [making.picture_part(*which)]}],
                ["calendar", "claim 17"],
            )
            for which in (("red", (48, 32)), ("blue", (64, 64)), ("red", (48, 32)))
        ]
    finally:
        experts.close()
    assert seen[0] == seen[2] != seen[1]
