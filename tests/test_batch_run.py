"""One pass over a file: what is sent, written, counted, and what ends it early."""

import asyncio
import json

import httpx
import pytest

from kimi_async.batch import BatchRun, Defaults, OutputFile
from kimi_async.client import AsyncKimi
from kimi_async.errors import ConfigurationError, QuotaExceededError
from kimi_async.ledger import open_ledger
from kimi_async.ledger.memory import MemoryLedger
from kimi_async.limits import RateLimits

ANSWER = {
    "model": "kimi-k2.6",
    "choices": [{"message": {"role": "assistant", "content": "好"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500, "cached_tokens": 200},
}
EMPTY = {"error": {"message": "suspended due to insufficient balance", "type": "exceeded_current_quota_error"}}


def gateway(asked, *, refuse_after=None):
    """Answers, and remembers what it was asked; after so many it says that the account is empty."""

    def respond(request):
        asked.append(json.loads(request.content)["messages"][-1]["content"])
        if refuse_after is not None and len(asked) > refuse_after:
            return httpx.Response(429, json=EMPTY)
        return httpx.Response(200, json=ANSWER)

    return httpx.MockTransport(respond)


async def run(tmp_path, transport, prompts, *, stop=False):
    """A batch of prompts, and raw lines where a prompt is bytes; the run and the output's lines by name."""
    source, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in prompts))
    limits = RateLimits(concurrency=1)
    kimi = AsyncKimi(api_key="k", base_url="https://api.moonshot.cn/v1", limits=limits, transport=transport)
    kimi.counter.load_now()
    with OutputFile(path) as output:
        async with kimi:
            defaults = Defaults(model="kimi-k2.6", max_tokens=10)
            work = BatchRun(kimi, source, output, defaults=defaults, currency="CNY")
            if stop:
                asyncio.get_running_loop().call_soon(work.stop)
            await work.run()
    return work, {line["custom_id"]: line for line in map(json.loads, path.read_text().splitlines())}


async def test_each_line_gets_its_answer_and_the_tally_its_numbers(tmp_path):
    """Tokens as billed, and money in the currency given: a million prompt tokens of kimi-k2.6 cost 6.5 yuan."""
    work, lines = await run(tmp_path, gateway([]), ["a", "b", b"{bad"])
    assert lines.keys() == {"line-1", "line-2", "line-3"}
    tally = work.tally
    assert (tally.answered, tally.failed, tally.failures) == (2, 1, {"invalid line": 1})
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens) == (2000, 1000, 400)
    assert tally.money == pytest.approx(2 * (200 * 1.1 + 800 * 6.5 + 500 * 27) / 1e6)


async def test_what_is_answered_is_not_asked_again(tmp_path):
    """The second run sends the rest, and counts the others as skipped."""
    asked = []
    await run(tmp_path, gateway(asked), ["a", "b"])
    work, lines = await run(tmp_path, gateway(asked), ["a", "b", "c"])
    assert asked == ["a", "b", "c"]
    assert (work.tally.answered, work.tally.skipped, len(lines)) == (1, 2, 3)


async def test_an_empty_account_ends_the_batch(tmp_path):
    """What was answered stays; nothing is written for the rest, so that they are asked when there is money again."""
    asked = []
    work, lines = await run(tmp_path, gateway(asked, refuse_after=2), list("abcdefgh"))
    assert isinstance(work.stopped_by, QuotaExceededError)
    assert lines.keys() == {"line-1", "line-2"}
    assert len(asked) < 8


async def test_a_stopped_run_sends_nothing_more(tmp_path):
    """Stopped as soon as it runs; what was sent by then is answered and written."""
    asked = []
    work, lines = await run(tmp_path, gateway(asked), list("abcdefgh"), stop=True)
    assert len(lines) == work.tally.answered == len(asked) < 8


async def test_ledgers_are_opened_by_url():
    """What there is; a password in a URL that is none is not shown."""
    assert isinstance(await open_ledger("memory:"), MemoryLedger)
    with pytest.raises(ConfigurationError, match="memory:") as caught:
        await open_ledger("postgres://user:secret@host/0")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        await open_ledger("memory")
