"""What happens inside, told in a line each."""

import logging
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from kimi_async.events import (
    Event,
    ForeignUsage,
    LedgerAway,
    LedgerBack,
    LimitAdopted,
    Refused,
    Retrying,
    SameOrganization,
    VocabularyMissing,
    log_event,
)

LINES = [
    (
        Retrying(2, 1.234, "InternalServerError", "500: oops"),
        logging.INFO,
        "attempt 2 failed (500: oops); trying again in 1.23 s",
    ),
    (
        Refused("tpm", explained=True, pause=0.0),
        logging.INFO,
        "refused (429) for tpm, as the ledger now knows; pausing for 0.00 s",
    ),
    (
        Refused("rpm", explained=False, pause=1.0),
        logging.INFO,
        "refused (429) for rpm, which the ledger did not expect; pausing for 1.00 s",
    ),
    (
        LimitAdopted("rpm", 100, 20),
        logging.WARNING,
        "the account's rpm is 20, not 100: using 20; set RateLimits(rpm=20)",
    ),
    (
        LimitAdopted("tpd", None, 1_500_000),
        logging.WARNING,
        "the account's tpd is 1500000, not None: using 1500000; set RateLimits(tpd=1500000)",
    ),
    (
        ForeignUsage("tpm", 12_345),
        logging.WARNING,
        "12,345 tokens of tpm were spent elsewhere on this account; booked",
    ),
    (
        SameOrganization("org-1", ("key-a", "key-b")),
        logging.WARNING,
        "'key-a' and 'key-b' are one account to Kimi, org-1: give them one name, open_ledger(account=...)",
    ),
    (
        LedgerAway("redis://h does not answer within 5 s", "wait"),
        logging.WARNING,
        "the ledger is away (redis://h does not answer within 5 s); requests wait until it is back",
    ),
    (
        LedgerAway("no space left", "share"),
        logging.WARNING,
        (
            "the ledger is away (no space left); requests wait a minute, and then go on with a share of the limits "
            "until it is back"
        ),
    ),
    (
        LedgerBack(61.25, 7),
        logging.INFO,
        "the ledger is back after 61.2 s, in which 7 requests were let in",
    ),
    (
        VocabularyMissing("ImportError: splintr"),
        logging.WARNING,
        "tokens are counted by their upper bound, a byte of UTF-8 each: no vocabulary (ImportError: splintr)",
    ),
]


@pytest.mark.parametrize(("event", "level", "line"), LINES)
def test_an_event_reads_as_a_line(event, level, line):
    """With its numbers, and what to do about it."""
    assert str(event) == line


@pytest.mark.parametrize(("event", "level", "line"), LINES)
def test_routine_is_logged_as_info_and_what_matters_as_a_warning(event, level, line, caplog):
    """The default hook, on the package's logger; percent signs in an event are no format."""
    with caplog.at_level(logging.DEBUG, "kimi_async"):
        log_event(event)
    assert caplog.record_tuples == [("kimi_async", level, line)]


def test_a_reason_with_percent_signs_is_logged_as_it_is(caplog):
    """Texts of servers are arguments of the record, never its format."""
    with caplog.at_level(logging.INFO, "kimi_async"):
        log_event(Retrying(1, 0.5, "APIConnectionError", "100 %s %d"))
    assert "100 %s %d" in caplog.text


def test_every_event_is_told_here():
    """And none can be changed."""
    assert {type(event) for event, _, _ in LINES} == set(get_args(Event))
    for event, _, _ in LINES:
        with pytest.raises(FrozenInstanceError):
            setattr(event, fields(event)[0].name, None)
