"""Who is compared, each at its best configuration for the way in which Kimi charges.

A module a contender. It imports its packages at the top, so that only the process that measures it pays for them; this
package imports none of them. Where a contender's README says something else than what suits Kimi, a second entry does
as documented.
"""

from dataclasses import dataclass
from importlib import import_module

from .contract import API_KEY, TIMEOUT, Account, Ask, Connect, Run

__all__ = ["API_KEY", "CONTENDERS", "TIMEOUT", "Entry", "connect"]

OPENAI = "openai==3.54.0"
LITELLM = "litellm==1.102.4"
"""The newest known to be sound; it needs openai 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a contender is found, and what it needs.

    Attributes:
        module: of this package.
        run: its function that sends a file of requests: a `contract.Run`.
        connect: its function that opens a client: a `contract.Connect`. None if it takes whole files only.
        packages: of PyPI; pinned, if it has an environment of its own.
        venv: the environment that has them; empty for the one that runs.
        python: the oldest that it runs on.
        settling: seconds that it may take until it sends anything.
        whole_seconds: it takes a minute of whole seconds only.
        real_minute_only: it takes a minute of 60 seconds only.
        about: a line.
    """

    module: str
    run: str = "run"
    connect: str | None = "connect"
    packages: tuple[str, ...]
    venv: str = ""
    python: tuple[int, int] = (3, 11)
    settling: float = 0.0
    whole_seconds: bool = False
    real_minute_only: bool = False
    about: str

    @property
    def own_venv(self) -> bool:
        """Whether it needs an environment other than the one that runs."""
        return bool(self.venv)

    def takes(self, minute: float) -> bool:
        """Whether it can be told of a minute that long, in seconds."""
        if self.real_minute_only:
            return minute == 60.0
        return not self.whole_seconds or (minute >= 1.0 and minute.is_integer())

    def load(self) -> Run:
        """Its function; imports its packages."""
        run: Run = getattr(import_module(f"{__name__}.{self.module}"), self.run)
        return run


CONTENDERS: dict[str, Entry] = {
    "kimi_async": Entry(
        module="kimi",
        packages=("kimi_async",),
        about="one call of AsyncKimi for each prompt, all at once",
    ),
    "httpx": Entry(
        module="plain_httpx",
        packages=("httpx",),
        about="a semaphore; it sleeps as long as Retry-After says and tries again, ten times in all",
    ),
    "httpx, unlimited connections": Entry(
        module="plain_httpx",
        run="run_unlimited",
        connect="connect_unlimited",
        packages=("httpx",),
        about="the same without httpx's bound of 100 connections",
    ),
    "AsyncOpenAI": Entry(
        module="openai_sdk",
        packages=("openai",),
        about="a semaphore, and nine retries of the SDK's own, ten attempts in all",
    ),
    "AsyncOpenAI, as documented": Entry(
        module="openai_sdk",
        run="run_as_documented",
        connect="connect_as_documented",
        packages=("openai",),
        about="the same with the SDK's default, two retries",
    ),
    "AsyncOpenAI + aiolimiter": Entry(
        module="openai_aiolimiter",
        packages=("openai", "aiolimiter"),
        about="one AsyncLimiter for RPM and one for TPM before each of ten attempts",
    ),
    "cookbook processor": Entry(
        module="cookbook",
        connect=None,
        packages=("aiohttp==3.14.5",),
        venv="peers",
        about="OpenAI's api_request_parallel_processor, written anew with the two repairs that its forks make",
    ),
    "cookbook processor, as published": Entry(
        module="cookbook",
        run="run_as_published",
        connect=None,
        packages=("aiohttp==3.14.5",),
        venv="peers",
        about="the same without the repairs: it pauses after refusals of tokens only, with up to 100 connections",
    ),
    "token-throttle": Entry(
        module="token_throttle",
        packages=("token-throttle==14.0.0", OPENAI),
        venv="peers",
        python=(3, 12),
        whole_seconds=True,
        about="what is reserved stays charged; every attempt is reserved for",
    ),
    "token-throttle, as documented": Entry(
        module="token_throttle",
        run="run_as_documented",
        connect="connect_as_documented",
        packages=("token-throttle==14.0.0", OPENAI),
        venv="peers",
        python=(3, 12),
        whole_seconds=True,
        about="what was not used is refunded; the SDK retries",
    ),
    "async-batch-llm": Entry(
        module="async_batch_llm",
        connect=None,
        packages=("async-batch-llm==0.28.0", OPENAI),
        venv="peers",
        about="no usage is reported, so what is reserved stays charged",
    ),
    "async-batch-llm, as documented": Entry(
        module="async_batch_llm",
        run="run_as_documented",
        connect=None,
        packages=("async-batch-llm==0.28.0", OPENAI),
        venv="peers",
        about="what was not used is refunded",
    ),
    "async-batch-llm, low burst": Entry(
        module="async_batch_llm",
        run="run_low_burst",
        connect=None,
        packages=("async-batch-llm==0.28.0", OPENAI),
        venv="peers",
        about="buckets of a twelfth of a minute under lowered limits, so that no sliding minute holds too much",
    ),
    "lm-deluge": Entry(
        module="lm_deluge",
        packages=("lm-deluge==0.0.168",),
        venv="peers",
        about="its own HTTP client, told the exact counts in place of its estimates; ten attempts in all",
    ),
    "lm-deluge, as documented": Entry(
        module="lm_deluge",
        run="run_as_documented",
        connect="connect_as_documented",
        packages=("lm-deluge==0.0.168",),
        venv="peers",
        about="it estimates prompts, four letters a token; its default, five attempts",
    ),
    "infermesh": Entry(
        module="infermesh",
        packages=("infermesh==0.3.2", LITELLM),
        venv="litellm",
        python=(3, 12),
        about="its RateLimiter before AsyncOpenAI; what is reserved stays charged",
    ),
    "infermesh, as documented": Entry(
        module="infermesh_client",
        packages=("infermesh==0.3.2", LITELLM),
        venv="litellm",
        python=(3, 12),
        about="its LMClient over LiteLLM; it estimates prompts, and what was not used is refunded",
    ),
    "aiollm-gateway": Entry(
        module="aiollm_gateway",
        packages=("aiollm-gateway==0.2.0", OPENAI),
        venv="peers",
        about="its ProviderLimiter before AsyncOpenAI",
    ),
    "LiteLLM Router": Entry(
        module="litellm_router",
        packages=(LITELLM,),
        venv="litellm",
        settling=60.0,
        real_minute_only=True,
        about="usage-based routing to one deployment, with eight retries, since it refuses where others wait",
    ),
    "LiteLLM Router, as documented": Entry(
        module="litellm_router",
        run="run_as_documented",
        connect="connect_as_documented",
        packages=(LITELLM,),
        venv="litellm",
        settling=60.0,
        real_minute_only=True,
        about="the same with its default, two retries",
    ),
}


async def connect(name: str, account: Account) -> Ask:
    """Open a contender's client in this process, on the running loop.

    Raises:
        ValueError: it takes whole files of requests only.
    """
    entry = CONTENDERS[name]
    if entry.connect is None:
        raise ValueError(f"{name} has no client that sends one request")
    opened: Connect = getattr(import_module(f"{__name__}.{entry.module}"), entry.connect)
    return await opened(account)
