import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from router_runtime.errors import ConfigError, RequestError

torch = pytest.importorskip("torch")
batches = pytest.importorskip("router_runtime.experts.batches", exc_type=ImportError)
engines = pytest.importorskip("router_runtime.experts.engine", exc_type=ImportError)

from router_runtime.experts.prompts import PromptMaker  # noqa: E402
from router_runtime.experts.sampling import Sampling  # noqa: E402

GREEDY = Sampling(max_tokens=12, temperature=0.0)


class Answer:
    """A sink that can be waited for."""

    def __init__(self):
        self.pieces, self.last, self._done = [], None, threading.Event()

    def __call__(self, event):
        if isinstance(event, batches.Piece):
            self.pieces.append(event.text)
        else:
            self.last = event
            self._done.set()

    def wait(self):
        assert self._done.wait(60)
        if isinstance(self.last, batches.Failure):
            raise self.last.error
        return self.last


@pytest.fixture
def engine(serving):
    return serving(max_waiting=1000).engine


def prompt(engine, text="which day?"):
    return PromptMaker(engine.pool.base).make([{"role": "user", "content": text}])


def ask(engine, adapter, text="which day?", sampling=GREEDY):
    answer = Answer()
    engine.submit(prompt(engine, text), adapter=adapter, sampling=sampling, sink=answer)
    return answer


class Held:
    """Keeps the engine's thread busy while the block runs, so that requests gather."""

    def __init__(self, engine):
        self._engine, self._go, self._begun = engine, threading.Event(), threading.Event()

    def _hold(self, pool):
        self._begun.set()
        self._go.wait(60)

    def __enter__(self):
        self._thread = threading.Thread(target=self._engine.call, args=(self._hold,))
        self._thread.start()
        self._begun.wait(60)

    def __exit__(self, *_):
        self._go.set()
        self._thread.join()


def test_each_adapter_answers_with_its_own_words(engine, making):
    for name, words in making.WORDS.items():
        end = ask(engine, name).wait()
        assert (end.text, end.finish_reason) == (words, "stop")
    assert ask(engine, None).wait().text not in making.WORDS.values()


def test_tokens_are_counted_with_the_one_that_ends_the_answer(engine, making):
    tokens = engine.pool.base.tokenizer(making.WORDS["calendar"])["input_ids"]
    answer = ask(engine, "calendar")
    end = answer.wait()
    assert end.completion_tokens == len(tokens) + 1
    assert end.prompt_tokens == prompt(engine).n_tokens
    assert "".join(answer.pieces) == end.text
    assert len(answer.pieces) > 1


def test_max_tokens_ends_an_answer_with_length(engine):
    end = ask(engine, "calendar", sampling=Sampling(max_tokens=1, temperature=0.0)).wait()
    assert (end.completion_tokens, end.finish_reason) == (1, "length")


def test_a_stop_text_ends_an_answer_before_it(engine):
    stop = Sampling(max_tokens=12, temperature=0.0, stop=("29",))
    end = ask(engine, "calendar", sampling=stop).wait()
    assert (end.text, end.finish_reason) == ("March ", "stop")


def test_the_context_ends_an_answer_with_length(engine):
    long = "x " * 240
    n_tokens = prompt(engine, long).n_tokens
    assert 450 < n_tokens < 512
    unending = Sampling(max_tokens=1000, temperature=0.0)
    with Endless(engine):
        end = ask(engine, None, long, unending).wait()
    assert (n_tokens + end.completion_tokens, end.finish_reason) == (512, "length")


class Endless:
    """While the block runs no token ends an answer."""

    def __init__(self, engine):
        self._base = engine.pool.base

    def __enter__(self):
        self._ends = self._base.end_tokens
        object.__setattr__(self._base, "end_tokens", (319,))

    def __exit__(self, *_):
        object.__setattr__(self._base, "end_tokens", self._ends)


def test_a_mixed_batch_answers_each_row_as_it_is_answered_alone(engine, making):
    names = [*making.WORDS, None] * 2
    texts = [f"{'long ' * (3 * at)}question {at}" for at in range(len(names))]
    alone = [ask(engine, name, text).wait() for name, text in zip(names, texts, strict=True)]
    seen = []
    with Held(engine):
        together = [ask(engine, name, text) for name, text in zip(names, texts, strict=True)]
        seen.append(engine.waiting)
    assert seen == [len(names)]
    assert [answer.wait() for answer in together] == alone


def test_seeded_draws_do_not_depend_on_the_company(engine):
    drawn = Sampling(max_tokens=10, temperature=1.0, seed=11)
    alone = ask(engine, None, sampling=drawn).wait()
    with Held(engine):
        company = [ask(engine, name) for name in ("calendar", "claim-window")]
        again = ask(engine, None, sampling=drawn)
        other = ask(engine, None, sampling=Sampling(max_tokens=10, temperature=1.0, seed=12))
    assert again.wait() == alone != other.wait()
    assert all(answer.wait() for answer in company)


def test_sixteen_threads_never_get_anothers_adapter(engine, making):
    names = list(making.WORDS)

    def asks(thread):
        wrong = 0
        for at in range(25):
            name = names[(thread + at) % 3]
            wrong += ask(engine, name, f"{thread} asks {at}").wait().text != making.WORDS[name]
        return wrong

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(asks, range(16))) == 0


