from collections import Counter

import pytest

torch = pytest.importorskip("torch")
sampling = pytest.importorskip("router_runtime.experts.sampling")

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(times=2000, **settings):
    chooser = sampling.Chooser(sampling.Sampling(max_tokens=1, seed=7, **settings))
    return Counter(chooser.choose(LOGITS) for _ in range(times))


def test_temperature_zero_takes_the_likeliest():
    assert drawn(10, temperature=0.0) == {0: 10}


def test_tokens_are_drawn_with_their_probabilities():
    found = drawn()
    assert [found[at] / 2000 for at in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)


def test_a_higher_temperature_draws_rarer_tokens_more_often():
    assert drawn(temperature=2.0)[3] > 2 * drawn()[3]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"top_p": 0.0}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"top_k": 1}, {0}),
    ],
)
def test_only_likely_tokens_are_drawn(settings, kept):
    assert set(drawn(**settings)) == kept


def test_a_seed_gives_the_same_draws_again_and_none_gives_others():
    def draws(seed):
        chooser = sampling.Chooser(sampling.Sampling(max_tokens=1, seed=seed))
        return [chooser.choose(LOGITS) for _ in range(60)]

    assert draws(1) == draws(1) != draws(2)
    assert draws(-1) == draws(-1)
    assert draws(None) != draws(None)
