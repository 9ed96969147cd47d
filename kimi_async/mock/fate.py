"""What becomes of an admitted request: drawn from its body, so that concurrency changes nothing."""

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from .faults import Fault
from .settings import MockSettings

_REMEMBERED_BODIES = 100_000  # and what became of each; 20 MB, then the oldest are forgotten


class History:
    """What became of one body so far.

    Attributes:
        admitted: how often it was let in.
        billed: how often it was answered in full, or up to where the connection was closed in the middle.
    """

    __slots__ = ("admitted", "billed")

    def __init__(self) -> None:
        self.admitted = 0
        self.billed = 0


@dataclass(frozen=True, slots=True)
class Fate:
    """What one admitted request gets.

    Attributes:
        identity: 32 hexadecimal digits; ids of the answer.
        latency: seconds until the answer, or until its first token where generation takes time.
        completion_tokens: length of each choice in prose, 1 to ``max_tokens``.
        fault: what goes wrong, if anything.
        throw: in [0, 1); for what varies within a fault.
        repeated: whether the same body was admitted before, so that its prefix is cached.
        history: of the body.
    """

    identity: str
    latency: float
    completion_tokens: tuple[int, ...]
    fault: Fault | None
    throw: float
    repeated: bool
    history: History = field(repr=False, compare=False)


class Dice:
    """Draws fates. The same seed, body and repetition give the same fate, in whatever order requests come."""

    def __init__(self, settings: MockSettings) -> None:
        self._settings = settings
        self._key = str(settings.seed).encode()
        self._random = Random()
        self._seen: OrderedDict[bytes, History] = OrderedDict()

    def roll(self, body: bytes, *, max_tokens: int, n: int) -> Fate:
        """The fate of the request that has just been admitted.

        Args:
            body: as received.
            max_tokens: the most tokens of one choice.
            n: choices.
        """
        digest = blake2b(body, digest_size=16, key=self._key).digest()
        history = self._history(digest)
        repetition = history.admitted
        history.admitted += 1
        number = int.from_bytes(digest) + repetition
        dice, settings, faults = self._random, self._settings, self._settings.faults
        dice.seed(number)  # a new Random would cost more than the rest of this method
        # Faults are thrown first: adding a choice or a token to a request must not change its fault.
        fault, throw, slow = faults.pick(dice.random()), dice.random(), dice.random() < faults.slow
        latency = settings.latency * (1 + settings.latency_jitter * (2 * dice.random() - 1))
        lengths = tuple(self._length(max_tokens) for _ in range(n))
        if slow:
            latency += faults.slow_seconds
        return Fate(f"{number % 2**128:032x}", latency, lengths, fault, throw, repetition > 0, history)

    def _length(self, max_tokens: int) -> int:
        share = self._settings.completion_ratio * self._random.lognormvariate(0, self._settings.completion_spread)
        return min(max_tokens, max(1, round(share * max_tokens)))

    def _history(self, digest: bytes) -> History:
        history = self._seen.pop(digest, None) or History()
        self._seen[digest] = history
        if len(self._seen) > _REMEMBERED_BODIES:
            self._seen.popitem(last=False)
        return history
