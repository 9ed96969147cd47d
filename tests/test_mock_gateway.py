"""The mock gateway as its clients see it: mostly without sockets, the last few over real ones."""

import asyncio
import json
import socket
import subprocess
import sys
from contextlib import suppress

import httpx
import pytest

from kimi_async.errors import RequestTooLarge
from kimi_async.limits import RateLimits
from kimi_async.mock import Faults, Gateway, MockSettings, running, spawn
from kimi_async.mock.replies import prose, thoughts
from kimi_async.models import find
from kimi_async.tokens import TokenCounter

from .mocked import KEY, body, chat, client, count_characters, instant

ACCOUNT = "Your account org-00000000000000000000000000000000<ak-mock0000000000000000> request reached"


async def test_a_completion_has_kimis_shape():
    """Every field of the API reference; completions never exceed max_tokens."""
    async with client(instant()) as kimi:
        response = await chat(kimi, n=2)
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "moonshot-v1-8k"
    assert answer["id"].startswith("chatcmpl-")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["message"]["role"] for choice in answer["choices"]} == {"assistant"}
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 5
    assert 2 <= usage["completion_tokens"] <= 20
    assert usage["total_tokens"] == 5 + usage["completion_tokens"]
    assert len(response.headers["msh-request-id"]) == 32


async def test_long_answers_finish_for_length():
    """A choice that reaches max_tokens says so; max_completion_tokens goes before max_tokens."""
    async with client(instant(completion_ratio=1, completion_spread=0)) as kimi:
        answer = (await chat(kimi, max_completion_tokens=7)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7


async def test_a_repeated_prompt_is_cached_in_chunks():
    """The second time, 600 tokens of prompt hold two chunks of 256."""
    async with client(instant()) as kimi:
        answers = [(await chat(kimi, "x" * 600)).json() for _ in range(2)]
    assert [answer["usage"]["cached_tokens"] for answer in answers] == [0, 512]


def test_prose_has_the_tokens_it_claims():
    """By Kimi's vocabulary, within the last sentence's rounding."""
    counter = TokenCounter()
    counter.load_now()
    if not counter.exact:
        pytest.skip("no vocabulary on this platform")
    assert [counter.count(prose(tokens)) for tokens in (17, 170, 1_700)] == [17, 170, 1_700]
    assert [counter.count(thoughts(tokens)) for tokens in (15, 150, 1_500)] == [15, 150, 1_500]
    for write in (prose, thoughts):
        assert all(abs(counter.count(write(tokens)) - tokens) <= 4 for tokens in range(1, 100))


@pytest.mark.parametrize(
    ("limits", "text", "retry_after"),
    [
        (RateLimits(rpm=1), "organization max RPM: 1, please try again after 1 seconds", "1"),
        (RateLimits(tpm=20), "organization TPM rate limit, current: 30, limit: 20", "60"),
        (RateLimits(tpd=20), "organization TPD rate limit, current: 30, limit: 20", "86400"),
    ],
)
async def test_refusals_have_kimis_words(limits, text, retry_after):
    """The second request of 5 + 10 tokens is one too many; nothing of it is charged."""
    async with client(instant(limits=limits)) as kimi:
        assert (await chat(kimi)).status_code == 200
        refused = await chat(kimi)
        stats = (await kimi.get("/stats")).json()
    assert refused.status_code == 429
    assert refused.json() == {"error": {"message": f"{ACCOUNT} {text}", "type": "rate_limit_reached_error"}}
    assert refused.headers["retry-after"] == retry_after
    assert (stats["admitted"], stats["charged_tokens"]) == (1, 15)
    assert stats["answers"] == {"200": 1, "429": 1}


async def test_concurrency_is_refused_while_the_slot_is_taken():
    """Two at once: one answer, one refusal, at once; afterwards the slot is free."""
    settings = MockSettings(latency=0.02, limits=RateLimits(concurrency=1))
    async with client(settings) as kimi:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(chat(kimi)) for _ in range(2)]
        after = await chat(kimi)
        stats = (await kimi.get("/stats")).json()
    refused = next(task.result() for task in tasks if task.result().status_code == 429)
    text = "max organization concurrency: 1, please try again after 1 seconds"
    assert refused.json()["error"]["message"] == f"{ACCOUNT} {text}"
    assert after.status_code == 200
    assert (stats["peak_in_flight"], stats["in_flight"], stats["refused"]["concurrency"]) == (1, 0, 1)


