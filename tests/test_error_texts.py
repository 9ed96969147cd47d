"""Every error that Kimi documents or was seen to send: the exception it becomes, and the numbers it carries."""

import json

import httpx
import pytest

from kimi_async.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    EngineOverloadedError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
)
from kimi_async.responses import status_error

KEY = "<ak-f94zcrj6ax1111aqsyq1>"
OLD = "Your account org-e664b178c0f74d818f6b62f87efa49f7<ak-f3t8pfk16fki11gzh6i1>"
NEW = f"Your account org-78cd08fac9804d20bac9a1f02fc1e6a5 / proj-a418892b55d04bbb929766740804aa41 {KEY}"
DOCS = "Your account {organization-id}<{ak-id}>"
LIMITS_PAGE = "see https://platform.moonshot.cn/docs/pricing/limits"
PURPOSES = "only `file-extract`, `batch`, `batch_output`, `lambda`, `image` and `video` accepted"
PLAN = "please check your plan and billing details"
OVERLOADED = "The engine is currently overloaded, please try again later"
NO_NUMBERS = {"budget": None, "scope": None, "limit": None, "current": None, "retry_after": None}


def budget(name, scope=None, limit=None, current=None, after=None):
    """The numbers of a refusal for one of the account's limits."""
    return {"budget": name, "scope": scope, "limit": limit, "current": current, "retry_after": after}


# Each refusal: message, and what its ``RateLimitError`` says.
BUDGETS = [
    (
        f"{OLD} request reached max organization concurrency: 1, please try again after 1 seconds",
        budget("concurrency", "organization", 1, after=1.0),
    ),
    (
        f"{OLD} request reached max organization concurrency: 3, please try again after 0 seconds",
        budget("concurrency", "organization", 3, after=0.0),
    ),
    (
        f"{DOCS} request reached organization max concurrency: 50, please try again after 1 seconds",
        budget("concurrency", "organization", 50, after=1.0),
    ),
    (
        f"{OLD} request reached organization max RPM: 3, please try again after 1 seconds",
        budget("rpm", "organization", 3, after=1.0),
    ),
    (
        f"{NEW} request reached organization max RPM: 20, please try again after 1 seconds",
        budget("rpm", "organization", 20, after=1.0),
    ),
    ("max request per minute reached: 3, please try again after 1 seconds", budget("rpm", None, 3, after=1.0)),
    (f"{OLD} request reached max request: 3, please try again after 1 seconds", budget("rpm", None, 3, after=1.0)),
    ("request reached user+model max RPM: 50", budget("rpm", "user+model", 50)),
    (
        "Organization Rate limit exceeded, please try again after 1 seconds",
        budget("rpm", "organization", after=1.0),
    ),
    (
        f"{OLD} request reached organization TPM rate limit, current: 563653, limit: 500000",
        budget("tpm", "organization", 500_000, 563_653),
    ),
    (
        f"{OLD} request reached organization TPM rate limit, current: 3025143, limit: 3000000",
        budget("tpm", "organization", 3_000_000, 3_025_143),
    ),
    (
        f"{DOCS} request reached organization TPM rate limit, current:64001, limit:64000",
        budget("tpm", "organization", 64_000, 64_001),
    ),
    (
        (
            "Your account xxxxx / proj-xxxxxx <ak-xxxxx> request reached project TPM rate limit, current: 1410, "
            f"limit: 100, {LIMITS_PAGE}"
        ),
        budget("tpm", "project", 100, 1410),
    ),
    (
        (
            f"Your account org-ad4041fa / proj-330e2da {KEY} request reached project (kimi-k3) TPM rate limit, "
            f"current: 50019215, limit: 50000000, {LIMITS_PAGE}"
        ),
        budget("tpm", "project", 50_000_000, 50_019_215),
    ),
    (
        f"{NEW} request reached organization TPD rate limit, current: 1526210, limit: 1500000",
        budget("tpd", "organization", 1_500_000, 1_526_210),
    ),
    (
        f"{NEW} request reached organization TPD rate limit, current: 1505241, limit: 1500000",
        budget("tpd", "organization", 1_500_000, 1_505_241),
    ),
]

