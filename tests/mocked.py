"""A client of the mock gateway in the same loop, without sockets, and the requests that its tests send."""

import json

import httpx

from kimi_async.mock import Gateway, MockSettings

KEY = {"Authorization": "Bearer sk-test"}


def count_characters(messages, tools, model):
    """A counter that a reader can check: a character is a token."""
    return sum(len(message.get("content") or "") for message in messages) or 1


def client(settings, *, clock=lambda: 0.0):
    """A client of a gateway with those settings."""
    gateway = Gateway(settings, count_characters, clock=clock)
    transport = httpx.ASGITransport(gateway)
    return httpx.AsyncClient(transport=transport, base_url="http://mock/v1", headers=KEY, timeout=10)


def body(prompt="Hello", **options):
    """The smallest chat completion request."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "moonshot-v1-8k", "messages": messages, "max_tokens": 10, **options}


def instant(**settings):
    """Settings without latency."""
    return MockSettings(latency=0, **settings)


async def chat(kimi, *args, **options):
    """Ask for one completion."""
    return await kimi.post("/chat/completions", json=body(*args, **options))


async def choice(kimi, **options):
    """The only choice of an answer that may be long."""
    response = await chat(kimi, **{"max_tokens": 1_000, **options})
    assert response.status_code == 200, response.text
    (only,) = response.json()["choices"]
    return only


async def refusal(kimi, **options):
    """The text of a 400."""
    response = await chat(kimi, **options)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    return response.json()["error"]["message"]


def events(content):
    """What stands behind ``data:`` in each server-sent event."""
    *lines, last = content.split("\n\n")
    assert last == ""
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


async def chunks(kimi, *args, **options):
    """The chunks of a streamed answer, which ends as it should."""
    response = await chat(kimi, *args, stream=True, **options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream"
    *found, done = events(response.text)
    assert done == "[DONE]"
    return [json.loads(event) for event in found]
