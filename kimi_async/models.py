"""What we know of each model: context, default ``max_tokens``, prices, retired or not. A leaf, read in November 2026.

Contexts, prices and retirements are those of Kimi's pricing, model-list and deprecation pages (platform.kimi.ai/docs,
platform.kimi.com/docs, September 2026); a row whose note says so rests on less. An unknown model is no error
anywhere in the package: Kimi adds names faster than packages are released.
"""

from dataclasses import dataclass
from datetime import date
from typing import Literal

Currency = Literal["CNY", "USD"]
"""CNY is what api.moonshot.cn charges, USD what api.moonshot.ai does."""

FALLBACK_DEFAULT = 32_768
"""``max_tokens`` assumed for a model not in the table: the default of every Kimi model from K2.5 to K2.7."""

FALLBACK_DEFAULT_V1 = 1_024
"""The same for an unlisted ``moonshot-v1`` name: "a reasonable integer such as 1024" (API reference, up to 7/2026)."""

VIDEO_TOKENS = 65_536
"""Assumed for a video, whose length a request does not tell.

Two minutes at K2.6's largest frames: 2 frames a second, 4,096 patches a frame, 16 patches to a token. K3 stays at
655,360 / 16 = 40,960 tokens and its timestamps. (Both from their ``preprocessor_config.json``.) For a longer one ask
``/v1/tokenizers/estimate-token-count``.
"""

_K = 1_024


