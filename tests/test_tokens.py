import asyncio
import subprocess
import sys
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kimi_async import tokens
from kimi_async.errors import ConfigurationError, RequestTooLarge
from kimi_async.events import VocabularyMissing
from kimi_async.limits import Cost
from kimi_async.models import VIDEO_TOKENS
from kimi_async.tokens import TokenCounter

KIMI = (
    "你是 Kimi，由 Moonshot AI 提供的人工智能助手，你更擅长中文和英文的对话。你会为用户提供安全，有帮助，准确的回答。"
    "同时，你会拒绝一切涉及恐怖主义，种族歧视，黄色暴力等问题的回答。Moonshot AI 为专有名词，不可翻译成其他语言。"
)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """A counter for properties, which hypothesis lets use no fixture of a single test."""
    counter = TokenCounter(cache_dir=tmp_path_factory.mktemp("cache"))
    counter.load_now()
    return counter


@pytest.fixture
def counter(loaded, tmp_path):
    """A counter of its own; the process has the encoding already."""
    counter = TokenCounter(cache_dir=tmp_path)
    counter.load_now()
    return counter


@pytest.fixture
def no_vocabulary(monkeypatch):
    """A platform for which splintr-rs has no wheel."""

    def encoding(cache_dir):
        raise ModuleNotFoundError("No module named 'splintr'")

    monkeypatch.setattr(tokens, "encoding", encoding)


def user(content):
    """A message."""
    return {"role": "user", "content": content}


# Texts


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("What's", 1),
        ("can't", 1),
        ("1234567890", 4),
        ("中文abc", 2),
        ("<|im_end|>", 6),  # a special token's name in a text is text
    ],
)
def test_counts_are_those_published(counter, text, count):
    """Vectors of Kimi's tokenizer, quoted in public."""
    assert counter.count(text) == count


def test_a_text_is_counted_once(counter, monkeypatch):
    """A conversation says all of it again in each turn, a batch its system message in each request."""
    encoded = []
    encode = counter._encode
    monkeypatch.setattr(counter, "_encode", lambda text: encoded.append(text) or encode(text))
    assert counter.count("月亮") == counter.count("月亮") == len(encode("月亮"))
    assert encoded == ["月亮"]


def test_what_is_remembered_is_bounded(counter, monkeypatch):
    """And counted again when it was forgotten."""
    monkeypatch.setattr(tokens, "REMEMBERED", 10)
    counts = [counter.count(f"{number} texts") for number in range(25)]
    assert len(counter._counted) == 5
    assert [counter.count(f"{number} texts") for number in range(25)] == counts


# Loading


async def test_callers_of_one_counter_wait_for_one_thread(loaded, monkeypatch, tmp_path):
    """Not the loop's own; and a hundred of them would keep the loop's threads from everybody else."""
    threads = []
    encoding = tokens.encoding
    monkeypatch.setattr(tokens, "encoding", lambda path: threads.append(threading.current_thread()) or encoding(path))
    counter = TokenCounter(cache_dir=tmp_path)

    await asyncio.gather(*(counter.load() for _ in range(100)))
    await counter.load()

    assert counter.exact
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_cancelled_load_does_not_cancel_that_of_others(loaded, tmp_path):
    """They wait for the same thread; one of them giving up changes nothing for the other."""
    counter = TokenCounter(cache_dir=tmp_path)
    impatient, patient = asyncio.ensure_future(counter.load()), asyncio.ensure_future(counter.load())
    await asyncio.sleep(0)
    impatient.cancel()

    await patient

    assert impatient.cancelled()
    assert counter.exact