async def test_the_window_follows_the_clock():
    """RPM 1 with a minute of 2 s: refused at 1.999 s, admitted at 2 s."""
    times = iter([0, 1.999, 2])
    async with client(instant(limits=RateLimits(rpm=1, minute=2)), clock=lambda: next(times)) as kimi:
        assert [(await chat(kimi)).status_code for _ in range(3)] == [200, 429, 200]


async def test_all_choices_and_default_lengths_are_charged():
    """``n * max_tokens``, and the model's default without max_tokens."""
    async with client(instant()) as kimi:
        await chat(kimi, n=3)
        await chat(kimi, max_tokens=None)
        stats = (await kimi.get("/stats")).json()
    assert stats["charged_tokens"] == (5 + 3 * 10) + (5 + 1024)


@pytest.mark.parametrize(
    ("request_body", "status", "kind", "text"),
    [
        (b"{", 400, "invalid_request_error", "Invalid request: failed to parse"),
        (b"[]", 400, "invalid_request_error", "Invalid request: the body must be a JSON object"),
        ({"model": None}, 400, "invalid_request_error", "Invalid request: model is required"),
        ({"messages": []}, 400, "invalid_request_error", "Invalid request: messages must be"),
        ({"messages": ["hi"]}, 400, "invalid_request_error", "Invalid request: every message must"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "Invalid request: max_tokens must be"),
        ({"max_tokens": True}, 400, "invalid_request_error", "Invalid request: max_tokens must be"),
        ({"n": 6}, 400, "invalid_request_error", "Invalid request: n must be"),
        (body("x" * 8192), 400, "invalid_request_error", "Input token length too long"),
        (body("x" * 100, max_tokens=8900), 400, "invalid_request_error",
         "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)"),
        ({"model": "gpt-4"}, 404, "resource_not_found_error", "Not found the model gpt-4 or Permission denied"),
    ],
)  # fmt: skip
async def test_wrong_requests_get_kimis_errors_and_cost_nothing(request_body, status, kind, text):
    """Before any budget is looked at."""
    content = request_body if isinstance(request_body, bytes) else json.dumps({**body(), **request_body})
    async with client(instant()) as kimi:
        response = await kimi.post("/chat/completions", content=content)
        stats = (await kimi.get("/stats")).json()
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["error"]["message"].startswith(text)
    assert stats["admitted"] == 0


async def test_the_whole_context_may_be_asked_for():
    """8192 fit into 8192; the error above is for one more."""
    async with client(instant()) as kimi:
        statuses = [(await chat(kimi, "x" * 100, max_tokens=asked)).status_code for asked in (8092, 8093)]
    assert statuses == [200, 400]


@pytest.mark.parametrize("model", ["moonshot-v1-8k-vision-preview", "kimi-k3"])
async def test_an_image_counts_against_tpm_and_not_against_the_context(model):
    """Its size is a guess, as are K3's templates: mock and client take the same request, and refuse one token more."""
    counter = TokenCounter()
    await counter.load()
    if not counter.exact:
        pytest.skip("no vocabulary on this platform")
    text = {"type": "text", "text": "What is it?"}
    images = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * 2
    asked = body(model=model, messages=[{"role": "user", "content": [text, *images]}])
    room = find(model).context - counter.prompt_tokens([{"role": "user", "content": [text]}])

    def count_prompt(messages, tools, name):
        return counter.prompt_tokens(messages, tools, model=name)

    transport = httpx.ASGITransport(Gateway(instant(), count_prompt, clock=lambda: 0.0))
    async with httpx.AsyncClient(transport=transport, base_url="http://mock/v1", headers=KEY) as kimi:
        taken, refused = [
            await kimi.post("/chat/completions", json={**asked, "max_tokens": tokens}) for tokens in (room, room + 1)
        ]
        stats = (await kimi.get("/stats")).json()
    cost = await counter.cost({**asked, "max_tokens": room})
    with pytest.raises(RequestTooLarge):
        await counter.cost({**asked, "max_tokens": room + 1})
    assert (taken.status_code, refused.status_code) == (200, 400)
    assert f"(requested: {find(model).context + 1})" in refused.json()["error"]["message"]
    assert stats["charged_tokens"] == cost.tokens >= find(model).context + 2 * find(model).image_tokens


