"""A scripted gateway for tests: an inner transport on virtual time that traces as httpcore does."""

import asyncio
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType, SimpleNamespace, TracebackType

import httpx

OVERLOADED = ("engine_overloaded_error", "The engine is currently overloaded, please try again later")
NO_BALANCE = ("exceeded_current_quota_error", "Your account is suspended due to insufficient balance")
DONE = {"return_value": None}
TEXTS = {
    "concurrency": "max organization concurrency: {limit}, please try again after 1 seconds",
    "rpm": "organization max RPM: {limit}, please try again after 1 seconds",
    "tpm": "organization TPM rate limit, current: {current}, limit: {limit}",
    "tpd": "organization TPD rate limit, current: {current}, limit: {limit}",
}


class Body(httpx.AsyncByteStream):
    """An answer's body, in chunks that take their time, and perhaps an end before its time."""

    def __init__(self, *chunks, seconds=0.0, fails=None):
        self.chunks, self.seconds, self.fails, self.closed = chunks, seconds, fails, 0

    async def __aiter__(self):
        for chunk in self.chunks:
            await asyncio.sleep(self.seconds)
            yield chunk
        if self.fails is not None:
            raise self.fails

    async def aclose(self):
        self.closed += 1


@dataclass
class Step:
    """How one attempt goes. ``fails`` is raised at the end of the phase that ``at`` names."""

    status: int = 200
    content: bytes | Body = b""
    headers: dict | None = None
    connect: float = 0.0
    tunnel: float | None = None
    write: float = 0.0
    think: float = 0.0
    fails: Callable[[], BaseException] | None = None
    at: str = "connect"
    prefix: str = "http11"


class Scripted(httpx.AsyncBaseTransport):
    """Connects, writes and answers as its steps say, the last of them for ever."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.requests, self.written, self.bodies, self.closed = [], [], [], False

    @property
    def payloads(self):
        """The JSON of each request."""
        return [json.loads(request.content) for request in self.requests]

    async def handle_async_request(self, request):
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        trace = request.extensions.get("trace") or ignore
        self.requests.append(request)
        await trace("connection.connect_tcp.started", {})
        await phase(step, "connect", trace, "connection.connect_tcp")
        if step.tunnel is not None:
            await self._open_tunnel(step, trace)
        info = {"request": SimpleNamespace(method=request.method.encode())}
        await trace(f"{step.prefix}.send_request_headers.started", info)
        await trace(f"{step.prefix}.send_request_headers.complete", DONE)
        await trace(f"{step.prefix}.send_request_body.started", info)
        await phase(step, "write", trace, f"{step.prefix}.send_request_body")
        self.written.append(asyncio.get_running_loop().time() - 1000.0)
        await trace(f"{step.prefix}.send_request_body.complete", DONE)
        await phase(step, "think", trace, f"{step.prefix}.receive_response_headers")
        body = step.content if isinstance(step.content, Body) else Body(step.content)
        self.bodies.append(body)
        return httpx.Response(step.status, headers=step.headers, stream=body)

    async def _open_tunnel(self, step, trace):
        """Ask a proxy; httpcore traces that as a request of its own."""
        info = {"request": SimpleNamespace(method=b"CONNECT")}
        for name in ("send_request_headers", "send_request_body", "receive_response_headers"):
            await trace(f"http11.{name}.started", info)
            await trace(f"http11.{name}.complete", DONE)
        await phase(step, "tunnel", trace, "connection.start_tls")

    async def aclose(self):
        self.closed = True


async def phase(step, name, trace, event):
    """Let a phase take its time, and fail if it is the one."""
    await asyncio.sleep(getattr(step, name))
    if step.fails is not None and step.at == name:
        await trace(f"{event}.failed", {})
        raise step.fails()


async def ignore(event, info):
    """A trace that nobody asked for."""


def answer(content="hello", *, prompt_tokens=5, **step):
    """A completion."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "kimi-k2.6",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": prompt_tokens + 2},
    }
    return Step(content=json.dumps(body).encode(), headers={"Msh-Request-Id": "req-1"}, **step)


def error(status, kind, message, **step):
    """Kimi's envelope."""
    return Step(status, json.dumps({"error": {"message": message, "type": kind}}).encode(), **step)


def refused(budget, limit=0, current=0, **step):
    """A 429 for one of the account's budgets."""
    return error(429, "rate_limit_reached_error", TEXTS[budget].format(limit=limit, current=current), **step)


def everything_in(value):
    """Whatever can be read off a value: its texts, what it holds, and for an error its whole chain, as one text."""
    found, seen, todo = [], set(), [value]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | TracebackType):
            continue
        seen.add(id(one))
        found.append(one.decode(errors="replace") if isinstance(one, bytes) else f"{one!s} {one!r}")
        if isinstance(one, BaseException):
            todo += [one.__cause__, one.__context__, one.args, "".join(traceback.format_exception(one))]
        if isinstance(one, Mapping):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            todo += one
        todo += getattr(one, "__dict__", {}).values()
        todo += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    return "\n".join(found)
