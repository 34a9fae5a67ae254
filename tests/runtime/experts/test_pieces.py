from hypothesis import given
from hypothesis import strategies as st

from router_runtime.experts.pieces import Pieces


def decode(tokens):
    """Bytes as tokens: characters beyond ASCII have several."""
    return bytes(tokens).decode("utf-8", "replace")


def read(text, stop=()):
    pieces = Pieces(decode, stop)
    shown = [pieces.feed(token) for token in text.encode()]
    shown.append(pieces.finish())
    return pieces, shown


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_joined_are_the_text_up_to_the_first_stop(text, stops):
    pieces, shown = read(text, stops)
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert "".join(shown) == pieces.text == text[: min(ends, default=len(text))]
    assert pieces.stopped == bool(ends)


@given(st.text(alphabet="aé日😀", min_size=1))
def test_no_piece_holds_half_a_character(text):
    _, shown = read(text)
    assert not any("\ufffd" in piece for piece in shown)


def test_what_may_begin_a_stop_is_held_back_until_it_is_none():
    pieces = Pieces(decode, ["STOP"])
    assert [pieces.feed(ord(letter)) for letter in "aSTxSTO"] == ["a", "", "", "STx", "", "", ""]
    assert pieces.finish() == "STO"


def test_bytes_that_are_no_character_are_shown_and_not_awaited_for_ever():
    pieces = Pieces(decode)
    shown = "".join(pieces.feed(0xFF) for _ in range(20)) + pieces.finish()
    assert shown == "\ufffd" * 20


def test_nothing_follows_a_stop():
    pieces, _ = read("one. two.", ["."])
    assert pieces.text == "one"
    assert (pieces.feed(ord("x")), pieces.finish()) == ("", "")
