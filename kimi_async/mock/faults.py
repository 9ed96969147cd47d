"""What goes wrong, how often: the probabilities, and which fault a throw of the dice means."""

from dataclasses import dataclass
from typing import Literal

from kimi_async.errors import ConfigurationError

Fault = Literal["error_5xx", "overload", "drop", "garble", "cut"]
FAULTS: tuple[Fault, ...] = ("error_5xx", "overload", "drop", "garble", "cut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, 0 to 1, that an admitted request meets a fault. It keeps its charge: Kimi refunds nothing.

    Args:
        error_5xx: an HTML page with status 500, 503 or 504 in place of the answer.
        overload: 429 with ``engine_overloaded_error``, at once.
        drop: the connection is closed without an answer.
        garble: status 200 with a body that is no JSON, or only the first part of one; one such chunk in the middle
            of a stream.
        cut: the connection is closed in the middle of the body, or of the stream.
        slow: the answer takes ``slow_seconds`` longer; independent of the others.
        slow_seconds: seconds.
        overload_every: seconds from one burst of overload to the next; 0 is none. Each request that is admitted in a
            burst meets ``overload``.
        overload_lasts: seconds of a burst, at the end of that time.

    Raises:
        ConfigurationError: a probability outside 0 to 1, the first five above 1 in sum, or a burst that is longer
            than the time to the next.
    """

    error_5xx: float = 0.0
    overload: float = 0.0
    drop: float = 0.0
    garble: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 10.0
    overload_every: float = 0.0
    overload_lasts: float = 0.0

    def __post_init__(self) -> None:
        exclusive = (self.error_5xx, self.overload, self.drop, self.garble, self.cut)
        if min(*exclusive, self.slow) < 0 or self.slow > 1 or sum(exclusive) > 1 or self.slow_seconds < 0:
            raise ConfigurationError(f"probabilities are 0 to 1, and those of the faults add up to 1: {self}")
        if not 0 <= self.overload_lasts <= self.overload_every:
            raise ConfigurationError(f"a burst of overload lasts no longer than until the next: {self}")

    def overloaded(self, elapsed: float) -> bool:
        """Whether there is a burst of overload, so many seconds after the first admitted request."""
        return self.overload_lasts > 0 and elapsed % self.overload_every >= self.overload_every - self.overload_lasts

    def pick(self, throw: float) -> Fault | None:
        """The fault that a throw in [0, 1) means, if any."""
        for fault in FAULTS:
            throw -= getattr(self, fault)
            if throw < 0:
                return fault
        return None
