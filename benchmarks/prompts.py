"""Prompts whose cost in tokens is known exactly."""

from dataclasses import dataclass
from random import Random

from kimi_async import RateLimits, TokenCounter

MODEL = "moonshot-v1-8k"

_TOPICS = ("月亮", "潮汐", "茶", "围棋", "长城", "量子", "the moon", "tides", "tea", "Go", "walls", "quanta")
_SENTENCE = "月光落在潮水上，海面很安静。The moon rose over a calm sea. "


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: a text, and what the gateway will charge for it."""

    text: str
    prompt_tokens: int
    max_tokens: int

    @property
    def tokens(self) -> int:
        """What counts against TPM and TPD."""
        return self.prompt_tokens + self.max_tokens

    @property
    def messages(self) -> list[dict[str, str]]:
        """As in the request."""
        return [{"role": "user", "content": self.text}]


def mixed_sizes(limits: RateLimits, *, seed: int, count: int = 150) -> list[Prompt]:
    """A file in which first RPM and then TPM binds: short requests, then longer ones, a tenth of them large.

    Args:
        limits: a large request costs 8 % of their TPM.
        seed: of the sizes, and of where the large ones are.
        count: requests.
    """
    tpm = limits.tpm or 0
    dice = Random(seed)
    large = set(dice.sample(range(count), count // 10))
    sizes = []
    for number in range(count):
        share = dice.uniform(0.004, 0.0115) if number < count / 2 else dice.uniform(0.013, 0.026)
        sizes.append(round(tpm * (0.08 if number in large else share)))
    counter = TokenCounter()
    return [_costing(size, number, counter) for number, size in enumerate(sizes)]


def two_kilobytes(count: int) -> list[Prompt]:
    """Distinct prompts that make requests of 2 KB; the mock's answer, if it is as long as it may be, has 1.1 KB."""
    counter = TokenCounter()
    return [_counted(f"{number:03}. " + _SENTENCE * 24, 153, counter) for number in range(count)]


def _costing(tokens: int, number: int, counter: TokenCounter) -> Prompt:
    text = f"第 {number} 题：用一句话介绍{_TOPICS[number % len(_TOPICS)]}。"
    prompt = _counted(text, 1, counter)
    return Prompt(text, prompt.prompt_tokens, tokens - prompt.prompt_tokens)


def _counted(text: str, max_tokens: int, counter: TokenCounter) -> Prompt:
    prompt_tokens = counter.prompt_tokens([{"role": "user", "content": text}], model=MODEL)
    return Prompt(text, prompt_tokens, max_tokens)