def test_importing_the_package_imports_no_tokenizer():
    """The tokenizers are for those who count."""
    code = (
        "import sys, kimi_async.tokens as t; t.TokenCounter(); assert not {'tiktoken', 'splintr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Without the vocabulary


async def test_without_the_vocabulary_bytes_are_the_bound_and_one_event_says_so(no_vocabulary, tmp_path):
    """However often it is loaded and asked."""
    events = []
    counter = TokenCounter(cache_dir=tmp_path, on_event=events.append)

    assert counter.count("月亮") == 6
    assert counter.count("\ud800") == 3
    await counter.load()
    assert (await counter.cost({"model": "kimi-k2.6", "messages": [user("月亮")]})).prompt_tokens == 6 + 7
    assert [type(event) for event in events] == [VocabularyMissing]
    assert not counter.exact
    assert "upper estimates" in repr(counter)


async def test_an_upper_estimate_never_refuses_a_request(no_vocabulary, tmp_path):
    """9,000 bytes may well be 2,000 tokens."""
    counter = TokenCounter(cache_dir=tmp_path, on_event=[].append)

    cost = await counter.cost({"model": "moonshot-v1-8k", "messages": [user("a" * 9_000)], "max_tokens": 512})

    assert cost == Cost(9_007, 512)


@given(st.text())
@example("\ud800 and \udc00")
@example("<|im_user|>[BOS]")
@example("🏳️‍🌈" * 20)
def test_no_text_has_more_tokens_than_bytes(loaded, text):
    """The bound that counting without the vocabulary rests on, and nothing crashes on the way."""
    assert 0 <= loaded.count(text) <= len(text.encode("utf-8", "surrogatepass"))


# Long texts


@pytest.mark.parametrize("unit", [" ", "\n", "a", "中", "\t "])
def test_a_run_without_end_is_counted_in_slices(counter, unit):
    """Without slices a million spaces panic in Rust, with an exception that `except Exception` does not catch."""
    assert 0 < counter.count(unit * 1_100_000) <= 1_100_000 * len(unit.encode()) * len(unit)


def test_a_long_ordinary_text_is_counted_whole(counter):
    """Slicing changes nothing where there is no long run."""
    text = "The moon 月亮 is 384,400 km away.\n" * 2_000

    assert counter.count(text) == len(counter._encode(text))


# Prompts


def test_a_prompt_costs_its_contents_4_a_message_and_3(counter):
    """The example of Kimi's documentation: 83 billed; its estimate-token-count, which leaves out the 3, says 80."""
    messages = [{"role": "system", "content": KIMI}, user("你好，我叫李雷，1+1等于多少？")]

    assert counter.prompt_tokens(messages) == 83
    assert sum(counter.count(message["content"]) for message in messages) + 2 * 4 == 80


def test_tools_are_counted_as_compact_json_and_6(counter):
    """However the caller spaced them."""
    tools = [{"type": "function", "function": {"name": "月相", "parameters": {"type": "object"}}}]
    compact = '[{"type":"function","function":{"name":"月相","parameters":{"type":"object"}}}]'

    surplus = counter.prompt_tokens([user("hi")], tools) - counter.prompt_tokens([user("hi")])

    assert surplus == counter.count(compact) + 6


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"name": "Li Lei"}, "Li Lei"),
        ({"reasoning_content": "Let me think."}, "Let me think."),
        ({"content": [{"type": "text", "text": "What is this?"}, "and that"]}, "What is this?" + "and that"),
        ({"role": "tool", "tool_call_id": "weather:0"}, "## Return of weather:0\n"),
    ],
)
def test_every_text_of_a_message_is_counted(counter, field, text):
    """Names, reasoning, text parts and the header of a tool's result."""
    bare = counter.prompt_tokens([{"role": "user"}])

    assert bare == 7
    assert counter.prompt_tokens([{"role": "user"} | field]) == bare + counter.count(text)


def test_tools_that_a_message_brings_are_counted(counter):
    """K3 lets a system message declare tools in the middle of a conversation."""
    message = {"role": "system", "tools": [{"type": "function"}]}

    assert counter.prompt_tokens([message]) == 7 + 6 + counter.count('[{"type":"function"}]')


@pytest.mark.parametrize("arguments", ['{"city":"北京"}', {"city": "北京"}])
def test_tool_calls_are_counted(counter, arguments):
    """Two for the section, three for each call, and its id, name and arguments, whether these are a text or not."""
    call = {"id": "weather:0", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    texts = sum(map(counter.count, ("weather:0", "weather", '{"city":"北京"}')))

    prompt = counter.prompt_tokens([{"role": "assistant", "content": None, "tool_calls": [call, call]}])

    assert prompt == 7 + 2 + 2 * (3 + texts)


def test_images_and_videos_count_as_much_as_the_model_may_make_of_them(counter):
    """K2.6 makes up to 4,096 tokens of an image, K3 up to 16,384; an unknown model is taken for the larger."""
    image = [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]
    video = [user([{"type": "video_url", "video_url": "ms://1"}])]

    assert counter.prompt_tokens(image, model="kimi-k2.6") == 7 + 4_608
    assert counter.prompt_tokens(image) == 7 + 17_408
    assert counter.prompt_tokens(video, model="kimi-k2.6") == 7 + VIDEO_TOKENS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "text", "tool_calls", "function", "name", "tools", "image_url"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, json_values)