# The others: status, type, message, class.
QUOTA = "exceeded_current_quota_error"
INVALID = "invalid_request_error"
DENIED = "permission_denied_error"
KIMI_CODE = "access_terminated_error"
OTHERS = [
    (429, "engine_overloaded_error", OVERLOADED, EngineOverloadedError),
    (429, "rate_limit_error", OVERLOADED, EngineOverloadedError),
    (
        429,
        QUOTA,
        (
            f"{OLD} is suspended due to insufficient balance, please recharge your account or check your plan and "
            "billing details"
        ),
        QuotaExceededError,
    ),
    (
        429,
        QUOTA,
        "You exceeded your current token quota: <{organization_id}> {token_credit}, please check your account balance",
        QuotaExceededError,
    ),
    (
        429,
        QUOTA,
        "You exceeded your current token quota: <org-1> 31275, please check your account balance",
        QuotaExceededError,
    ),
    (403, QUOTA, f"{OLD} is not active, organization <org-1> exceeded current quota, {PLAN}", QuotaExceededError),
    # Kimi Code
    (
        429,
        "rate_limit_reached_error",
        "We're receiving too many requests at the moment. Please wait a moment and try again.",
        EngineOverloadedError,
    ),
    (403, KIMI_CODE, "You've reached your usage limit for this billing cycle", QuotaExceededError),
    (
        403,
        KIMI_CODE,
        "You've reached your weekly (7-day) usage limit. Your quota will reset when the current 7-day window ends.",
        QuotaExceededError,
    ),
    (
        403,
        KIMI_CODE,
        (
            "Kimi For Coding is currently only available for Coding Agents such as Kimi CLI, Claude Code, Roo Code, "
            "Kilo Code, etc."
        ),
        PermissionDeniedError,
    ),
    # the table of errors
    (400, "content_filter", "The request was rejected because it was considered high risk", BadRequestError),
    (400, INVALID, "Invalid request: {details}", BadRequestError),
    (400, INVALID, "Input token length too long", BadRequestError),
    (400, INVALID, "invalid temperature: only 1 is allowed for this model", BadRequestError),
    (400, INVALID, "invalid temperature: only 0.6 is allowed for this model", BadRequestError),
    (400, INVALID, "tool_choice 'specified' is incompatible with thinking enabled", BadRequestError),
    (400, INVALID, f"Invalid purpose: xxx, {PURPOSES}", BadRequestError),
    (400, INVALID, "File size is too large", BadRequestError),
    (401, "invalid_authentication_error", "Invalid Authentication", AuthenticationError),
    (401, "incorrect_api_key_error", "Incorrect API key provided", AuthenticationError),
    (403, DENIED, "The API you are accessing is not open", PermissionDeniedError),
    (403, DENIED, "You are not allowed to get other user info", PermissionDeniedError),
    (403, DENIED, "Your IP is not allowed to access this organization", PermissionDeniedError),
    (404, "resource_not_found_error", "Not found the model kimi-k9 or Permission denied", NotFoundError),
    (499, "client_closed_request", "", APIStatusError),
    (500, "server_error", "Failed to extract file: {error}", InternalServerError),
    (500, "unexpected_output", "invalid state transition", InternalServerError),
    (503, "server_unavailable", "", InternalServerError),
    # not Kimi's
    (301, "moved", "elsewhere", APIStatusError),
    (418, "teapot", "short and stout", APIStatusError),
    (504, "timeout", "later", InternalServerError),
]

TOO_LONG = [
    ("Your request exceeded model token limit : 8192", 8_192, None),
    ("Your request exceeded model token limit : {max_model_length}", None, None),
    ("Invalid request: Your request exceeded model token limit: 262144 (requested: 274613)", 262_144, 274_613),
]


