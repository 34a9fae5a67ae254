"""Texts scored as whole answers, and the pauses in which that happens."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from router_runtime.experts.config import BaseConfig

torch = pytest.importorskip("torch")
base_model = pytest.importorskip("router_runtime.experts.base_model", exc_type=ImportError)
batches = pytest.importorskip("router_runtime.experts.batches", exc_type=ImportError)
pools = pytest.importorskip("router_runtime.experts.pool", exc_type=ImportError)
prompts = pytest.importorskip("router_runtime.experts.prompts", exc_type=ImportError)

ANSWERS = ("calendar", "claim-window", "provider-select", "x")


def said(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def plainly(base, prompt, tokens):
    """The score of one answer, by one call without cache or batch."""
    base.attached.forget()
    row = batches.continued(prompt, tokens)
    with torch.inference_mode():
        logits = base.model(**{name: t for name, t in row.tensors.items()}).logits[0].double()
    told = logits.log_softmax(-1)[prompt.n_tokens - 1 : -1]
    return float(told.gather(-1, torch.tensor(tokens)[:, None]).sum())


@pytest.fixture(params=["llama", "qwen"])
def asked(request, making):
    """A base, and prompts of several lengths; with pictures where it sees them."""
    base = base_model.load_base(BaseConfig(model=str(request.getfixturevalue(request.param))))
    make = prompts.PromptMaker(base).make
    texts = ["which day is free?", "a", "which day is busy?", "open the claim now, please"]
    found = [make(said(text)) for text in texts]
    if base.sees_pictures:
        red, wide = making.picture_part("red"), making.picture_part("blue", (64, 32))
        found[1:1] = [make(said(red, "what?")), make(said(wide, "what?"))]
        found += [make(said(red, wide, "both?")), make(said(making.picture_part("lime"), "what?"))]
    return base, found


def test_a_prompt_read_once_scores_as_one_read_for_each_answer(asked):
    base, rows = asked
    answers = [batches.answer_tokens(base, text) for text in ANSWERS]
    found = batches.score_all(base, rows, answers)
    wanted = [[plainly(base, row, tokens) for tokens in answers] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found < 0).all()


def test_the_end_of_the_answer_counts(asked):
    base, rows = asked
    tokens = batches.answer_tokens(base, "calendar")
    assert tokens[-1] == base.end_tokens[0]
    with_end, without = batches.score_all(base, rows, [tokens, tokens[:-1]]).T
    assert (with_end < without).all()


def test_small_batches_score_the_same(asked, monkeypatch):
    base, rows = asked
    answers = [batches.answer_tokens(base, text) for text in ANSWERS]
    whole = batches.score_all(base, rows, answers, batch_size=8)
    np.testing.assert_allclose(
        batches.score_all(base, rows, answers, batch_size=1), whole, atol=1e-5
    )
    monkeypatch.setattr(batches, "_BATCH_TOKENS", 1)  # one answer at a time
    np.testing.assert_allclose(batches.score_all(base, rows, answers), whole, atol=1e-5)


def test_scores_are_those_of_the_adapter(llama, adapters, making):
    pool = pools.AdapterPool(base_model.load_base(BaseConfig(model=str(llama))))
    for name, path in adapters.items():
        pool.add(pool.read(name, path))
    prompt = prompts.PromptMaker(pool.base).make(said("which day is free?"))
    words = list(making.WORDS.values())
    found = [batches.score(pool, prompt, adapter=name, answers=words) for name in making.WORDS]
    assert np.array(found).argmax(axis=1).tolist() == [0, 1, 2]
    pool.close()


def test_a_score_waits_for_a_token_and_leaves_the_answer_as_it_is(qwen, making):
    base = base_model.load_base(BaseConfig(model=str(qwen)), own=True)
    pool, other = pools.AdapterPool(base), pools.AdapterPool(base)
    make = prompts.PromptMaker(base).make
    prompt = make(said(making.picture_part("red", (64, 64)), "what is it?"))
    tokens = [batches.answer_tokens(base, text) for text in ANSWERS]
    alone = batches.score_all(base, [make(said("a"))], tokens)

    def answered(at_token):
        told, made = [], []

        def sink(event):
            told.append(event)
            made.append(1)
            at_token(len(made))

        settings = base_model_sampling(max_tokens=24)
        row = batches.Row(base, prompt=prompt, adapter=None, sampling=settings, sink=sink)
        batches.answer(pool, [row])
        return told[-1]

    undisturbed = answered(lambda n: None)
    found, threads = [], []

    def score():
        with other.using([None], short=True):
            found.append(batches.score_all(base, [make(said("a"))], tokens))

    def disturb(n):
        if n == 2:
            threads.append(threading.Thread(target=score))
            threads[0].start()
            while not base.attached.waiting:
                pass

    during = answered(disturb)
    threads[0].join()
    assert during == undisturbed
    np.testing.assert_array_equal(found[0], alone)


def base_model_sampling(**changed):
    from router_runtime.experts.sampling import Sampling

    return Sampling(temperature=0.0, **changed)