def test_malformed_prompts_are_counted_for_what_they_hold(loaded, messages, tools):
    """Kimi answers them with 400; the counter must get them there."""
    assert loaded.prompt_tokens(messages, tools) >= 3


# Costs


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 512}, 512),
        ({"max_completion_tokens": 600}, 600),
        ({"max_tokens": 512, "max_completion_tokens": 600}, 600),
        ({"max_tokens": 700, "max_completion_tokens": 600}, 700),
        ({"max_tokens": None}, 32_768),
        ({}, 32_768),
    ],
)
async def test_max_tokens_is_the_requests_or_the_models_default(counter, fields, max_tokens):
    """The larger where the request has both names of it."""
    cost = await counter.cost({"model": "kimi-k2.6", "messages": [user("中文abc")], **fields})

    assert cost == Cost(2 + 7, max_tokens)


async def test_n_answers_reserve_n_times(counter):
    """The cost multiplies them."""
    cost = await counter.cost({"model": "moonshot-v1-8k", "messages": [user("中文abc")], "max_tokens": 100, "n": 3})

    assert cost.tokens == 9 + 300


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "512", True])
async def test_impossible_numbers_are_refused_by_name(counter, field, value):
    """Before anything is reserved for them."""
    with pytest.raises(ConfigurationError, match=f"^{field}="):
        await counter.cost({"model": "kimi-k2.6", "messages": [], field: value})


async def test_a_request_that_overflows_the_context_fails_with_the_remedy(counter):
    """8,192 tokens fit into moonshot-v1-8k, 8,193 do not."""
    body = {"model": "moonshot-v1-8k", "messages": [user("中文abc")]}

    assert (await counter.cost(body | {"max_tokens": 8_183})).tokens == 8_192
    with pytest.raises(RequestTooLarge, match="lower max_tokens to at most 8,183") as caught:
        await counter.cost(body | {"max_tokens": 8_184})
    assert (caught.value.needed, caught.value.limit, caught.value.budget) == (8_193, 8_192, "context")


async def test_a_prompt_that_fills_the_context_must_be_shortened(counter):
    """No max_tokens could help it."""
    text = " moon" * (8_192 - 7)

    with pytest.raises(RequestTooLarge, match="shorten the prompt by 1 token"):
        await counter.cost({"model": "moonshot-v1-8k", "messages": [user(text)]})


async def test_images_never_overflow_a_context(counter):
    """They are estimates: the true image may be small."""
    image = {"type": "image_url", "image_url": {"url": "ms://1"}}
    body = {"model": "moonshot-v1-8k-vision-preview", "messages": [user([image, image])], "max_tokens": 1_000}

    assert (await counter.cost(body)).prompt_tokens > 8_192


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
async def test_images_never_shorten_an_answer(counter, kind):
    """What a request leaves out is sent: 60 images that are small leave room for more than one token."""
    body = {"model": "kimi-k2.6", "messages": [user([{"type": kind, kind: {"url": "ms://1"}}] * 60)]}
    cost = await counter.cost(body)
    assert cost.prompt_tokens > 262_144
    assert cost.max_tokens == 32_768


