"""Every error of Kimi's table becomes its exception, with all that the answer says."""

import json
from email.utils import formatdate

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async import responses
from kimi_async.errors import (
    BadRequestError,
    EngineOverloadedError,
    InternalServerError,
)
from kimi_async.models import live_models
from kimi_async.refusal import Refusal
from kimi_async.responses import EXCERPT, refusal_of, retry_after, status_error

NOW = 1_800_000_000.0

RPM = "Your account org-1<ak-2> request reached organization max RPM: 3, please try again after 1 seconds"
OVERLOADED = "The engine is currently overloaded, please try again later"
NO_BALANCE = (
    "Your account org-1<ak-2> is suspended due to insufficient balance, please recharge your account or check "
    "your plan and billing details"
)
INACTIVE = "Your account x is not active, organization <org-1> exceeded current quota, please check your plan"


def envelope(message, kind=None):
    """Kimi's envelope."""
    return json.dumps({"error": {"message": message, "type": kind}}, ensure_ascii=False).encode()


def error_of(status, content=b"", *, headers=None, model="kimi-k2.6"):
    """The exception of an answer."""
    return status_error(status, httpx.Headers(headers or {}), content, model=model)


def test_what_the_answer_leaves_out_is_none():
    """No headers, no envelope, no body."""
    error = error_of(500)
    assert (error.type, error.request_id, error.retry_after, error.body) == (None, None, None, "")
    assert str(error) == "500: (no message)"


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (401, "Invalid Authentication", "api.moonshot.cn and api.moonshot.ai are not interchangeable"),
        (404, "Not found the model kimi-k9 or Permission denied", "asked for 'kimi-k9'"),
        (403, INACTIVE, "only a recharge helps"),
        (429, NO_BALANCE, "only a recharge helps"),
    ],
)
def test_a_hint_where_one_helps(status, message, hint):
    """What to check, after Kimi's own words."""
    text = str(error_of(status, envelope(message), model="kimi-k9"))
    assert message in text
    assert hint in text


def test_an_unknown_model_is_told_the_live_ones():
    """All of them, so that one can be copied."""
    text = str(error_of(404, envelope("Not found the model kimi-k2.5 or Permission denied")))
    assert all(name in text for name in live_models())
    assert "moonshot-v1-8k" not in text


@pytest.mark.parametrize("status", [400, 403, 500])
def test_no_hint_where_none_helps(status):
    """Kimi's words alone."""
    assert str(error_of(status, envelope("as it is"))) == f"{status}: as it is"


def test_a_proxys_page_is_read_for_its_title():
    """504 after 900 seconds comes from nginx and has no envelope; the page itself stays in the body."""
    page = b"<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n<body>&amp;</body></html>\r\n"
    error = error_of(504, page)
    assert type(error) is InternalServerError
    assert (error.type, error.body) == (None, page.decode())
    assert str(error).startswith("504: 504 Gateway Time-out (a page of HTML) (the gateway waits 900 s")


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (b"<!DOCTYPE html><title>\n busy &amp; gone </title>", "busy & gone (a page of HTML)"),
        (b"<HTML><body><b>no</b>\n more</body></HTML>", "no more (a page of HTML)"),
        (b"no page: <html>", "no page: <html>"),
    ],
)
def test_no_page_of_html_in_a_message(page, said):
    """Its title, or else its words."""
    assert str(error_of(502, page)) == f"502: {said}"


def test_an_html_429_is_an_overload():
    """A proxy before Kimi is busy; none of the account's budgets."""
    assert type(error_of(429, b"<html>429 Too Many Requests</html>")) is EngineOverloadedError


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"null", b"[]", b'{"error": null}', b'{"error": "text"}', b'{"error": {"message": null}}', b"{"],
)
def test_an_unreadable_envelope_is_quoted(content):
    """Whatever came instead is the message."""
    error = error_of(400, content)
    assert type(error) is BadRequestError
    assert str(error) == f"400: {content.decode(errors='replace')}"


def test_the_body_is_an_excerpt():
    """A page of any length does not end up in a log."""
    error = error_of(500, "月".encode() * 100_000)
    assert error.body == "月" * EXCERPT
    assert len(str(error)) < EXCERPT + 50


# -- Retry-After ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("-5", 0.0),
        ("86400", 86_400.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Fri, 15 Jan 2027 16:00:30 +0800", 30.0),
        ("Fri Jan 15 08:00:30 2027", 30.0),  # asctime, which RFC 9110 still has clients read; always GMT
        ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
        ("garbage", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("Fri, 99 Foo 2027 08:00:30 GMT", None),
        ("Fri, 15 Jan 2027 08:00:30 +99999999999999", None),
    ],
)
def test_retry_after_in_all_its_forms(value, seconds, monkeypatch):
    """A number, a negative one, an HTTP date before and after now, and what is neither."""
    monkeypatch.setattr(responses.time, "time", lambda: NOW)
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    responses.time.tzset()
    try:
        assert retry_after(httpx.Headers({"Retry-After": value})) == seconds
    finally:
        monkeypatch.undo()
        responses.time.tzset()


def test_no_header_no_wait():
    """None is not zero."""
    assert retry_after(httpx.Headers()) is None


@given(st.text(st.characters(codec="ascii", min_codepoint=32)) | st.floats().map(str))
def test_no_header_breaks_anything(value):
    """A finite wait that is not negative, or None."""
    seconds = retry_after({"retry-after": value})
    assert seconds is None or 0 <= seconds < float("inf")


# -- a refusal ------------------------------------------------------------------------------------------------


def test_a_refusal_takes_its_numbers_from_envelope_and_header():
    """The text has the limit, the header the wait."""
    refusal = refusal_of(httpx.Headers({"Retry-After": "20"}), envelope(RPM, "rate_limit_reached_error"))
    assert refusal == Refusal("budget", "rpm", "organization", limit=3, retry_after=20.0, organization="org-1")


def test_a_refusal_by_its_type():
    """The type is read too."""
    assert refusal_of({}, envelope("?", "exceeded_current_quota_error")).kind == "quota"


def test_a_refusal_without_envelope_is_read_as_text():
    """A gateway between may unwrap it."""
    assert refusal_of({}, RPM.encode()).budget == "rpm"
