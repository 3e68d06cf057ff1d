"""Split a byte stream into server-sent events without decoding it.

https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as completions use it: data
lines, comments, CR, LF and CRLF, events cut anywhere by the network. Bytes only: half a UTF-8
character at the end of a read is none of our business until somebody parses the payload.
"""

from __future__ import annotations

_MAX_EVENT_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """Report a stream that is no event stream: an event without an end."""


class SseReader:
    """Collect reads; hand out the data of each event that they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads of the events completed by `data`, in order.

        Raises SseError when an event grows beyond 4 MiB. An event that is incomplete when the stream
        ends is never handed out, as the specification wants.
        """
        if b"\r" in data or self._after_cr:
            data = self._line_feeds(data)
        data = self._rest + data if self._rest else data
        if not self._started:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return []
            self._started = True
            data = data.removeprefix(_BOM)
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise SseError(f"an event has no end after {len(self._rest)} bytes")
        payloads = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:  # nearly every event of vLLM
                payloads.append(event[6:])
            else:
                payload = _payload(event)
                if payload is not None:
                    payloads.append(payload)
        return payloads

    def _line_feeds(self, data: bytes) -> bytes:
        # A CR at the very end counts at once, lest the event wait for the next one; if that begins
        # with LF, it was a CRLF cut in two.
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payload(event: bytes) -> bytes | None:
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