async def test_retired_models_are_served_unless_told_otherwise():
    """Guides and data sets name them; Kimi's own answer is a 404."""
    async with client(instant(serve_retired=False)) as strict, client(instant()) as lenient:
        assert [(await chat(kimi)).status_code for kimi in (strict, lenient)] == [404, 200]
        assert (await chat(strict, model="kimi-k2.6")).status_code == 200


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({}, "incorrect_api_key_error"),
        ({"Authorization": "Bearer "}, "incorrect_api_key_error"),
        ({"Authorization": "Basic c2s="}, "incorrect_api_key_error"),
        ({"Authorization": "Bearer sk-bad"}, "invalid_authentication_error"),
    ],
)
async def test_keys_are_checked(header, kind):
    """Missing, empty, of another kind, or one that the settings call bad; statistics need none."""
    transport = httpx.ASGITransport(Gateway(instant(bad_keys=frozenset({"sk-bad"})), count_characters))
    async with httpx.AsyncClient(transport=transport, base_url="http://mock/v1") as kimi:
        response = await kimi.post("/chat/completions", json=body(), headers=header)
        assert (response.status_code, response.json()["error"]["type"]) == (401, kind)
        assert (await kimi.get("/stats")).status_code == 200


async def test_the_other_endpoints():
    """Models with their context, the balance, a prompt's estimate (without the answer's 3 tokens), and no others."""
    async with client(instant()) as kimi:
        models = (await kimi.get("/models")).json()["data"]
        balance = (await kimi.get("/users/me/balance")).json()
        estimate = (await kimi.post("/tokenizers/estimate-token-count", json=body("x" * 83))).json()
        unknown = await kimi.get("/chat/completions")
    assert {"kimi-k2.6": 262_144}.items() <= {m["id"]: m["context_length"] for m in models}.items()
    assert all(m["supports_image_in"] and m["supports_video_in"] and m["supports_reasoning"] for m in models)
    assert balance["data"]["available_balance"] > 0
    assert estimate == {"data": {"total_tokens": 80}}
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "resource_not_found_error")


async def test_overload_is_kimis_and_keeps_the_charge():
    """429 of another type and without Retry-After; the request was admitted and stays charged."""
    async with client(instant(faults=Faults(overload=1))) as kimi:
        response = await chat(kimi)
        stats = (await kimi.get("/stats")).json()
    assert (response.status_code, response.json()["error"]["type"]) == (429, "engine_overloaded_error")
    assert "retry-after" not in response.headers
    assert (stats["charged_tokens"], stats["in_flight"], stats["faults"]) == (15, 0, {"overload": 1})


async def test_server_errors_are_html_pages():
    """500, 503 and 504, whichever the dice say."""
    async with client(instant(faults=Faults(error_5xx=1))) as kimi:
        responses = [await chat(kimi, f"prompt {i}") for i in range(30)]
    assert {response.status_code for response in responses} == {500, 503, 504}
    assert {response.headers["content-type"] for response in responses} == {"text/html"}


async def test_garbled_answers_are_no_json():
    """Status 200, and a body that is cut short or something else altogether."""
    async with client(instant(faults=Faults(garble=1))) as kimi:
        responses = [await chat(kimi, f"prompt {i}") for i in range(20)]
    assert {response.status_code for response in responses} == {200}
    for response in responses:
        with pytest.raises(ValueError, match=r"line|utf-8"):
            response.json()


async def test_without_a_socket_a_drop_is_an_exception():
    """As httpx's ASGI transport passes it on."""
    async with client(instant(faults=Faults(drop=1))) as kimi:
        with pytest.raises(ConnectionResetError):
            await chat(kimi)


async def test_a_burst_of_overload_spares_nobody():
    """Ten seconds after the first request, for one second; each of them was admitted, and is charged."""
    clock = iter(at for at in (100.0, 109.9, 110.0, 110.9, 111.0) for _ in "ab")  # to be admitted, and for its fate
    async with client(instant(faults=Faults(overload_every=11, overload_lasts=1)), clock=lambda: next(clock)) as kimi:
        statuses = [(await chat(kimi, str(number))).status_code for number in range(5)]
        stats = (await kimi.get("/stats")).json()
    assert statuses == [200, 200, 429, 429, 200]
    assert (stats["admitted"], stats["faults"]) == (5, {"overload": 2})


