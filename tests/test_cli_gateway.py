"""The gateway that a command talks to."""

import pytest

from kimi_async.cli.gateway import GatewayOptions
from kimi_async.limits import RateLimits


@pytest.mark.real_time
async def test_the_mock_is_asked_directly_whatever_proxies_there_are(monkeypatch):
    """Behind a proxy, which cannot reach this machine, the README's first command works too."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
    async with GatewayOptions(mock=True).client(RateLimits.tier(1), on_event=lambda event: None) as kimi:
        assert await kimi.ask("hi", model="kimi-k2.6", max_tokens=10)
