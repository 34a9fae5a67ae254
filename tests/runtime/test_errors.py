from __future__ import annotations

import copy
import pickle

import pytest

from router_runtime.errors import (
    AllTargetsFailedError,
    ConfigError,
    DataError,
    MissingDependencyError,
    TargetStatusError,
    TargetTimeoutError,
)

ERRORS = (
    ConfigError("wrong"),
    DataError("bad", file="f.jsonl", row=3, field="answer"),
    MissingDependencyError("ray", "ray"),
    TargetTimeoutError("slow", retryable=True, retry_after_s=2.5),
    TargetStatusError("HTTP 401", status=401, retryable=False, whole_target=True),
    AllTargetsFailedError("all", attempts=[1, 2]),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_to_another_process_whole(error):
    crossed = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    for again in (crossed, copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
