"""Every text of a 429 or 403 seen in the wild or in Kimi's docs, and what it means."""

from dataclasses import replace

import pytest

from kimi_async.refusal import Refusal, parse_refusal

OLD = "Your account org-e664b178c0f74d818f6b62f87efa49f7<ak-f3t8pfk16fki11gzh6i1> request reached"
NEW = (
    "Your account org-78cd08fac9804d20bac9a1f02fc1e6a5 / proj-a418892b55d04bbb929766740804aa41 "
    "<ak-f94zcrj6ax1111aqsyq1> request reached"
)
CHECK = "check your plan and billing details"
LIMITS_PAGE = "see https://platform.moonshot.cn/docs/pricing/limits"


def budget(name, scope=None, limit=None, current=None, retry_after=None):
    """A refusal for one of the four budgets."""
    return Refusal("budget", name, scope, limit, current, retry_after)


BUDGETS = [
    # concurrency: as seen, and in the word order of the docs
    (
        f"{OLD} max organization concurrency: 1, please try again after 1 seconds",
        budget("concurrency", "organization", 1, retry_after=1.0),
    ),
    (
        f"{OLD} max organization concurrency: 3, please try again after 0 seconds",
        budget("concurrency", "organization", 3, retry_after=0.0),
    ),
    (
        "Your account org-1<ak-2> request reached organization max concurrency: 50, please try again after 1 seconds",
        budget("concurrency", "organization", 50, retry_after=1.0),
    ),
    (f"{NEW} max project concurrency: 7", budget("concurrency", "project", 7)),
    (f"{OLD} max concurrency: 2", budget("concurrency", None, 2)),
    # RPM: today, by user and model, and in 2024
    (
        f"{OLD} organization max RPM: 3, please try again after 1 seconds",
        budget("rpm", "organization", 3, retry_after=1.0),
    ),
    (
        f"{NEW} organization max RPM: 20, please try again after 1 seconds",
        budget("rpm", "organization", 20, retry_after=1.0),
    ),
    (f"{NEW} project (kimi-k3) max RPM: 8", budget("rpm", "project", 8)),
    ("request reached user+model max RPM: 50", budget("rpm", "user+model", 50)),
    ("request reached project+model max RPM: 60", budget("rpm", "project+model", 60)),
    (
        "max request per minute reached: 3, please try again after 1 seconds",
        budget("rpm", None, 3, retry_after=1.0),
    ),
    (f"{OLD} max request: 3, please try again after 1 seconds", budget("rpm", None, 3, retry_after=1.0)),
    # a burst, which names no budget
    (
        "Organization Rate limit exceeded, please try again after 1 seconds",
        budget("rpm", "organization", retry_after=1.0),
    ),
    # TPM: by organization, in the docs without the space, by project, by project and model
    (
        f"{OLD} organization TPM rate limit, current: 563653, limit: 500000",
        budget("tpm", "organization", 500_000, 563_653),
    ),
    (
        f"{NEW} organization TPM rate limit, current: 3025143, limit: 3000000",
        budget("tpm", "organization", 3_000_000, 3_025_143),
    ),
    (
        "Your account org-id<ak-id> request reached organization TPM rate limit, current:64001, limit:64000",
        budget("tpm", "organization", 64_000, 64_001),
    ),
    (
        f"Your account x / proj-x request reached project TPM rate limit, current: 1410, limit: 100, {LIMITS_PAGE}",
        budget("tpm", "project", 100, 1410),
    ),
    (
        f"{NEW} project (kimi-k3) TPM rate limit, current: 50019215, limit: 50000000, {LIMITS_PAGE}",
        budget("tpm", "project", 50_000_000, 50_019_215),
    ),
    # TPD
    (
        f"{NEW} organization TPD rate limit, current: 1526210, limit: 1500000",
        budget("tpd", "organization", 1_500_000, 1_526_210),
    ),
    (
        "Your account org-id<ak-id> request reached organization TPD rate limit, current:1505241, limit:1500000",
        budget("tpd", "organization", 1_500_000, 1_505_241),
    ),
    (f"{NEW} organization TPD rate limit", budget("tpd", "organization")),
]