async def test_the_same_body_again_is_counted_and_so_is_its_second_answer():
    """Three times the same, two answers: one of them was paid twice. Another body has nothing to do with it."""
    clock = iter(at for at in (0.0, 9.0, 10.0, 11.0) for _ in "ab")
    async with client(instant(faults=Faults(overload_every=10, overload_lasts=1)), clock=lambda: next(clock)) as kimi:
        for prompt in ("other", "same", "same", "same"):
            await chat(kimi, prompt)
        stats = (await kimi.get("/stats")).json()
    assert (stats["admitted"], stats["repeated"], stats["billed_again"]) == (4, 2, 1)


@pytest.mark.parametrize(("fault", "billed_again"), [("cut", 1), ("garble", 1), ("error_5xx", 0)])
async def test_a_broken_answer_is_billed_and_a_server_error_is_not(fault, billed_again):
    """A client that asks twice pays twice where the answer had been generated."""
    async with client(instant(faults=Faults(**{fault: 1}))) as kimi:
        for _ in range(2):
            with suppress(ConnectionResetError):
                await chat(kimi)
        assert (await kimi.get("/stats")).json()["billed_again"] == billed_again


async def test_a_drop_closes_the_connection_without_an_answer():
    """Over a real socket: httpx sees a protocol or read error, and the slot is free again."""
    async with (
        running(instant(faults=Faults(drop=1)), count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
    ):
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await chat(kimi)
        stats = (await kimi.get("/stats")).json()
    assert (stats["faults"], stats["in_flight"], stats["answers"]) == ({"drop": 1}, 0, {})


async def test_the_slot_is_free_before_the_answer_is_read():
    """With one slot, a client that sends as soon as it has the answer is never refused."""
    settings = instant(limits=RateLimits(concurrency=1))
    async with (
        running(settings, count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
    ):
        assert {(await chat(kimi, str(i))).status_code for i in range(100)} == {200}


async def test_hanging_up_gives_the_slot_back():
    """The answer would take a minute; the client leaves, the slot is free long before, and no fault was met."""

    async def in_flight(kimi, expected):
        while (await kimi.get("/stats")).json()["in_flight"] != expected:
            pass

    settings = MockSettings(latency=60, limits=RateLimits(concurrency=1), faults=Faults(error_5xx=1))
    async with (
        running(settings, count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
        asyncio.timeout(10),
    ):
        asking = asyncio.create_task(chat(kimi))
        await in_flight(kimi, 1)
        asking.cancel()
        await in_flight(kimi, 0)
        stats = (await kimi.get("/stats")).json()
    assert (stats["hung_up"], stats["admitted"], stats["faults"]) == (1, 1, {})


async def test_network_jitter_delays_the_counting_only():
    """Whatever the order in which they are counted, all are answered."""
    async with client(instant(network_jitter=0.01)) as kimi, asyncio.TaskGroup() as group:
        tasks = [group.create_task(chat(kimi, str(i))) for i in range(10)]
    assert [task.result().status_code for task in tasks] == [200] * 10


def test_a_spawned_gateway_lives_as_long_as_its_block():
    """Its counts are Kimi's: 2 tokens of text, 4 of the message, 3 of the beginning of the answer."""
    with spawn(instant()) as base_url, httpx.Client(base_url=base_url, headers=KEY) as kimi:
        answer = kimi.post("/chat/completions", json=body("Hello world", model="kimi-k2.6")).json()
    assert answer["usage"]["prompt_tokens"] == 9
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/stats")


async def test_a_spawned_gateway_dies_with_its_parent():
    """Even if the parent is killed and cleans nothing up."""
    code = (
        "import os, signal\n"
        "from kimi_async.mock import MockSettings, spawn\n"
        "with spawn(MockSettings()) as base_url:\n"
        "    print(base_url, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    printed, _ = await parent.communicate()
    url = httpx.URL(printed.decode().strip())
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(url.host, url.port)
            except ConnectionError:
                break
            writer.close()


def test_a_gateway_that_cannot_start_says_so(capfd):
    """Somebody else has the port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RuntimeError, match="did not start"),
        spawn(instant(), port=taken.getsockname()[1]),
    ):
        pytest.fail("it started")
    assert "address already in use" in capfd.readouterr().err
