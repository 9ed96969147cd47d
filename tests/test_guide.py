"""The guide's two programs: one text each, for `AsyncKimi` and for the openai SDK over a limited client."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import openai
import pytest

from kimi_async import AsyncKimi, RateLimiter, RateLimits
from kimi_async.clients import limited_client
from kimi_async.mock import MockSettings, running

LIMITS = replace(RateLimits.guide(), minute=1.5)
MODEL = "moonshot-v1-8k"
SYSTEM = {
    "role": "system",
    "content": (
        "你是月之暗面（Moonshot AI）开发的助手 Kimi，中文和英文都说得很好。请给出安全、准确、有用的回答；"
        "凡涉及恐怖、歧视、色情或暴力的要求一律拒绝。“Moonshot AI”是专有名词，任何时候都不要翻译。"
    ),
}


async def single_turn(client):
    """One question, one answer."""
    return await client.chat.completions.create(
        model=MODEL,
        messages=[SYSTEM, {"role": "user", "content": "请写一篇短文，介绍怎样在程序里使用 Kimi 的接口。"}],
        temperature=0.3,
    )


async def multi_turn(client):
    """Two questions, of which the second builds on the first answer."""
    history = [SYSTEM]

    async def chat(query, history):
        history.append({"role": "user", "content": query})
        completion = await client.chat.completions.create(model=MODEL, messages=history, temperature=0.3)
        content = completion.choices[0].message.content
        history.append({"role": "assistant", "content": content})
        return content

    await chat("帮我在北京订一家意大利餐厅。", history)
    await chat("挑一家评价好的推荐给我。", history)
    return history


@asynccontextmanager
async def kimi(base_url):
    """`AsyncKimi`."""
    async with AsyncKimi(api_key="sk-test", base_url=base_url, limits=LIMITS) as client:
        yield client


def sdk(family):
    """The openai SDK's client, over the family's limited client."""

    @asynccontextmanager
    async def open_sdk(base_url):
        http_client = limited_client(RateLimiter(LIMITS), family)
        async with openai.AsyncOpenAI(api_key="sk-test", base_url=base_url, http_client=http_client) as client:
            yield client

    return open_sdk


CLIENTS = [
    pytest.param(kimi, id="kimi_async"),
    pytest.param(sdk("httpx"), id="openai-httpx"),
    pytest.param(sdk("httpx2"), id="openai-httpx2"),
]


@pytest.mark.real_time
@pytest.mark.parametrize("open_client", CLIENTS)
async def test_the_guides_programs_meet_no_refusal(open_client):
    """Both at once, and the first twice: four requests through one slot and three a minute."""
    async with running(MockSettings(limits=LIMITS, latency=0.02)) as base_url:
        async with open_client(base_url) as client:
            first, history, second = await asyncio.gather(single_turn(client), multi_turn(client), single_turn(client))
        async with httpx.AsyncClient() as observer:
            stats = (await observer.get(f"{base_url}/stats")).json()

    for completion in (first, second):
        assert completion.object == "chat.completion"
        assert completion.model == MODEL
        assert completion.choices[0].message.role == "assistant"
        assert completion.choices[0].message.content
        assert completion.choices[0].finish_reason in {"stop", "length"}
        usage = completion.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert [message["role"] for message in history] == ["system", "user", "assistant", "user", "assistant"]
    assert all(message["content"] for message in history)

    assert stats["answers"] == {"200": 4}
    assert stats["admitted"] == 4
    assert sum(stats["refused"].values()) == 0
    assert stats["max_window_requests"] == LIMITS.rpm
