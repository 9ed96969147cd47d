"""An HTTP/1.1 answer, taken apart by llhttp, the parser of Node.js."""

import httptools
import httpx

MAX_HEAD = 100 * 1024
"""Bytes of a head, of trailers or of a chunk's extensions that are taken; httpcore's bound."""

_REASON = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))

_EARLY_BODY = "an informational answer with a body"  # which RFC 9110, section 15.2, knows of none


class AnswerParser:
    """What came of the answer to one request, and then of the next one's, on the same connection.

    llhttp is strict as it comes: a line that ends in a bare LF, a folded header, two lengths, a length beside
    chunks, a control character in a header are errors. What it leaves to its caller is refused here: a transfer coding
    other than chunked, a switch of protocols, a body before the final head, endless heads. Informational answers (1xx)
    and trailers are dropped.

    Attributes:
        version: such as ``b"HTTP/1.1"``, once ``has_head``.
        status: likewise.
        reason: the text after it.
        headers: names and values as they came.
        has_head: whether the head is complete.
        ended: whether the whole answer is there.
        parts: of the body, not yet taken by whoever reads it.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.begin("")

    def begin(self, method: str) -> None:
        """Expect the answer to a request of that method."""
        self.version = b""
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.ended = False
        self.parts: list[bytes] = []
        self._bodiless = method == "HEAD"
        self._keep_alive = False
        self._length: int | None = None
        self._chunked = False
        self._problem = ""
        self._received = 0
        self._since_body = 0

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on the connection: the answer ended as it said, and nothing after it."""
        return self.ended and self._keep_alive

    def feed(self, data: bytes) -> None:
        """Take what came; nothing means that the connection has ended. Raises httpx.RemoteProtocolError."""
        if not data:
            self._end_of_connection()
            return
        self._since_body += len(data)
        parts = len(self.parts)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._problem = self._problem or "the server switched protocols"
        except httptools.HttpParserError as exc:
            self._keep_alive = False  # what comes after an answer is no error of that answer
            if not self.ended:
                self._problem = self._problem or f"illegal answer: {exc}"
        self._check(any_body=len(self.parts) > parts)

    def _check(self, *, any_body: bool) -> None:
        if any_body:
            self._since_body = 0
        elif self._since_body > MAX_HEAD and not self.ended:
            self._problem = self._problem or f"more than {MAX_HEAD:,} bytes without any of the body"
        if self._problem:
            self._keep_alive = False
            raise httpx.RemoteProtocolError(self._problem)

    def _end_of_connection(self) -> None:
        self._keep_alive = False
        if self.ended:
            return
        if not self.has_head:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        if self._chunked:
            raise _cut_off("incomplete chunked read")
        if self._length is not None:
            raise _cut_off(f"received {self._received} bytes, expected {self._length}")
        self.ended = True  # which is how an answer of unknown length ends

    # -- what llhttp calls ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Another answer: the one after a 1xx, or one that nobody has asked for."""
        if self.ended:
            self._keep_alive = False
        else:
            self.reason = b""
            self.headers = []

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason, which may be cut anywhere."""
        if not self.has_head:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if not self.has_head:
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self.has_head:
            return
        status = self._parser.get_status_code()
        if self.reason.translate(None, _REASON):
            self._problem = "a control character in the status line"
        if status == 101:
            self._problem = "the server switched protocols"
        if status < 100:
            self._problem = "a status below 100"
        if status < 200:
            if any(name.lower() == b"transfer-encoding" for name, _ in self.headers):
                self._problem = self._problem or _EARLY_BODY
            return
        self.version = b"HTTP/" + self._parser.get_http_version().encode()
        self.status = status
        self.has_head = True
        self._frame()

    def _frame(self) -> None:
        """Note how the body will end."""
        self._keep_alive = self.version == b"HTTP/1.1" and self._parser.should_keep_alive()
        if self._bodiless:  # llhttp does not know, and waits for a body
            self.ended, self._keep_alive = True, False
            return
        for name, value in self.headers:
            match name.lower():
                case b"content-length":
                    self._length = int(value)
                case b"transfer-encoding":
                    if self._chunked or value.lower() != b"chunked":
                        self._problem = "a Transfer-Encoding other than chunked"
                    self._chunked = True

    def on_body(self, part: bytes) -> None:
        """A piece of the body."""
        if not self.has_head:
            self._problem = self._problem or _EARLY_BODY
        elif not self.ended:
            self.parts.append(part)
            self._received += len(part)

    def on_message_complete(self) -> None:
        """The answer has ended, unless it was a 1xx."""
        self.ended = self.has_head


def _cut_off(how: str) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(f"peer closed connection without sending complete message body ({how})")
