"""``kimi-async mock``."""

from typing import Annotated

from cyclopts import Group, Parameter

from kimi_async.mock import Faults, MockSettings, Policy, serve

from .options import LimitOptions

ANSWERS = Group("Answers")
FAULTS = Group("Faults, as shares of the admitted requests")


def mock(
    *,
    port: int = 8000,
    policy: Policy = "sliding",
    charge_refused: Annotated[bool, Parameter(negative="")] = False,
    limits: LimitOptions = LimitOptions(),  # noqa: B008 - frozen
    latency: Annotated[float, Parameter(group=ANSWERS)] = 0.3,
    latency_jitter: Annotated[float, Parameter(group=ANSWERS)] = 0.5,
    tokens_per_second: Annotated[float | None, Parameter(group=ANSWERS)] = None,
    tokens_per_chunk: Annotated[int, Parameter(group=ANSWERS)] = 4,
    completion_ratio: Annotated[float, Parameter(group=ANSWERS)] = 0.3,
    completion_spread: Annotated[float, Parameter(group=ANSWERS)] = 0.5,
    network_jitter: Annotated[float, Parameter(group=ANSWERS)] = 0.0,
    batch_seconds: Annotated[float, Parameter(group=ANSWERS)] = 1.0,
    seed: Annotated[int, Parameter(group=ANSWERS)] = 0,
    error_5xx: Annotated[float, Parameter(group=FAULTS)] = 0.0,
    overload: Annotated[float, Parameter(group=FAULTS)] = 0.0,
    drop: Annotated[float, Parameter(group=FAULTS)] = 0.0,
    garble: Annotated[float, Parameter(group=FAULTS)] = 0.0,
    cut: Annotated[float, Parameter(group=FAULTS)] = 0.0,
    slow: Annotated[float, Parameter(group=FAULTS)] = 0.0,
) -> int:
    """Serve a mock of Kimi's gateway on 127.0.0.1 until Ctrl-C.

    It enforces the limits like the real one, with its texts; what it admitted and refused is at /stats. Unlike the
    real one, which answers 404, it serves retired models such as moonshot-v1-8k.

    Args:
        port: To listen on; 0 takes a free one.
        policy: How a minute is counted: exact sliding log, fixed windows, token bucket, or evenly spaced requests.
        limits: Of the one account that all keys share.
        charge_refused: Count refused requests against RPM too.
        latency: Mean seconds of an answer.
        latency_jitter: How far the latency varies, as a share of it.
        tokens_per_second: Speed of generation, which adds to the latency.
        tokens_per_chunk: Tokens that one chunk of a stream brings.
        completion_ratio: Median length of an answer as a share of max_tokens.
        completion_spread: Sigma of the log-normal distribution of that length.
        network_jitter: Seconds that a request may take to arrive.
        batch_seconds: Seconds from the creation of a batch to its completion.
        seed: Of everything random; the same request gets the same answer.
        error_5xx: 500, 503 and 504 pages.
        overload: 429 because the engine is overloaded.
        drop: Connections closed without an answer.
        garble: Answers that are no JSON, or streams with a chunk that is none.
        cut: Connections closed in the middle of an answer.
        slow: Answers that take 10 seconds more.
    """
    settings = MockSettings(
        limits=limits.rate_limits(),
        policy=policy,
        charge_refused=charge_refused,
        latency=latency,
        latency_jitter=latency_jitter,
        tokens_per_second=tokens_per_second,
        tokens_per_chunk=tokens_per_chunk,
        completion_ratio=completion_ratio,
        completion_spread=completion_spread,
        network_jitter=network_jitter,
        batch_seconds=batch_seconds,
        seed=seed,
        faults=Faults(error_5xx=error_5xx, overload=overload, drop=drop, garble=garble, cut=cut, slow=slow),
    )
    try:
        serve(settings, port=port, on_ready=lambda url: _announce(url, settings))
    except KeyboardInterrupt:
        return 0
    return 0


def _announce(url: str, settings: MockSettings) -> None:
    print(f"mock gateway at {url} ({settings.policy}; {settings.limits})", flush=True)
    print(f"statistics at {url.removesuffix('/v1')}/stats; Ctrl-C ends it", flush=True)