QUOTA = [
    f"Your account org-1<ak-2> is suspended due to insufficient balance, please recharge your account or {CHECK}",
    "You exceeded your current token quota: <org-1> 31275, please check your account balance",
    f"Your account org-1<ak-2> is not active, organization <org-1> exceeded current quota, please {CHECK}",
]

OVERLOADED = [
    ("The engine is currently overloaded, please try again later", "engine_overloaded_error"),
    ("The engine is currently overloaded, please try again later", "rate_limit_error"),
    (
        "We're receiving too many requests at the moment. Please wait a moment and try again.",
        "rate_limit_reached_error",
    ),
]


@pytest.mark.parametrize(("text", "refusal"), BUDGETS)
@pytest.mark.parametrize("kind", ["rate_limit_reached_error", None])
def test_a_budgets_text_is_read_to_the_last_number(text, refusal, kind):
    """Which budget, whose, the limit, the gateway's count and the wait, whatever the type says."""
    assert replace(parse_refusal(text, type=kind), organization=None) == refusal


@pytest.mark.parametrize("text", QUOTA)
@pytest.mark.parametrize("kind", ["exceeded_current_quota_error", None])
def test_an_empty_account_is_a_quota(text, kind):
    """The three wordings of no balance, with their type and without."""
    assert replace(parse_refusal(text, type=kind), organization=None) == Refusal("quota")


@pytest.mark.parametrize(
    ("text", "organization"),
    [
        (f"{OLD} organization max RPM: 3", "org-e664b178c0f74d818f6b62f87efa49f7"),
        (f"{NEW} organization TPD rate limit", "org-78cd08fac9804d20bac9a1f02fc1e6a5"),
        ("You exceeded your current token quota: <org-1> 31275, please check your account balance", "org-1"),
        ("request reached user+model max RPM: 50", None),
        ("The engine is currently overloaded, please try again later", None),
    ],
)
def test_the_account_is_known_by_its_own_name(text, organization):
    """Not by the key's, nor the project's."""
    assert parse_refusal(text).organization == organization


def test_the_quota_type_alone_is_enough():
    """A fourth wording will come."""
    assert parse_refusal("no more money", type="exceeded_current_quota_error") == Refusal("quota")


@pytest.mark.parametrize(("text", "kind"), OVERLOADED)
def test_a_busy_cluster_is_no_budget(text, kind):
    """Back off, and leave the budgets alone."""
    assert parse_refusal(text, type=kind) == Refusal("overloaded")


def test_the_overload_type_counts_more_than_the_text():
    """Numbers in an overload's text are no limit of the account's."""
    text = "organization max RPM: 3, please try again after 5 seconds"
    assert parse_refusal(text, type="engine_overloaded_error") == Refusal("overloaded", retry_after=5.0)


@pytest.mark.parametrize("text", ["", "computer says no", "TPM", "max RPM: many", "<html>429</html>"])
def test_an_unknown_text_touches_no_budget(text):
    """Backing off helps whatever it was; nothing is guessed."""
    assert parse_refusal(text, type="rate_limit_reached_error") == Refusal("overloaded")


@pytest.mark.parametrize(
    ("text", "header", "retry_after"),
    [
        ("max RPM: 3, please try again after 1 seconds", 20.0, 20.0),
        ("max RPM: 3, please try again after 1 seconds", 0.0, 0.0),
        ("max RPM: 3, please try again after 1 seconds", None, 1.0),
        ("max RPM: 3, please try again after 1 second", None, 1.0),
        ("organization TPM rate limit, current: 2, limit: 1", 60.0, 60.0),
        ("organization TPM rate limit, current: 2, limit: 1", None, None),
    ],
)
def test_the_header_beats_the_text(text, header, retry_after):
    """Retry-After where there is one, else what the text says, else nothing."""
    assert parse_refusal(text, retry_after=header).retry_after == retry_after


@pytest.mark.parametrize("text", [QUOTA[0], OVERLOADED[0][0], "unheard of"])
def test_the_header_is_kept_for_every_kind(text):
    """A wait that the server asks for is worth knowing whatever it refused."""
    assert parse_refusal(text, retry_after=7.0).retry_after == 7.0