def envelope(message, kind):
    """Kimi's envelope, as it was captured."""
    return json.dumps({"error": {"message": message, "type": kind}}, ensure_ascii=False).encode()


def error_of(status, kind, message, headers=None):
    """The exception of an answer."""
    return status_error(status, httpx.Headers(headers or {}), envelope(message, kind), model="kimi-k2.6")


def numbers(error):
    """What a refusal says."""
    return {name: getattr(error, name) for name in NO_NUMBERS}


@pytest.mark.parametrize(("message", "said"), BUDGETS)
@pytest.mark.parametrize("kind", ["rate_limit_reached_error", None])
def test_a_refusal_for_a_budget_carries_its_numbers(message, said, kind):
    """Which budget, whose, the limit, what the gateway counted, and how long the text says to wait."""
    error = error_of(429, kind, message)
    assert type(error) is RateLimitError
    assert numbers(error) == said
    assert str(error) == f"429: {message}"


@pytest.mark.parametrize(("message", "said"), BUDGETS)
def test_the_header_beats_the_text_of_a_refusal(message, said):
    """Retry-After is the gateway's last word; all else stays as the text says."""
    error = error_of(429, "rate_limit_reached_error", message, {"Retry-After": "20"})
    assert numbers(error) == {**said, "retry_after": 20.0}


@pytest.mark.parametrize(("status", "kind", "message", "exception"), OTHERS)
def test_every_other_error_has_its_exception(status, kind, message, exception):
    """The very class, with status, type, request id, Retry-After and body; Kimi's words come first."""
    headers = {"Msh-Request-Id": "abc123", "Retry-After": "7"}
    error = error_of(status, kind, message, headers)
    assert type(error) is exception
    assert (error.status_code, error.type, error.request_id, error.retry_after) == (status, kind, "abc123", 7.0)
    assert error.body == envelope(message, kind).decode()
    assert str(error).startswith(f"{status}: {message or '(no message)'}")


@pytest.mark.parametrize("row", [row for row in OTHERS if row[3] is EngineOverloadedError])
def test_an_overload_is_no_budget(row):
    """It is caught as a RateLimitError, but names none."""
    assert numbers(error_of(*row[:3])) == NO_NUMBERS


def test_an_overloads_text_sets_no_wait():
    """What an unknown text means by its seconds is not guessed at."""
    assert error_of(429, "engine_overloaded_error", f"{OVERLOADED} after 5 seconds").retry_after is None


@pytest.mark.parametrize(("message", "limit", "requested"), TOO_LONG)
def test_a_request_beyond_the_context_carries_both_lengths(message, limit, requested):
    """The model's and, where Kimi says it, the request's; the docs' template has only a name in the place."""
    error = error_of(400, INVALID, message)
    assert type(error) is BadRequestError
    assert (error.limit, error.requested) == (limit, requested)


@pytest.mark.parametrize("row", [row for row in OTHERS if row[3] is BadRequestError])
def test_another_bad_request_carries_no_lengths(row):
    """Numbers in its text are others."""
    error = error_of(*row[:3])
    assert (error.limit, error.requested) == (None, None)


@pytest.mark.parametrize(("status", "kind", "message"), [row[:3] for row in OTHERS if row[3] is QuotaExceededError])
def test_only_an_account_is_told_to_recharge(status, kind, message):
    """A subscription to Kimi Code is no balance."""
    assert ("only a recharge helps" in str(error_of(status, kind, message))) == (kind == QUOTA)


def test_the_gateways_timeout_is_a_page_of_html():
    """nginx's, after 900 seconds: its title is the message, with what to do."""
    page = (
        b"<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n<body>\r\n<center><h1>504 Gateway Time-out"
        b"</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    error = status_error(504, httpx.Headers(), page, model="kimi-k2.6")
    assert type(error) is InternalServerError
    assert "504 Gateway Time-out" in str(error)
    assert "stream it" in str(error)
    assert "<" not in str(error)
    assert error.body == page.decode()
