from __future__ import annotations

import numpy as np

from router_runtime.types import Image, Query
from router_training.slices import MAX_VALUES, ordered_values, slice_labels, slice_rows

PICTURE = Image(b"x", "image/png")


def test_queries_are_sliced_by_data_set_modality_length_and_novelty():
    queries = [Query("a" * 10), Query("a" * 200, (PICTURE,)), Query("", (PICTURE,))]
    labels = slice_labels(queries, ["mbpp", None, "mbpp"], np.array([0.5, 0.95, 1.0]))
    assert labels == {
        "data set": ("mbpp", "(no data set)", "mbpp"),
        "modality": ("text", "text+image", "image"),
        "prompt length": ("< 200 characters", "200 - 999", "< 200 characters"),
        "novelty": ("<= 0.5", "0.9 - 0.99", "> 0.99"),
    }


def test_the_whole_request_counts_for_its_length():
    queries = [Query("question", prompt_chars=chars) for chars in (199, 999, 1000, 4000)]
    assert slice_labels(queries, [None] * 4)["prompt length"] == (
        "< 200 characters",
        "200 - 999",
        "1,000 - 3,999",
        ">= 4,000",
    )


def test_a_kind_by_which_all_are_alike_is_no_slice():
    assert slice_labels([Query("a"), Query("b")], ["same", "same"], np.zeros(2)) == {}


def test_the_rarest_values_are_pooled_and_counted():
    names = [f"set {i}" for i in range(25)] + [f"set {i}" for i in range(19)]
    labels = slice_labels([Query("a")] * 44, names)["data set"]
    assert len(set(labels)) == MAX_VALUES
    assert labels.count("other (6 values)") == 6
    assert labels[:19] == tuple(names[:19])


def test_a_long_name_from_a_data_file_is_cut():
    labels = slice_labels([Query("a")] * 2, ["x" * 5000, "y"])["data set"]
    assert labels[0] == "x" * 77 + "..."


def test_bands_come_in_rising_order_and_data_sets_by_size_with_the_rest_last():
    assert ordered_values("novelty", ["> 0.99", "<= 0.5", "> 0.99"]) == ["<= 0.5", "> 0.99"]
    names = ["other (9 values)"] * 3 + ["b", "a", "c", "c"]
    assert ordered_values("data set", names) == ["c", "a", "b", "other (9 values)"]


def test_every_query_is_in_one_slice_of_each_kind():
    rows = slice_rows({"data set": ["a", "b", "a"], "modality": ["text", "image", "text"]})
    assert [(kind, value, mask.tolist()) for kind, value, mask in rows] == [
        ("data set", "a", [True, False, True]),
        ("data set", "b", [False, True, False]),
        ("modality", "text", [True, False, True]),
        ("modality", "image", [False, True, False]),
    ]
