"""The client's end of one request: reading it, noticing that it hung up, hanging up on it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ABORT = "kimi_async.abort"
"""ASGI extension: ``scope["extensions"][ABORT]["abort"]()`` closes the connection with no answer."""

_GONE = "http.disconnect"


class HungUp(Exception):
    """The client is gone."""


class Dropped(Exception):
    """The client shall see its connection closed."""


@dataclass(slots=True)
class Exchange:
    """One request and the way back, as ASGI 3 has them.

    Attributes:
        item: what the path has in place of ``{id}``.
    """

    scope: Scope
    receive: Receive
    send: Send
    item: str = ""

    def header(self, name: bytes) -> bytes:
        """The first header of that lower-case name; empty without one."""
        return next((value for found, value in self.scope["headers"] if found == name), b"")

    async def read(self) -> bytes:
        """The body.

        Raises:
            HungUp: the client did not wait that long.
        """
        parts = []
        while True:
            message = await self.receive()
            if message["type"] == _GONE:
                raise HungUp
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    async def wait(self, seconds: float) -> None:
        """Let the client wait. A timeout on ``receive`` watches it without a second task.

        Raises:
            HungUp: at the moment it does.
        """
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                while (await self.receive())["type"] != _GONE:
                    pass
        except TimeoutError:
            return
        raise HungUp

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status line and the headers."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def end(self, body: bytes, cut: int | None = None) -> None:
        """Send the last of the body.

        Raises:
            Dropped: once ``cut`` bytes of it are sent.
        """
        await self.send({"type": "http.response.body", "body": body[:cut], "more_body": cut is not None})
        if cut is not None:
            raise Dropped

    async def close(self) -> None:
        """Close the connection. Merely returning would make the server send a 500 of its own, or complain."""
        extension = self.scope.get("extensions", {}).get(ABORT)
        if extension is None:
            raise ConnectionResetError("the mock gateway dropped the connection")
        await asyncio.sleep(0)  # uvloop writes what was sent at the end of a turn
        extension["abort"]()
        # The server learns of it a turn of the loop later, and then knows that no answer is owed.
        while (await self.receive())["type"] != _GONE:
            pass


class Watch:
    """Sees the client hang up in the middle of a stream: one task for all pauses costs less than a timeout each.

    Args:
        receive: nobody else may await it while the block lasts.
    """

    def __init__(self, receive: Receive) -> None:
        self._loop = asyncio.get_running_loop()
        self._gone = False
        self._pause: asyncio.Future[None] | None = None
        self._task = self._loop.create_task(self._watch(receive))

    async def pause(self, seconds: float) -> None:
        """Wait so long, but at least give the loop a turn, in which it writes.

        Raises:
            HungUp: at the moment the client does.
        """
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            self._pause = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._end_pause)
            try:
                await self._pause
            finally:
                timer.cancel()
        if self._gone:
            raise HungUp

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != _GONE:
            pass
        self._gone = True
        self._end_pause()

    def _end_pause(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
