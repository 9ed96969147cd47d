"""Files of prompts in, files of answers out: resumable, with memory for what is in flight, and for names.

Of all lines just the ``custom_id`` is kept: while the input is surveyed, and, where an earlier run has answered it, to
the end. Measured with a million short ones, that is 120 bytes each, and 100.
``BatchRun`` is one pass; ``lines`` reads the four input forms, ``output`` appends and resumes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kimi_async.client import AsyncKimi
from kimi_async.errors import (
    AuthenticationError,
    DailyBudgetExhausted,
    KimiError,
    LimiterClosed,
    QuotaExceededError,
)
from kimi_async.jsonl import BadLine, BatchRequest, BatchResult, Defaults, read_lines, survey
from kimi_async.models import Currency, money

from .output import OutputFile

__all__ = ["BadLine", "BatchRun", "Defaults", "OutputFile", "survey"]

FATAL = (AuthenticationError, QuotaExceededError, DailyBudgetExhausted)
"""Errors that every further request of the account would meet too: the batch stops, to be resumed."""


@dataclass(slots=True)
class Tally:
    """What a run has done so far.

    Attributes:
        answered: requests that have their answer.
        failed: requests whose line says why they have none.
        skipped: requests that an earlier run had answered.
        prompt_tokens: billed, as ``usage`` of the answers has it; likewise the two below.
        money: what the answers cost at list price; models without a known price are left out of it.
        failures: failed requests by the name of their error.
    """

    answered: int = 0
    failed: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    money: float = 0.0
    unpriced: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: BatchResult | BadLine, currency: Currency) -> None:
        """Count one outcome."""
        if isinstance(outcome, BadLine):
            self.failed += 1
            self.failures["invalid line"] += 1
        elif outcome.completion is None:
            self.failed += 1
            self.failures[type(outcome.error).__name__] += 1
        else:
            self._add_answer(outcome, currency)

    def _add_answer(self, result: BatchResult, currency: Currency) -> None:
        self.answered += 1
        completion = result.completion
        if completion is None or (usage := completion.usage) is None:
            return
        cached = usage.cached_tokens or 0
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += cached
        cost = money(
            completion.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=cached,
            currency=currency,
        )
        self.unpriced += cost is None
        self.money += cost or 0.0


class BatchRun:
    """One pass over a file of requests.

    Args:
        kimi: the client.
        source: the file of requests, which is read a second time here; see ``survey``.
        output: the file of answers; what it holds already is skipped.
        defaults: for what lines leave out.
        currency: what the account is billed in.

    Attributes:
        tally: what has been done.
        stopped_by: the error that ended the run early; None while there is none.
    """

    def __init__(
        self,
        kimi: AsyncKimi,
        source: Path,
        output: OutputFile,
        *,
        defaults: Defaults,
        currency: Currency,
    ) -> None:
        self.tally = Tally()
        self.stopped_by: KimiError | None = None
        self.currency: Currency = currency
        self._kimi = kimi
        self._source = source
        self._output = output
        self._defaults = defaults
        self._stopping = False

    def stop(self) -> None:
        """Send nothing more; what is in flight is finished."""
        self._stopping = True
        self._kimi.limiter.close()

    async def run(self) -> None:
        """Send what has no answer yet, write what comes.

        Raises:
            OSError: the answers cannot be written, for example because the disk is full. What was written stays.
        """
        results = self._kimi.batch(self._requests())
        try:
            async for result in results:
                self._take(result)
        finally:
            await results.aclose()

    def _requests(self) -> Iterator[BatchRequest]:
        for line in read_lines(self._source, self._defaults):
            if self._stopping:
                return
            if isinstance(line, BadLine):
                self._record(line)
            elif line.custom_id in self._output.answered:
                self.tally.skipped += 1
            else:
                yield line

    def _take(self, result: BatchResult) -> None:
        if isinstance(result.error, LimiterClosed):
            return
        if isinstance(result.error, FATAL):
            self.stopped_by = self.stopped_by or result.error
            self.stop()
            return
        self._record(result)

    def _record(self, outcome: BatchResult | BadLine) -> None:
        self._output.write(outcome)
        self.tally.add(outcome, self.currency)