def test_adapters_come_and_go_while_others_answer(engine, making, adapters):
    stop = threading.Event()
    wrong = []

    def asks():
        while not stop.is_set():
            if ask(engine, "calendar").wait().text != making.WORDS["calendar"]:
                wrong.append(1)

    thread = threading.Thread(target=asks)
    thread.start()
    for _ in range(5):
        engine.add_adapter("guest", adapters["provider-select"])
        assert ask(engine, "guest").wait().text == making.WORDS["provider-select"]
        engine.remove_adapter("guest")
        with pytest.raises(RequestError, match="'guest' does not exist"):
            ask(engine, "guest")
    stop.set()
    thread.join()
    assert not wrong


def test_a_request_whose_adapter_leaves_while_it_waits_gets_a_404(engine, making):
    with Held(engine):
        lost = ask(engine, "claim-window")
        kept = ask(engine, "calendar")
        remover = threading.Thread(target=engine.remove_adapter, args=("claim-window",))
        remover.start()
        while not engine._tasks:
            pass
    remover.join()
    with pytest.raises(RequestError) as caught:
        lost.wait()
    assert caught.value.status == 404
    assert kept.wait().text == making.WORDS["calendar"]


def test_a_full_queue_refuses_with_503_and_then_serves_on(serving, making):
    engine = serving(max_waiting=2).engine
    with Held(engine):
        kept = [ask(engine, "calendar") for _ in range(2)]
        with pytest.raises(RequestError, match="max_waiting") as caught:
            ask(engine, "calendar")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    assert [answer.wait().text for answer in kept] == [making.WORDS["calendar"]] * 2
    assert ask(engine, "calendar").wait()


def test_no_more_than_max_batch_are_answered_together(serving):
    engine = serving(max_batch=2).engine
    sizes = []
    real = engines.answer

    def counted(pool, rows):
        sizes.append(len(rows))
        real(pool, rows)

    engines.answer = counted
    try:
        with Held(engine):
            answers = [ask(engine, "calendar") for _ in range(5)]
        assert all(answer.wait() for answer in answers)
    finally:
        engines.answer = real
    assert sizes == [2, 2, 1]


def test_a_cancelled_request_leaves_the_queue_and_tells_nothing(serving):
    engine = serving(max_waiting=1).engine
    gone = Answer()
    with Held(engine):
        asked = prompt(engine)
        engine.submit(asked, adapter=None, sampling=GREEDY, sink=gone).cancel()
        kept = ask(engine, "calendar")  # takes the place of the one that left
    assert kept.wait()
    assert not gone.pieces
    assert not isinstance(gone.last, batches.End)


def test_cancelling_stops_an_answer_that_has_begun(engine):
    begun = threading.Event()
    events = []

    def sink(event):
        events.append(event)
        begun.set()

    with Endless(engine):
        endless = Sampling(max_tokens=400, temperature=0.0)
        ticket = engine.submit(prompt(engine), adapter=None, sampling=endless, sink=sink)
        assert begun.wait(60)
        ticket.cancel()
        engine.call(lambda pool: None)  # the batch is over
    assert not any(isinstance(event, batches.End) for event in events)
    assert len(events) < 400


def test_one_row_that_fails_does_not_take_the_others_with_it(engine, making):
    good = prompt(engine)
    unknown = good.tensors["input_ids"] + 10_000  # tokens that the model does not have
    bad = replace(good, tensors={**good.tensors, "input_ids": unknown})
    answers = [Answer() for _ in range(3)]
    with Held(engine):
        for which, answer in zip((good, bad, good), answers, strict=True):
            engine.submit(which, adapter="calendar", sampling=GREEDY, sink=answer)
    with pytest.raises(RequestError, match="failed on this request") as caught:
        answers[1].wait()
    assert caught.value.status == 500
    assert [answers[at].wait().text for at in (0, 2)] == [making.WORDS["calendar"]] * 2
    assert engine.alive


def test_an_evicted_adapter_that_is_gone_fails_its_own_requests_only(
    serving, changed, adapters, making, caplog
):
    folder = changed()
    one = serving(adapters={"calendar": folder})
    size_mb = one.engine.pool.n_bytes / 2**20
    gone = {"calendar": folder, "claim-window": adapters["claim-window"]}
    engine = serving(adapters=gone, max_adapter_mb=size_mb, evict=True).engine
    (folder / "adapter_model.safetensors").unlink()
    with Held(engine):
        answers = [ask(engine, name) for name in ("claim-window", "calendar", "claim-window")]
    with pytest.raises(RequestError) as caught:
        answers[1].wait()
    assert caught.value.status == 503
    assert str(folder) not in str(caught.value)
    assert str(folder) in caplog.text
    assert [answers[at].wait().text for at in (0, 2)] == [making.WORDS["claim-window"]] * 2


def test_a_failing_task_fails_its_caller_only(engine):
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda pool: 1 // 0)
    with pytest.raises(ConfigError):
        engine.remove_adapter("nobody")
    assert ask(engine, "calendar").wait()


def test_closing_fails_what_waits_and_refuses_more(engine):
    with Held(engine):
        waiting = ask(engine, "calendar")
        closer = threading.Thread(target=engine.close)
        closer.start()
        while not engine._closing:
            pass
    closer.join()
    with pytest.raises(RequestError) as caught:
        waiting.wait()
    assert caught.value.status == 503
    with pytest.raises(RequestError, match="shutting down"):
        ask(engine, "calendar")
    with pytest.raises(RequestError, match="shutting down"):
        engine.call(lambda pool: None)
    assert not engine.alive


def test_closing_ends_an_answer_that_runs(engine):
    begun, last = threading.Event(), []

    def sink(event):
        last.append(event)
        begun.set()

    with Endless(engine):
        endless = Sampling(max_tokens=400, temperature=0.0)
        engine.submit(prompt(engine), adapter=None, sampling=endless, sink=sink)
        assert begun.wait(60)
        engine.close()
    assert last[-1].error.status == 503
