import inspect
import io
import os
import pickle
import subprocess
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ArtifactError
from router_runtime.legacy.restricted_pickle import (
    MAX_BYTES,
    Inert,
    parse_pickle,
    plain_json,
    read_pickle,
)


def parse(data, **options):
    return parse_pickle(data, source="test.joblib", **options)


def dumped(value):
    stream = io.BytesIO()
    joblib.dump(value, stream)
    return stream.getvalue()


class Reducing:
    """Pickles as the call that it was made with."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.made


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(plain, st.integers(2, 5))
def test_plain_values_come_back_as_pickle_would_load_them(value, protocol):
    data = pickle.dumps(value, protocol=protocol)
    if b"_codecs" in data:  # protocol 2 spells bytes as a call
        with pytest.raises(ArtifactError, match=r"_codecs\.encode|__builtin__\.bytes"):
            parse(data)
    elif b"__builtin__" in data:
        with pytest.raises(ArtifactError, match="__builtin__"):
            parse(data)
    else:
        assert parse(data) == value


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_plain(data):
    try:
        parse(data + b".")
    except ArtifactError:
        return


@pytest.mark.parametrize(
    "number", [np.float64(0.5), np.float32(0.25), np.int64(-7), np.uint8(200), np.bool_(True)]
)
def test_numpy_scalars_come_back_as_python_numbers(number):
    value = parse(dumped({"x": [number, number]}))
    assert value == {"x": [number.item()] * 2}
    assert type(value["x"][0]) is type(number.item())


def test_one_list_that_occurs_twice_stays_one():
    inner = [1]
    value = parse(pickle.dumps([inner, inner]))
    assert value == [[1], [1]] and value[0] is value[1]


def hostile(marker):
    """Pickles that would write the file ``marker``, or do other harm, when unpickled."""
    write = f"open({str(marker)!r}, 'w').write('x')"
    return {
        "os.system": Reducing(os.system, f"touch {marker}"),
        "subprocess": Reducing(subprocess.Popen, ["touch", str(marker)]),
        "eval": Reducing(eval, write),
        "exec": Reducing(exec, write),
        "nested in data": {"a": [1, (2, {"b": Reducing(os.system, f"touch {marker}")})]},
        "as an argument": Reducing(np.dtype, Reducing(eval, f"({write}, 'f8')[1]")),
        "as a state": Reducing(list, (), state=Reducing(eval, write)),
        "getattr": Reducing(getattr, "x", "upper"),
        "numpy exec": Reducing(np.testing.rundocs, str(marker)),
        "numpy object scalar": Reducing(
            np._core.multiarray.scalar, np.dtype("O"), pickle.dumps(Reducing(eval, write))
        ),
        "numpy array": np.array([1.0, 2.0]),
        "numpy object array": np.array([Reducing(eval, write)], dtype=object),
        "a huge bytearray": Reducing(bytearray, 2**45),
        "a class": Inert,
        "an own instance": Inert("x"),
        "open": Reducing(open, str(marker), "w"),
    }


@pytest.mark.parametrize("name", hostile("x"))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, name, protocol):
    marker = tmp_path / "pwned"
    data = pickle.dumps(hostile(marker)[name], protocol=protocol)
    with pytest.raises(ArtifactError, match=r"test\.joblib"):
        parse(data)
    assert not marker.exists()


def test_the_hostile_pickles_of_this_test_would_do_harm(tmp_path):
    marker = tmp_path / "pwned"
    pickle.loads(pickle.dumps(hostile(marker)["nested in data"]))  # noqa: S301 - that is the point
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0: GLOBAL, text arguments, REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1: a registered extension
        b"\x80\x04\x8c\x01xQ.",  # BINPERSID
        b"\x80\x04cnumpy\ndtype\n(\x8c\x01Ot\x81.",  # NEWOBJ on numpy.dtype
        b"\x80\x04\x93.",  # STACK_GLOBAL on an empty stack
        b"\x80\x04h\x05.",  # BINGET of what was never memoised
        b"\x80\x04}]\x8c\x01xs.",  # a list as a key
        b"\x80\x04]u.",  # SETITEMS without a mark
        b"\x80\x04K\x01K\x02.",  # two results
        b"\x80\x04",  # cut off
        b"",
    ],
)
def test_malformed_and_old_style_programs_are_refused(data):
    with pytest.raises(ArtifactError, match=r"test\.joblib"):
        parse(data)


def test_a_compressed_joblib_file_is_refused_with_the_remedy(tmp_path):
    joblib.dump(["a"] * 1000, tmp_path / "names.joblib", compress=3)
    with pytest.raises(ArtifactError, match=r"Compressed.*joblib\.dump"):
        read_pickle(tmp_path / "names.joblib")


def test_classes_that_the_caller_expects_become_records():
    data = pickle.dumps(Inert("x", {"n": 1}))
    name = f"{Inert.__module__}.Inert"
    assert parse(data, classes=frozenset({name})) == Inert(name, {"name": "x", "state": {"n": 1}})


def test_state_cannot_be_set_on_a_class(tmp_path):
    # ``Inert`` itself, then BUILD: an unpickler would write into the class.
    name = f"{Inert.__module__}.Inert"
    program = b"\x80\x04c" + Inert.__module__.encode() + b"\nInert\n}\x8c\x05stateK\x01sb."
    with pytest.raises(ArtifactError, match="sets the state"):
        parse(program, classes=frozenset({name}))
    assert Inert("x").state == {}


def test_a_file_larger_than_the_cap_is_not_read(tmp_path):
    path = tmp_path / "names.joblib"
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ArtifactError, match="more than"):
        read_pickle(path)


def test_a_small_file_of_very_many_empty_lists_is_refused():
    with pytest.raises(ArtifactError, match="instructions"):
        parse(b"\x80\x04" + b"]" * 100_001 + b".")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"absent\.joblib"):
        read_pickle(tmp_path / "absent.joblib")


def test_plain_json_copies_settings_and_keeps_missing_as_none():
    value = {"a": (1, 2.5), 3: float("nan"), "b": {"c": None}}
    assert plain_json(value, source="s") == {"a": [1, 2.5], "3": None, "b": {"c": None}}


def test_plain_json_refuses_a_list_that_holds_itself():
    loop = []
    loop.append(loop)
    with pytest.raises(ArtifactError, match="nested too deeply"):
        plain_json(parse(pickle.dumps(loop)), source="s")


def test_plain_json_refuses_a_small_file_that_would_unfold_to_a_billion_values():
    bomb = [1]
    for _ in range(30):
        bomb = [bomb, bomb]
    with pytest.raises(ArtifactError, match="too large"):
        plain_json(parse(pickle.dumps(bomb)), source="s")


def test_plain_json_refuses_bytes():
    with pytest.raises(ArtifactError, match="bytes"):
        plain_json([b"x"], source="s")


def test_the_reader_does_not_import_pickle():
    source = Path(inspect.getfile(parse_pickle)).read_text()
    assert "import pickletools" in source
    assert "import pickle\n" not in source and "import joblib" not in source


def test_the_published_files_read_as_plain_values(shared_data):
    assert read_pickle(shared_data / "blueprint" / "model_names.joblib") == [
        "gpt-5-chat",
        "nemotron-nano-12b-v2-vl",
        "meta/llama-3.2-1b-instruct",
    ]
    settings_ = read_pickle(shared_data / "blueprint" / "best_hyperparameters.joblib")
    chosen = settings_["gpt-5-chat"]
    assert (chosen["n_estimators"], chosen["max_depth"], chosen["learning_rate"]) == (500, 3, 0.3)
    assert type(chosen["scale_pos_weight"]) is float


def laughs(opening=b"]"):
    """A program that builds 10 ** 14 values, each holding the one before it ten times."""
    steps = b"".join(b"(" + 10 * (b"h" + bytes([i])) + b"tq" + bytes([i + 1]) for i in range(14))
    return opening + b"q\x00" + steps


@pytest.mark.parametrize(
    "program",
    [
        laughs() + b"\x8c\x01a\x93.",  # the name of a class
        laughs(b")") + b"q\x20}h\x20Ns.",  # a key
        b"})" + 99_000 * b"\x85" + b"Ns.",  # a key, nested deeply
        b")" + 99_000 * b"\x85" + b"\x8c\x01a\x93.",
        b"cnumpy\ndtype\n" + laughs(b")") + b"\x85R.",
    ],
)
def test_values_that_hold_each_other_over_and_over_are_refused_at_once(program):
    with pytest.raises(ArtifactError, match="no plain pickle"):
        parse(b"\x80\x04" + program)


def test_a_number_that_json_cannot_hold_is_no_setting():
    with pytest.raises(ArtifactError, match="whole number"):
        plain_json({"seed": 2**9999}, source="test.joblib")