@pytest.mark.parametrize("model", ["kimi-k3", "moonshot-v1-8k", "kimi-k9"])
async def test_a_json_schema_is_counted(counter, model):
    """As compact JSON, for every model: K3's template shows it to the model, and nobody knows of the others."""
    body = {"model": model, "messages": [user("hi")], "max_tokens": 10}
    schema = {"name": "月相", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    compact = '{"name":"月相","schema":{"type":"object","properties":{"a":{"type":"string"}}}}'
    plain = (await counter.cost(body)).prompt_tokens

    with_schema = await counter.cost(body | {"response_format": {"type": "json_schema", "json_schema": schema}})

    assert with_schema.prompt_tokens == plain + counter.count(compact)


@pytest.mark.parametrize("value", [None, "json", 3, [], {}, {"type": "json_object"}, {"json_schema": None}])
async def test_other_formats_cost_nothing(counter, value):
    """There is nothing in them for the model to read; nonsense is Kimi's to refuse."""
    body = {"model": "kimi-k2.6", "messages": [user("hi")], "max_tokens": 10}

    assert await counter.cost(body | {"response_format": value}) == await counter.cost(body)


async def test_bills_above_the_count_are_learned(counter):
    """The largest surplus, for that model only; smaller ones, discounts and outliers change nothing."""
    body = {"model": "kimi-k2.6", "messages": [user("中文abc")]}
    for billed in (14, 12, 5, 9_000):
        counter.learn(body, billed=billed)

    assert (await counter.cost(body)).prompt_tokens == 14
    assert (await counter.cost(body | {"model": "kimi-k2.5"})).prompt_tokens == 9
    assert counter.prompt_tokens(body["messages"]) == 9
    assert repr(counter) == "<TokenCounter exact, kimi-k2.6 +5>"


async def test_k3s_longer_template_is_reserved(counter):
    """19 tokens a message and 74 a prompt more than K2's."""
    body = {"messages": [user("中文abc")], "max_tokens": 10}

    assert (await counter.cost(body | {"model": "kimi-k3"})).prompt_tokens == 9 + 19 + 74
    assert (await counter.cost(body | {"model": "kimi-k2.6"})).prompt_tokens == 9


@given(json_values, json_values, st.sampled_from(["", "kimi-k3", "kimi-k2.6"]))
def test_a_prompt_is_counted_alike_with_and_without_a_loop(loaded, messages, tools, model):
    """``count_prompt`` is ``prompt_tokens``, awaited."""
    assert asyncio.run(loaded.count_prompt(messages, tools, model=model)) == loaded.prompt_tokens(
        messages, tools, model=model
    )


turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(max_size=20)},
        optional={"reasoning_content": st.text(max_size=9), "tool_calls": st.just([{"function": {"name": "f"}}])},
    ),
    max_size=4,
)


@given(turns, turns, st.sampled_from(["", "kimi-k3", "kimi-k2.6"]))
def test_the_messages_of_a_prompt_add_up(loaded, first, second, model):
    """Each counts by itself, whatever is around it: so a conversation can measure its turns one by one."""

    def count(messages):
        return loaded.prompt_tokens(messages, model=model)

    assert count(first + second) == count(first) + count(second) - count([])


# The event loop


async def test_a_long_prompt_is_counted_off_the_loop_by_count_prompt(counter, monkeypatch):
    """As by ``cost``."""
    threads = []
    monkeypatch.setattr(counter, "_count", lambda text: threads.append(threading.current_thread()) or 1)

    assert await counter.count_prompt([user("a" * 10_001)]) == 8
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize(("length", "on_the_loop"), [(10_000, True), (10_001, False)])
async def test_long_prompts_are_counted_off_the_loop(counter, monkeypatch, length, on_the_loop):
    """A hundred thousand tokens take 30 ms; a thread leaves the loop to others meanwhile."""
    threads = []
    monkeypatch.setattr(counter, "_count", lambda text: threads.append(threading.current_thread()) or 1)

    await counter.cost({"model": "kimi-k2.6", "messages": [user("a" * length)]})

    assert (threads == [threading.main_thread()]) is on_the_loop


@pytest.mark.parametrize("together", [True, False])
async def test_a_burst_of_short_prompts_lets_the_loop_turn(counter, together):
    """Two hundred prompts, 200,000 characters: no more than a breath of them between two turns of the loop."""
    turns = counted = most = 0
    body = {"model": "kimi-k2.6", "messages": [user("moon " * 200)], "max_tokens": 10}

    async def price():
        nonlocal counted, most
        await counter.cost(body)
        counted += 1
        most = max(most, counted)

    async def turn():
        nonlocal turns, counted
        while True:
            turns += 1
            counted = 0
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(turn())
    if together:
        await asyncio.gather(*(price() for _ in range(200)))
    else:
        for _ in range(200):
            await price()
    ticking.cancel()

    assert most <= tokens.BREATH / 1_000 + 1
    assert turns >= 9


def test_one_counter_serves_several_loops_one_after_another(counter):
    """The turnstile of a burst belongs to its loop; a second asyncio.run gets its own."""
    body = {"model": "kimi-k2.6", "messages": [user("moon " * 200)], "max_tokens": 10}

    async def burst():
        return await asyncio.gather(*(counter.cost(body) for _ in range(60)))

    assert asyncio.run(burst()) == asyncio.run(burst())
