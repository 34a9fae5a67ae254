"""How a stream ends for the client: as the server ended it, or with an error that it can see."""

from __future__ import annotations

from router_runtime.service.envelope import Refusal, error_event
from router_runtime.targets.sse import StreamScan
from router_runtime.targets.streams import Stream, code_of

__all__ = ["Stream", "StreamScan", "ending_of"]

CUT_STATUS = 502


def ending_of(stream: Stream) -> bytes:
    """Return the last bytes of a stream whose ``chunks`` have all been read.

    They are kept apart so that a request is accounted for before its answer ends. A stream that
    broke ends with an error event and without ``[DONE]``; the server's own error event, which has
    been passed on, is not repeated.
    """
    if stream.cut is None or stream.scan.error is not None:
        return stream.ending
    code = "stream_timeout" if code_of(stream.cut) == "timeout" else "stream_cut"
    return error_event(
        Refusal(CUT_STATUS, code, f"The answer of '{stream.model_id}' broke off before its end.")
    )
