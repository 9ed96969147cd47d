"""What every contender is told, and what it must tell.

The standard library alone: this is imported in all environments.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

MODEL = "moonshot-v1-8k"
API_KEY = "sk-benchmark"
TEMPERATURE = 0.3

TIMEOUT = 120.0
"""Seconds that each contender gives one attempt, where it can be told; no gateway here takes that long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a contender is told about the account; it uses those limits that it knows how to keep.

    Attributes:
        base_url: ends in ``/v1``.
        api_key: any text.
        concurrency: requests under way at once.
        rpm: requests in a sliding minute.
        tpm: tokens, prompt and ``max_tokens``, likewise.
        minute: seconds that the gateway takes a minute to have.
    """

    base_url: str
    api_key: str = API_KEY
    concurrency: int
    rpm: int
    tpm: int
    minute: float = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request: a text, and what the gateway will charge for it.

    Attributes:
        text: of the only message.
        prompt_tokens: as the gateway counts them.
        max_tokens: of the answer.
        key: whatever a scenario wants to know it by; it is not sent.
    """

    text: str
    prompt_tokens: int
    max_tokens: int
    key: str = ""

    @property
    def tokens(self) -> int:
        """What counts against TPM and TPD."""
        return self.prompt_tokens + self.max_tokens

    @property
    def messages(self) -> list[dict[str, str]]:
        """As in the request."""
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        answered: whether the contender handed over an answer.
        submitted: to the contender, in seconds of ``time.monotonic()``, which all processes of a machine share.
        finished: when the contender was done with it, likewise; if it never was, when it was stopped.
        error: why it was not answered.
    """

    answered: bool
    submitted: float
    finished: float
    error: str | None = None


class Progress:
    """The outcomes so far: a contender that is stopped half-way keeps what it has.

    Args:
        count: of the requests.
        ready: called when the contender is ready to send, and returns when it may.
    """

    def __init__(self, count: int, ready: Callable[[], None] = lambda: None) -> None:
        self._ready = ready
        self._submitted = [time.monotonic()] * count
        self._outcomes: list[Outcome | None] = [None] * count

    def begin(self) -> None:
        """The contender has opened whatever it needs. Until it is told otherwise, all requests are submitted now."""
        self._ready()
        self._submitted = [time.monotonic()] * len(self._submitted)

    def submitted(self, index: int) -> None:
        """The contender has request ``index`` from now on."""
        self._submitted[index] = time.monotonic()

    def finished(self, index: int, error: str | None = None) -> None:
        """The contender is done with request ``index``, which was answered unless there is an ``error``."""
        self._outcomes[index] = Outcome(error is None, self._submitted[index], time.monotonic(), error)

    def outcomes(self) -> list[Outcome]:
        """One for each request, in their order."""
        now = time.monotonic()
        return [
            outcome or Outcome(answered=False, submitted=submitted, finished=now, error="never finished")
            for outcome, submitted in zip(self._outcomes, self._submitted, strict=True)
        ]


Ask = Callable[[Request], Awaitable[bool]]
"""Sends one request, and tells whether it was answered."""

Connect = Callable[[Account], Awaitable[Ask]]
"""Opens a client on the running loop. It is never closed: it lives as long as the process that measures it."""

Run = Callable[[Account, Sequence[Request], Progress], Awaitable[None]]
"""Sends all requests, submitted at once, and returns when all of them are finished. Calls ``begin`` before."""


def all_at_once(connect: Connect) -> Run:
    """A run in which each request is a call of its own, as ``asyncio.gather`` makes them."""

    async def run(account: Account, requests: Sequence[Request], progress: Progress) -> None:
        ask = await connect(account)
        progress.begin()
        await ask_all(ask, requests, progress)

    return run


async def ask_all(ask: Ask, requests: Sequence[Request], progress: Progress | None = None) -> list[Outcome]:
    """Send all requests at once. An exception is an outcome, not the end."""
    progress = progress or Progress(len(requests))

    async def one(index: int, request: Request) -> None:
        progress.submitted(index)
        try:
            error = None if await ask(request) else "not answered"
        except Exception as exc:  # noqa: BLE001 - whatever a client throws, the request is lost
            error = f"{type(exc).__name__}: {exc}"[:300]
        progress.finished(index, error)

    await asyncio.gather(*(one(index, request) for index, request in enumerate(requests)))
    return progress.outcomes()
