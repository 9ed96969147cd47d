from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async import models


def test_live_models_are_those_without_a_day_of_retirement():
    """What Kimi serves in November 2026, newest first."""
    live = models.live_models()

    assert live[0] == "kimi-k3.1-pro"
    assert {"kimi-k3", "kimi-k2.6", "kimi-k2.7-code"} <= set(live)
    assert not {"kimi-k2.5", "moonshot-v1-8k", "kimi-latest"} & set(live)


@pytest.mark.parametrize(
    ("name", "context", "retired"),
    [
        ("kimi-k3", 1_048_576, None),
        ("kimi-k2.6", 262_144, None),
        ("kimi-k2.5", 262_144, date(2026, 8, 31)),
        ("kimi-k2-0711-preview", 131_072, date(2026, 5, 25)),
        ("moonshot-v1-8k", 8_192, date(2026, 8, 31)),
        ("moonshot-v1-32k-vision-preview", 32_768, date(2026, 8, 31)),
        ("moonshot-v1-auto", 131_072, date(2026, 8, 31)),
    ],
)
def test_the_table_knows_contexts_and_retirements(name, context, retired):
    """Retired models stay in the table: a caller still has to be told what they were."""
    model = models.find(name)

    assert model is not None
    assert (model.name, model.context, model.retired) == (name, context, retired)


def test_an_unknown_model_is_no_error():
    """Kimi adds names faster than packages are released."""
    assert models.find("kimi-k9") is None
    assert models.default_max_tokens("kimi-k9", 1_000_000) == 32_768
    assert models.default_max_tokens("moonshot-v1-8k-2030", 10) == 1_024


@pytest.mark.parametrize(
    ("name", "prompt", "reserved"),
    [
        ("kimi-k3", 10, 131_072),
        ("kimi-k2.6", 10, 32_768),
        ("kimi-k2.6", 229_376, 32_768),  # the last prompt that leaves room for all of it
        ("kimi-k2.6", 229_377, 32_767),
        ("kimi-k2.6", 262_143, 1),
        ("kimi-k2.6", 999_999, 1),
        ("moonshot-v1-8k", 10, 1_024),
    ],
)
def test_default_max_tokens_is_the_models_capped_by_its_context(name, prompt, reserved):
    """The gateway reserves the default, or what the prompt leaves of the context."""
    assert models.default_max_tokens(name, prompt) == reserved


@given(st.sampled_from([*models.live_models(), "moonshot-v1-8k", "kimi-latest"]), st.integers(0, 2_000_000))
def test_the_default_never_overflows_a_context_that_has_room(name, prompt):
    """At least one token, and prompt and answer together within the context whenever that is possible."""
    model = models.find(name)
    reserved = models.default_max_tokens(name, prompt)

    assert model is not None
    assert 1 <= reserved <= model.default_max_tokens
    assert prompt >= model.context or prompt + reserved <= model.context


def test_money_prices_hits_misses_and_output_apart():
    """kimi-k3: 0.30 a million cached, 3 fresh, 15 generated; of a million prompt tokens a quarter was cached."""
    usage = {"prompt_tokens": 1_000_000, "cached_tokens": 250_000, "completion_tokens": 100_000}

    assert models.money("kimi-k3", **usage) == pytest.approx(0.25 * 0.30 + 0.75 * 3 + 0.1 * 15)
    assert models.money("kimi-k3", **usage, currency="CNY") == pytest.approx(0.25 * 2 + 0.75 * 20 + 0.1 * 100)


def test_money_is_none_where_the_price_is_unknown():
    """No price is better than a wrong one."""
    usage = {"prompt_tokens": 1_000, "completion_tokens": 10}

    assert models.money("kimi-k9", **usage) is None
    assert models.money("kimi-k3.1-pro", **usage, currency="CNY") is None
    assert models.money("kimi-k3.1-pro", **usage) == pytest.approx(0.0021)


def test_allowance_is_for_media_and_for_templates_that_are_not_k2s():
    """Nothing for a text to K2.6; its images at most 4,096 tokens each, padded; K3's larger; the unknown as K3's."""
    text = {"messages": 3, "images": 0, "videos": 0}
    image = {"messages": 1, "images": 1, "videos": 0}

    assert models.allowance("kimi-k2.6", **text) == models.allowance("kimi-k9", **text) == 0
    assert models.allowance("kimi-k3", **text) == 3 * 19 + 74
    assert 4_446 < models.allowance("kimi-k2.6", **image) < 5_000
    assert 16_796 < models.allowance("kimi-k9", **image) < 18_000
    assert models.allowance("kimi-k2.6", messages=1, images=0, videos=2) == 2 * models.VIDEO_TOKENS


@pytest.mark.parametrize(
    ("name", "thinking", "temperatures"),
    [
        ("kimi-k3.1-pro", "always", (1.0, 1.0)),
        ("kimi-k3", "always", (1.0, 1.0)),
        ("kimi-k2.6", "optional", (1.0, 0.6)),
        ("kimi-k2.5", "optional", (1.0, 0.6)),
        ("kimi-k2-thinking", "always", None),
        ("kimi-k2-thinking-turbo", "always", None),
        ("kimi-thinking-preview", "always", None),
        ("kimi-k2-0905-preview", "never", None),
        ("moonshot-v1-128k-vision-preview", "never", None),
    ],
)
def test_which_models_think_and_are_fixed_to_one_temperature(name, thinking, temperatures):
    """From K2.5 on there is one for thinking and one for the rest, and one top_p; older models take any."""
    model = models.find(name)

    assert model is not None
    assert model.thinking == thinking
    sampling = model.sampling
    assert (sampling and (sampling.temperature, sampling.temperature_unthinking)) == temperatures
    assert sampling is None or sampling.top_p == 0.95


@pytest.mark.parametrize("name", models.live_models())
def test_every_live_model_thinks_and_is_fixed(name):
    """What is served in November 2026."""
    model = models.find(name)

    assert model is not None
    assert model.thinking != "never"
    assert model.sampling is not None
