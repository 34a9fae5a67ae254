from __future__ import annotations

import numpy as np

from router_runtime.prediction.heads.prior import PriorHead
from router_training import rows
from router_training.rows import Rows, predict, read_chunks, shuffled_windows, take

X = np.arange(60, dtype=np.float32).reshape(20, 3)


def test_rows_name_rows_and_read_them_when_taken(tmp_path):
    np.save(tmp_path / "X.npy", X)
    some = Rows(np.load(tmp_path / "X.npy", mmap_mode="r"), np.arange(5, 15))
    assert some.shape == (10, 3)
    assert (len(some), some.ndim, some.dtype) == (10, 2, np.float32)
    part = some[np.array([0, 9])]
    assert isinstance(part, Rows)
    np.testing.assert_array_equal(take(part, slice(None)), X[[5, 14]])
    assert type(take(part, slice(None))) is np.ndarray  # no memory map
    np.testing.assert_array_equal(take(X, np.array([2])), X[[2]])


def test_chunks_are_all_rows_in_order():
    many = np.arange(9000, dtype=np.float32)[:, None]
    backwards = Rows(many, np.arange(9000)[::-1])
    read = list(read_chunks(backwards))
    assert [len(chunk) for _, chunk in read] == [4096, 4096, 808]
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in read]), many[::-1])


def test_predicting_in_chunks_equals_predicting_at_once():
    head = PriorHead(np.array([0.25, 0.75]), n_features=3)
    P = predict(head, Rows(X, np.arange(7)))
    np.testing.assert_array_equal(P, head.predict_proba(X[:7]))
    assert predict(head, X[:0]).shape == (0, 2)


def test_windows_visit_every_row_once_in_runs_from_all_over(monkeypatch):
    monkeypatch.setattr(rows, "RUN_ROWS", 4)
    windows = list(shuffled_windows(103, 12, np.random.default_rng(0)))
    assert len(windows) == 9
    assert max(len(window) for window in windows) == 12  # three runs; the file's last has 3 rows
    assert sorted(np.concatenate(windows).tolist()) == list(range(103))
    for window in windows:
        assert (np.diff(window) > 0).all()
    assert np.ptp(windows[0]) > 12
    again = list(shuffled_windows(103, 12, np.random.default_rng(0)))
    np.testing.assert_array_equal(windows[0], again[0])


def test_a_window_smaller_than_a_run_is_one_run():
    windows = list(shuffled_windows(130, 10, np.random.default_rng(0)))
    assert sorted(len(window) for window in windows) == [2, 64, 64]
