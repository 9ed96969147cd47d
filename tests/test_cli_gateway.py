"""The gateway that a command talks to."""

import pytest

from kimi_async.cli.gateway import GatewayOptions
from kimi_async.errors import ConfigurationError
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


async def test_a_key_that_is_no_text_is_told_as_one(monkeypatch):
    """Bytes that are no UTF-8, of a file in another encoding, arrive as half surrogate pairs."""
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-\udcff")
    with pytest.raises(ConfigurationError, match="copy it again"):
        async with GatewayOptions(ledger="memory:").client(RateLimits.tier(1), on_event=lambda event: None):
            pass