@dataclass(frozen=True, slots=True)
class Price:
    """Prices for a million tokens.

    Args:
        hit: prompt tokens that came out of Kimi's context cache.
        miss: all other prompt tokens.
        output: generated tokens, thinking included.
    """

    hit: float
    miss: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> float:
        """What one answer costs."""
        fresh = prompt_tokens - cached_tokens
        return (cached_tokens * self.hit + fresh * self.miss + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of a model that takes no others: any other value is a 400, and so is ``n`` above 1.

    Args:
        temperature: the only one allowed; while it thinks, if it can do both.
        temperature_unthinking: the only one allowed with ``thinking`` disabled.
        top_p: the only one allowed.
    """

    temperature: float = 1.0
    temperature_unthinking: float = 1.0
    top_p: float = 0.95


Thinking = Literal["never", "optional", "always"]
"""Whether a model thinks before it answers; ``"optional"``: unless the request disables it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model.

    Args:
        name: as in the request.
        context: tokens that prompt and answer may have together.
        default_max_tokens: what the gateway reserves when a request names no ``max_tokens``.
        usd: None where unknown.
        cny: None where unknown.
        retired: the day from which Kimi answers 404; None for a live model.
        image_tokens: upper estimate for one image; see ``_IMAGE_TOKENS``.
        extra_message_tokens: what its chat template adds to a message beyond the 4 tokens of K2's.
        extra_prompt_tokens: what it adds to a prompt beyond the 3 of K2's.
        thinking: whether it does.
        sampling: what it is fixed to; None for a model whose sampling is free.
        note: what is uncertain about the row.
    """

    name: str
    context: int
    default_max_tokens: int
    usd: Price | None = None
    cny: Price | None = None
    retired: date | None = None
    image_tokens: int
    extra_message_tokens: int = 0
    extra_prompt_tokens: int = 0
    thinking: Thinking = "never"
    sampling: Sampling | None = None
    note: str = ""


def find(name: str) -> Model | None:
    """The model of that exact name, retired ones included; None for one that is not in the table."""
    return _MODELS.get(name)


def live_models() -> tuple[str, ...]:
    """Names of the models that are not retired, newest first."""
    return tuple(model.name for model in _MODELS.values() if model.retired is None)


def default_max_tokens(name: str, prompt_tokens: int) -> int:
    """Tokens that the gateway reserves for the answer when a request does not say.

    Never more than the context leaves room for ("max output = 262144 - prompt_tokens", K2.6's quickstart), and
    never less than one.
    """
    model = find(name)
    if model is None:
        return FALLBACK_DEFAULT_V1 if name.startswith("moonshot-v1") else FALLBACK_DEFAULT
    return max(1, min(model.default_max_tokens, model.context - prompt_tokens))


def allowance(name: str, *, messages: int, images: int, videos: int) -> int:
    """Tokens of a prompt that cannot be counted from its texts, estimated upwards.

    Args:
        name: the model; an unknown one is taken to have K2's chat template and K3's images.
        messages: for a template that spends more on each than K2's, which the counter knows.
        images: each at the largest that the model makes of one.
        videos: each at ``VIDEO_TOKENS``.
    """
    model = find(name)
    media = images * (model.image_tokens if model else _IMAGE_TOKENS_K3) + videos * VIDEO_TOKENS
    return media + (model.extra_prompt_tokens + messages * model.extra_message_tokens if model else 0)


def money(
    name: str,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int = 0,
    currency: Currency = "USD",
) -> float | None:
    """What one answer is billed, from the numbers of its ``usage``.

    K3's surcharge for writing to the cache is left out: answers rarely tell how much was written.

    Args:
        name: the model.
        prompt_tokens: all of them; ``cached_tokens`` are among them.
        completion_tokens: generated tokens, thinking included.
        cached_tokens: prompt tokens billed at the price of a cache hit.
        currency: that of the account.

    Returns:
        The amount in that currency, or None if the model or its price in that currency is unknown.
    """
    model = find(name)
    price = model and (model.usd if currency == "USD" else model.cny)
    return price.of(prompt_tokens, completion_tokens, cached_tokens) if price else None


# The open preprocessors cap an image at 16,384 patches of 14 x 14 pixels for K2.5 and K2.6 and at 65,536 for K3
# (in_patch_limit of preprocessor_config.json on huggingface.co/moonshotai), and merge 2 x 2 patches into a token.
# Padding to whole tokens adds to the 4,096 and 16,384 that follow: a search over shapes and sizes found no more
# than 4,446 and 16,796. The rest is headroom for the markup around the image.
_IMAGE_TOKENS = 4_608
_IMAGE_TOKENS_K3 = 17_408

# K3's template (encoding_k3.py of huggingface.co/moonshotai/Kimi-K3) spends 11 tokens on a message, 23 on an
# assistant's in thinking mode, 10 on the answer's beginning and 67 on a message that states the thinking effort;
# K2's, which the counter knows, 4 on any message and 3 on the beginning.
_K3_MESSAGE = 23 - 4
_K3_PROMPT = 10 + 67 - 3

_ASSUMED_K3 = "default max_tokens, image size and chat template assumed to be kimi-k3's"
_FROM_MEMORY = "CNY price and context from memory"


def _k3(name: str, usd: Price | None, cny: Price | None = None, note: str = "") -> Model:
    return Model(
        name=name,
        context=1_024 * _K,
        default_max_tokens=128 * _K,
        usd=usd,
        cny=cny,
        image_tokens=_IMAGE_TOKENS_K3,
        extra_message_tokens=_K3_MESSAGE,
        extra_prompt_tokens=_K3_PROMPT,
        thinking="always",
        sampling=Sampling(),
        note=note,
    )


def _k2_5(
    name: str, usd: Price, cny: Price | None, retired: date | None = None, *, thinking: Thinking = "optional"
) -> Model:
    return Model(
        name=name,
        context=256 * _K,
        default_max_tokens=32 * _K,
        usd=usd,
        cny=cny,
        retired=retired,
        image_tokens=_IMAGE_TOKENS,
        thinking=thinking,
        sampling=Sampling(temperature_unthinking=0.6),
    )


def _old(
    name: str, context: int, retired: date, usd: Price | None = None, cny: Price | None = None, *, note: str = ""
) -> Model:
    return Model(
        name=name,
        context=context,
        default_max_tokens=FALLBACK_DEFAULT_V1,
        usd=usd,
        cny=cny,
        retired=retired,
        image_tokens=_IMAGE_TOKENS,
        thinking="always" if "thinking" in name else "never",
        note=note,
    )


def _v1() -> tuple[Model, ...]:
    prices = {  # no cache: a hit costs what a miss does
        "8k": (8 * _K, Price(0.20, 0.20, 2), Price(2, 2, 10)),
        "32k": (32 * _K, Price(1, 1, 3), Price(5, 5, 20)),
        "128k": (128 * _K, Price(2, 2, 5), Price(10, 10, 30)),
    }
    retired = date(2026, 8, 31)
    rows = [
        _old(f"moonshot-v1-{size}{vision}", context, retired, usd, cny, note=_FROM_MEMORY)
        for vision in ("", "-vision-preview")
        for size, (context, usd, cny) in prices.items()
    ]
    auto = "billed as the 8k, 32k or 128k model that prompt and max_tokens need"
    return (*rows, _old("moonshot-v1-auto", 128 * _K, retired, note=auto))


_K2_USD, _K2_CNY, _K2_TURBO_USD = Price(0.15, 0.60, 2.50), Price(1, 4, 16), Price(0.15, 1.15, 8)
_K2_RETIRED = date(2026, 5, 25)

_MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _k3("kimi-k3.1-pro", Price(0.20, 2, 10), note=_ASSUMED_K3),
        _k3("kimi-k3.1-pro-highspeed", None, note=f"4 and 20 USD, cache price unknown; {_ASSUMED_K3}"),
        _k3("kimi-k3", Price(0.30, 3, 15), Price(2, 20, 100)),
        _k2_5("kimi-k2.7-code", Price(0.19, 0.95, 4), Price(1.30, 6.50, 27), thinking="always"),
        _k2_5("kimi-k2.7-code-highspeed", Price(0.38, 1.90, 8), Price(2.60, 13, 54), thinking="always"),
        _k2_5("kimi-k2.6", Price(0.16, 0.95, 4), Price(1.10, 6.50, 27)),
        _k2_5("kimi-k2.5", Price(0.10, 0.60, 3), None, date(2026, 8, 31)),
        _old("kimi-k2-0905-preview", 256 * _K, _K2_RETIRED, _K2_USD, _K2_CNY),
        _old("kimi-k2-thinking", 256 * _K, _K2_RETIRED, _K2_USD, _K2_CNY),
        _old("kimi-k2-turbo-preview", 256 * _K, _K2_RETIRED, _K2_TURBO_USD),
        _old("kimi-k2-thinking-turbo", 256 * _K, _K2_RETIRED, _K2_TURBO_USD),
        _old("kimi-k2-0711-preview", 128 * _K, _K2_RETIRED, _K2_USD, _K2_CNY),
        *_v1(),
        _old("kimi-latest", 128 * _K, date(2026, 1, 28), note="billed as moonshot-v1-auto was"),
        _old("kimi-thinking-preview", 128 * _K, date(2025, 11, 11), note=_FROM_MEMORY),
    )
}
