from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import DataError
from router_training.routing.dividing import Parts, Wanted, divide
from router_training.routing.options import Quota


@dataclass(frozen=True)
class Item:
    adapter: str
    keys: frozenset[str]
    pictures: tuple[str, ...]


def items(adapter: str, pictures: int, per_picture: int = 1) -> list[Item]:
    names = [f"{adapter}{at}" for at in range(pictures) for _ in range(per_picture)]
    return [Item(adapter, frozenset({name}), (name,)) for name in names]


def divided(rows, wanted=None, *, share=0.8, balanced=False, stratified=True, seed=0) -> Parts:
    adapters = dict.fromkeys(row.adapter for row in rows)
    settled = {name: Wanted(Quota(), Quota()) for name in adapters} | (wanted or {})
    return divide(
        rows, settled, train_share=share, balanced=balanced, stratified=stratified, seed=seed
    )


def counts(rows, part) -> dict[str, int]:
    return dict(Counter(rows[at].adapter for at in part))


def test_without_numbers_all_rows_are_used_and_none_are_held_out():
    rows = items("a", 50) + items("b", 30)
    parts = divided(rows)
    assert counts(rows, parts.train) == {"a": 40, "b": 24}
    assert counts(rows, parts.val) == {"a": 10, "b": 6}
    assert parts.held_out == ()


def test_samples_are_per_adapter_and_eval_is_beside_them():
    rows = items("a", 50) + items("b", 300)
    parts = divided(rows, dict.fromkeys("ab", Wanted(Quota(20), Quota(10))))
    assert counts(rows, parts.train) == {"a": 16, "b": 16}
    assert counts(rows, parts.val) == {"a": 4, "b": 4}
    assert counts(rows, parts.held_out) == {"a": 10, "b": 10}


def test_few_rows_of_few_pictures_still_show_many_pictures():
    rows = items("a", 10, per_picture=100) + items("b", 10, per_picture=100)
    parts = divided(rows, dict.fromkeys("ab", Wanted(Quota(50), Quota(50))))
    shown = {rows[at].pictures for at in (*parts.train, *parts.val) if rows[at].adapter == "a"}
    assert len(shown) == 5
    assert len({rows[at].pictures for at in parts.held_out if rows[at].adapter == "a"}) == 5


def test_numbers_of_pictures_are_exact_and_leave_rows_free():
    rows = items("a", 40, per_picture=3) + items("b", 40)
    parts = divided(rows, {"a": Wanted(Quota(images=27), Quota(images=7))})
    assert len({rows[at].pictures for at in parts.held_out if rows[at].adapter == "a"}) == 7
    assert len(counts(rows, parts.held_out)) == 1
    kept = [at for at in (*parts.train, *parts.val) if rows[at].adapter == "a"]
    assert (len({rows[at].pictures for at in kept}), len(kept)) == (27, 81)


def test_balanced_leaves_rows_out_until_all_adapters_have_as_many():
    rows = items("a", 50) + items("b", 30)
    parts = divided(rows, balanced=True)
    assert counts(rows, (*parts.train, *parts.val)) == {"a": 30, "b": 30}


def test_stratified_divides_within_each_adapter():
    rows = items("a", 20) + items("b", 20)
    exact = [counts(rows, divided(rows, seed=s).val) for s in range(8)]
    assert all(found == {"a": 4, "b": 4} for found in exact)
    free = [counts(rows, divided(rows, stratified=False, seed=s).val) for s in range(8)]
    assert all(sum(found.values()) == 8 for found in free)
    assert any(found != {"a": 4, "b": 4} for found in free)


def test_equal_seeds_divide_equally_and_others_do_not():
    rows = items("a", 50) + items("b", 30)
    assert divided(rows, seed=1) == divided(rows, seed=1) != divided(rows, seed=2)


def test_rows_that_share_a_key_through_others_stay_together():
    chain = [Item("a", frozenset({f"k{at}", f"k{at + 1}"}), ()) for at in range(10)]
    rows = [*chain, *items("a", 30), *items("b", 30)]
    parts = divided(rows)
    assert len({parts.bunch_of[at] for at in range(10)}) == 1
    assert set(range(10)) <= set(parts.train) or set(range(10)) <= set(parts.val)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(Quota(31), Quota()), r"'b' has 30 usable rows, .* 30 samples .* --train-samples-b"),
        (Wanted(Quota(), Quota(30)), r"eval can have 29 samples .* --eval-samples-b"),
        (Wanted(Quota(images=31), Quota()), r"30 images .* Lower --train-images-b"),
        (Wanted(Quota(25), Quota(images=6)), r"5 images .* Lower --eval-images-b"),
    ],
)
def test_too_few_rows_are_an_error_that_names_the_option(wanted, message):
    with pytest.raises(DataError, match=message):
        divided(items("a", 50) + items("b", 30), {"b": wanted})


def test_an_adapter_whose_rows_all_share_a_picture_cannot_be_divided():
    with pytest.raises(DataError, match="All rows of adapter 'b' share a picture"):
        divided(items("a", 50) + items("b", 1, per_picture=30))


def test_a_bunch_larger_than_the_share_still_gives_val_a_row_of_every_adapter():
    rows = items("a", 3, per_picture=100) + items("b", 30)
    assert counts(rows, divided(rows, share=0.98).val)["a"] == 100


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sets(st.integers(0, 12), min_size=1, max_size=2)),
    min_size=2,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    drawn=ROWS,
    samples=st.one_of(st.none(), st.integers(1, 12)),
    held=st.one_of(st.none(), st.integers(1, 12)),
    share=st.floats(0.05, 0.95),
    balanced=st.booleans(),
    stratified=st.booleans(),
    seed=st.integers(0, 9),
)
def test_parts_never_share_a_key_and_keep_what_they_promise(
    drawn, samples, held, share, balanced, stratified, seed
):
    rows = [
        Item(adapter, frozenset(map(str, keys)), tuple(map(str, keys))) for adapter, keys in drawn
    ]
    names = dict.fromkeys(row.adapter for row in rows)
    wanted = {name: Wanted(Quota(samples), Quota(held)) for name in names}
    try:
        parts = divide(
            rows,
            wanted,
            train_share=share,
            balanced=balanced,
            stratified=stratified,
            seed=seed,
        )
    except DataError:
        return  # refused as a whole: nothing is promised
    places = [*parts.train, *parts.val, *parts.held_out]
    assert len(set(places)) == len(places)
    keys = [
        {key for at in part for key in rows[at].keys}
        for part in (parts.train, parts.val, parts.held_out)
    ]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    fitted = counts(rows, (*parts.train, *parts.val))
    assert set(fitted) == set(names)
    if samples is not None:
        assert all(n <= samples for n in fitted.values())
        assert balanced or all(n == samples for n in fitted.values())
    if held is not None and not balanced:
        assert all(counts(rows, parts.held_out)[name] == held for name in names)
    if balanced:
        assert len(set(fitted.values())) == 1
