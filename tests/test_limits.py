"""Limits and costs: values that refuse nonsense."""

import pytest

from kimi_async.errors import ConfigurationError
from kimi_async.limits import BudgetUsage, Cost, RateLimits


def test_a_cost_is_prompt_plus_max_tokens_for_each_answer():
    """The gateway's own rule."""
    assert (Cost(100, 50).tokens, Cost(100, 50, 3).tokens, Cost(100).tokens) == (150, 250, 100)


@pytest.mark.parametrize("arguments", [(-1,), (1, -1), (1, 1, 0)])
def test_a_cost_cannot_be_negative(arguments):
    """Nor can there be no answer."""
    with pytest.raises(ConfigurationError, match="no negative tokens"):
        Cost(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rpm": 0}, "rpm=0"),
        ({"tpd": -5}, "tpd=-5"),
        ({"minute": 0}, "minute=0"),
        ({"minute": 60, "day": 10}, "day=10"),
        ({"day_zone": "Mars/Olympus"}, "no time zone"),
        ({"day_zone": "Asia/Shanghai", "day": 100.0}, "needs a day of 86,400 s"),
    ],
)
def test_limits_that_cannot_be_say_which(arguments, message):
    """At once, not at the first request."""
    with pytest.raises(ConfigurationError, match=message):
        RateLimits(**arguments)


def test_tiers_are_kimis_table_of_september_2026():
    """The free tier and a paid one; there is no sixth."""
    assert RateLimits.tier(0) == RateLimits(concurrency=1, rpm=3, tpm=500_000, tpd=1_500_000)
    assert RateLimits.tier(5) == RateLimits(concurrency=100, rpm=300, tpm=5_000_000)
    with pytest.raises(ConfigurationError, match="tiers are 0 to 5"):
        RateLimits.tier(6)


def test_the_guides_account():
    """One at a time, three a minute."""
    assert RateLimits.guide() == RateLimits(concurrency=1, rpm=3, tpm=32_000, tpd=1_500_000)


def test_an_unlimited_budget_is_never_in_use():
    """Its share is 0, whatever was sent."""
    assert (BudgetUsage(5, None).share, BudgetUsage(5, 10).share) == (0.0, 0.5)
