"""Everything that can be set about the mock gateway, as one frozen value that survives a trip through JSON."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from kimi_async.errors import ConfigurationError
from kimi_async.limits import RateLimits

from .faults import Faults
from .policies import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class MockSettings:
    """How the mock gateway counts, how fast it answers, and what goes wrong.

    Args:
        limits: of the one account that all keys share. ``minute`` and ``day`` scale time; ``day_zone`` is
            ignored. ``Retry-After`` is in whole seconds: for TPM and TPD it follows ``minute`` and ``day``, rounded
            up; for RPM and concurrency it is 1 whatever they are, as Kimi's is.
        policy: how RPM and TPM are counted. TPD slides with ``sliding`` and is a fixed window otherwise, since
            Kimi's texts say that it resets "the next day". ``gcra`` spaces requests evenly, but counts tokens
            like ``bucket``: one request may well cost more than its even share.
        phase: of fixed windows: where their edges are, as a share of the window.
        burst: of ``gcra``: requests that may come in one instant.
        charge_refused: whether a refused request still counts as one request against RPM, as Kimi's
            troubleshooting page can be read.
        latency: mean seconds that an admitted request takes.
        latency_jitter: how far the latency varies around its mean, as a share of it: 0.5 is 50 % to 150 %.
        tokens_per_second: generation speed, which adds to the latency; None adds nothing. In a stream, the chunks
            are spread over that time.
        tokens_per_chunk: tokens that one chunk of a stream brings.
        network_jitter: a request is counted up to this many seconds after it arrived.
        completion_ratio: median completion length as a share of ``max_tokens``.
        completion_spread: sigma of the log-normal distribution of that length; 0 makes all lengths equal.
        seed: what a request gets depends on this, on its body and on how often that body was admitted.
        faults: what goes wrong, how often.
        batch_seconds: from the creation of a batch to its completion.
        serve_retired: answer for retired models, which guides and data sets still name; False is Kimi's 404.
        bad_keys: API keys that get a 401.

    Raises:
        ConfigurationError: a value out of its range.
    """

    limits: RateLimits = field(default_factory=RateLimits)
    policy: Policy = "sliding"
    phase: float = 0.0
    burst: int = 1
    charge_refused: bool = False
    latency: float = 0.3
    latency_jitter: float = 0.5
    tokens_per_second: float | None = None
    tokens_per_chunk: int = 4
    network_jitter: float = 0.0
    completion_ratio: float = 0.3
    completion_spread: float = 0.5
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    batch_seconds: float = 1.0
    serve_retired: bool = True
    bad_keys: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        ranges = {
            "phase": 0 <= self.phase < 1,
            "burst": self.burst >= 1,
            "latency": self.latency >= 0,
            "latency_jitter": 0 <= self.latency_jitter <= 1,
            "tokens_per_second": self.tokens_per_second is None or self.tokens_per_second > 0,
            "tokens_per_chunk": self.tokens_per_chunk >= 1,
            "batch_seconds": self.batch_seconds >= 0,
            "network_jitter": self.network_jitter >= 0,
            "completion_ratio": 0 < self.completion_ratio <= 1,
            "completion_spread": self.completion_spread >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is out of range for the mock gateway")

    def to_json(self) -> bytes:
        """One line of JSON, for another process."""
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, line: bytes | str) -> "MockSettings":
        """The settings that ``to_json`` wrote."""
        return _ADAPTER.validate_json(line)


_ADAPTER = TypeAdapter(MockSettings)
