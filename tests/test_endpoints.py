"""Models, balance and token counts: the wire, typed."""

import json

import pytest

from kimi_async import AsyncKimi, AuthenticationError, ConfigurationError, InvalidResponseError
from kimi_async.chat import Message
from kimi_async.endpoints import path_of

from .scripted import Scripted, Step, error

HELLO = [{"role": "user", "content": "你好"}]
K26 = {
    "id": "kimi-k2.6",
    "object": "model",
    "created": 1_776_000_000,
    "owned_by": "moonshot",
    "context_length": 262_144,
    "supports_image_in": True,
    "supports_video_in": True,
    "supports_reasoning": True,
    "permission": [],
}
BARE = {"id": "kimi-new"}
BALANCE = {"available_balance": 49.58894, "voucher_balance": 46.58893, "cash_balance": -3.00001}


def scripted(*answers, model=None):
    """A client whose gateway answers with these values, or as these steps say."""
    steps = [one if isinstance(one, Step) else Step(content=json.dumps(one).encode()) for one in answers]
    inner = Scripted(*steps)
    return AsyncKimi(api_key="sk-1", base_url="http://kimi.test/v1", model=model, transport=inner), inner


def asked(inner):
    """Method and path of each request."""
    return [(request.method, request.url.raw_path.decode()) for request in inner.requests]


async def test_models_are_listed_with_what_they_can_do():
    """By iterating, counting and indexing the page, or its data, as users of the openai SDK do."""
    kimi, inner = scripted({"object": "list", "data": [K26, BARE]})
    models = await kimi.models.list()
    assert asked(inner) == [("GET", "/v1/models")]
    assert [model.id for model in models] == ["kimi-k2.6", "kimi-new"] == [model.id for model in models.data]
    assert (len(models), models[-1].id) == (2, "kimi-new")
    first = models[0]
    assert (first.context_length, first.owned_by, first.created) == (262_144, "moonshot", 1_776_000_000)
    assert first.supports_image_in
    assert first.supports_video_in
    assert first.supports_reasoning


async def test_what_a_model_leaves_out_is_none():
    """And what nobody declared is kept."""
    models = await scripted({"object": "list", "data": [K26, BARE]})[0].models.list()
    assert (models[1].context_length, models[1].supports_image_in, models[1].supports_reasoning) == (None, None, None)
    assert models[0].model_extra == {"permission": []}
    assert models.has_more is None


async def test_a_list_of_null_is_empty():
    """As some servers write an empty one."""
    models = await scripted({"object": "list", "data": None})[0].models.list()
    assert (list(models), len(models)) == ([], 0)


@pytest.mark.parametrize("envelope", [{}, {"code": 0, "scode": "0x0", "status": True}])
async def test_the_balance_has_three_amounts(envelope):
    """Out of the envelope; cash may be negative."""
    kimi, inner = scripted({**envelope, "data": BALANCE})
    balance = await kimi.users.balance()
    assert asked(inner) == [("GET", "/v1/users/me/balance")]
    assert balance.model_dump() == BALANCE


@pytest.mark.parametrize("envelope", [{}, {"code": 0, "scode": "0x0", "status": True}])
async def test_tokens_are_estimated_by_kimi(envelope):
    """In both forms that its answer has had; messages that Kimi answered go back as they came."""
    kimi, inner = scripted({**envelope, "data": {"total_tokens": 80}}, model="kimi-k2.6")
    said = Message(role="assistant", content="您好")
    assert await kimi.tokenizers.estimate(messages=[*HELLO, said]) == 80
    assert asked(inner) == [("POST", "/v1/tokenizers/estimate-token-count")]
    messages = [*HELLO, {"role": "assistant", "content": "您好"}]
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": messages}]


async def test_an_estimate_may_name_its_model():
    """Which goes before the client's."""
    kimi, inner = scripted({"data": {"total_tokens": 8}}, model="kimi-k2.6")
    await kimi.tokenizers.estimate(messages=HELLO, model="kimi-k3")
    assert inner.payloads[0]["model"] == "kimi-k3"


@pytest.mark.parametrize(
    ("model", "messages", "problem"),
    [
        (None, HELLO, "no model"),
        ("kimi-k2.6", "你好", "messages is a list of messages"),
        ("kimi-k2.6", [{"role": "user", "content": object()}], "cannot be written as JSON"),
    ],
)
async def test_an_estimate_that_cannot_work_is_not_sent(model, messages, problem):
    """The error says why."""
    kimi, inner = scripted({}, model=model)
    with pytest.raises(ConfigurationError, match=problem):
        await kimi.tokenizers.estimate(messages=messages)
    assert inner.requests == []


async def test_what_fails_in_passing_is_asked_again():
    """As for chat: busy servers and garbled answers."""
    kimi, inner = scripted(error(503, "server_unavailable", "busy"), Step(content=b"<html>"), {"data": BALANCE})
    assert (await kimi.users.balance()).cash_balance == -3.00001
    assert len(inner.requests) == 3


async def test_errors_are_the_package_s_own():
    """By status."""
    with pytest.raises(AuthenticationError, match="Invalid Authentication"):
        await scripted(error(401, "invalid_authentication_error", "Invalid Authentication"))[0].models.list()


async def test_an_answer_that_is_something_else_is_named():
    """After the last attempt."""
    with pytest.raises(InvalidResponseError, match=r"no balance: '{\"data\": {}}'"):
        await scripted({"data": {}})[0].users.balance()


def test_an_id_cannot_leave_its_path():
    """Nor be empty: that would be another endpoint."""
    assert path_of("files", "file_1", "/content") == "/files/file_1/content"
    assert path_of("files", "../models?x") == "/files/..%2Fmodels%3Fx"
    with pytest.raises(ConfigurationError, match="an empty id"):
        path_of("files", "")
