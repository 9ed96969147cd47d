"""Requests whose cost in tokens is known exactly, and the files of them that the scenarios send."""

from collections.abc import Iterable
from functools import cache
from random import Random

from kimi_async import RateLimits, TokenCounter

from .contenders.contract import MODEL, Request

LARGE = 0.08
"""What a large request costs, as a share of TPM."""

_SHORT, _MEDIUM = (0.002, 0.006), (0.01, 0.03)
"""What other requests cost, likewise: 60 short ones are a quarter of TPM; 60 medium ones with a tenth of large ones
are half as much again as TPM."""

_TOPICS = ("月亮", "潮汐", "茶", "围棋", "长城", "量子", "the moon", "tides", "tea", "Go", "walls", "quanta")
_SENTENCE = "月光落在潮水上，海面很安静。The moon rose over a calm sea. "
_PAGE = _SENTENCE * 24


def rpm_bound(limits: RateLimits, count: int, *, seed: int) -> list[Request]:
    """Short requests only: RPM binds."""
    dice = Random(seed)
    return sized(_shares(limits, (dice.uniform(*_SHORT) for _ in range(count))))


def tpm_bound(limits: RateLimits, count: int, *, seed: int) -> list[Request]:
    """Medium requests, a tenth of them large: TPM binds."""
    return sized(_shares(limits, _with_large(Random(seed), count)))


def mixed(limits: RateLimits, count: int, *, seed: int) -> list[Request]:
    """Three fifths short requests, then medium and large ones: first RPM binds, then TPM."""
    dice = Random(seed)
    short = 3 * count // 5
    shares = [dice.uniform(*_SHORT) for _ in range(short)] + _with_large(dice, count - short)
    return sized(_shares(limits, shares))


def sized(sizes: Iterable[int], *, key: str = "") -> list[Request]:
    """A request of each cost in tokens; no two texts are equal.

    Raises:
        ValueError: a cost too small for the shortest text and its answer.
    """
    return [_costing(size, number, key) for number, size in enumerate(sizes)]


def two_kilobytes(number: int) -> Request:
    """A request of 2 KB whose prompt is no other number's, where nobody asks for its tokens; takes less than 1 µs.

    The mock's answer, if it is as long as it may be, has 1.1 KB.
    """
    return Request(f"{number:07}. {_PAGE}", 0, 153)


def _with_large(dice: Random, count: int) -> list[float]:
    large = set(dice.sample(range(count), count // 10))
    return [LARGE if number in large else dice.uniform(*_MEDIUM) for number in range(count)]


def _shares(limits: RateLimits, shares: Iterable[float]) -> list[int]:
    return [round((limits.tpm or 0) * share) for share in shares]


def _costing(tokens: int, number: int, key: str) -> Request:
    prompt = _counted(f"第 {number} 题：用一句话介绍{_TOPICS[number % len(_TOPICS)]}。", 1)
    if tokens <= prompt.prompt_tokens:
        raise ValueError(f"{tokens} tokens do not suffice for a prompt of {prompt.prompt_tokens} and an answer")
    return Request(prompt.text, prompt.prompt_tokens, tokens - prompt.prompt_tokens, key)


def _counted(text: str, max_tokens: int) -> Request:
    prompt_tokens = _counter().prompt_tokens([{"role": "user", "content": text}], model=MODEL)
    return Request(text, prompt_tokens, max_tokens)


@cache
def _counter() -> TokenCounter:
    return TokenCounter()
