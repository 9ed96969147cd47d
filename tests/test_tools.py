"""The tool loop: calls are run together, failures go back to the model, and it ends."""

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.chat import ChatCompletion, ToolCall
from kimi_async.errors import APIConnectionError, ConfigurationError, InvalidResponseError, ToolRoundsExceeded
from kimi_async.tools import Toolbox, converse, for_round
from tests.conftest import run_virtual

SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
QUESTION = [{"role": "user", "content": "How is the weather?"}]


def call(name, arguments="{}", call_id="c1", kind="function"):
    """A call on the wire."""
    return {"id": call_id, "type": kind, "function": {"name": name, "arguments": arguments}}


def calling(*calls, **fields):
    """A completion in which the model calls tools."""
    message = {"role": "assistant", "content": "", "tool_calls": list(calls), **fields}
    return ChatCompletion.model_validate({"choices": [{"message": message, "finish_reason": "tool_calls"}]})


def saying(text):
    """A completion that answers."""
    message = {"role": "assistant", "content": text, "reasoning_content": "hm"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "cmpl-9", "choices": [choice], "usage": {"total_tokens": 7}, "new": 1}
    completion = ChatCompletion.model_validate(body)
    completion._request_id = "r-9"
    return completion


class Kimi:
    """Answers with a script, and keeps what it was asked."""

    def __init__(self, *completions):
        self.script = list(completions)
        self.asked = []

    async def ask(self, messages):
        self.asked.append(json.loads(json.dumps(messages)))
        return self.script.pop(0)


async def answers(tools, *calls):
    """The contents of the tool messages to some calls."""
    messages = await Toolbox(tools).answer([ToolCall.model_validate(one) for one in calls])
    return [message["content"] for message in messages]


async def weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: sunny"


async def broken(text: str = "") -> str:
    """A tool that fails."""
    raise ValueError(text)


async def test_the_model_calls_reads_the_result_and_answers():
    """Each turn is sent back as it came, reasoning included, with a tool message for its call."""
    kimi = Kimi(
        calling(call("weather", '{"city": "Oslo"}'), reasoning_content="I should look", extra={"kept": True}),
        saying("Sunny."),
    )
    answer = await converse(kimi.ask, QUESTION, Toolbox([weather]), 5)
    assert answer.text == "Sunny."
    assert answer.rounds == 1
    assert kimi.asked[0] == QUESTION
    assert kimi.asked[1] == [
        *QUESTION,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I should look",
            "tool_calls": [call("weather", '{"city": "Oslo"}')],
            "extra": {"kept": True},
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Oslo: sunny"},
    ]
    assert answer.messages == [
        *kimi.asked[1],
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "hm"},
    ]


async def test_a_turn_that_only_calls_is_sent_back_as_it_came():
    """Its content is null as Kimi had it; thinking models want reasoning_content beside calls, be it empty."""
    kimi = Kimi(calling(call("weather"), content=None), saying("Sunny."))
    await converse(kimi.ask, QUESTION, Toolbox([weather]))
    turn = {"role": "assistant", "content": None, "reasoning_content": "", "tool_calls": [call("weather")]}
    assert kimi.asked[1][1] == turn


async def test_the_answer_is_the_completion_with_its_history():
    """Dumped, it is what Kimi sent; the history is beside it."""
    answer = await converse(Kimi(saying("Hi.")).ask, QUESTION, Toolbox([]), 1)
    assert answer.model_dump(exclude_unset=True) == saying("Hi.").model_dump(exclude_unset=True)
    assert answer.model_dump() == saying("Hi.").model_dump()
    assert answer.request_id == "r-9"
    assert (answer.rounds, len(answer.messages)) == (0, 2)


async def test_the_callers_messages_are_not_changed():
    """The conversation is a list of its own; so is what every request gets."""
    messages = [*QUESTION]
    lists = []

    async def ask(conversation):
        lists.append(conversation)
        return calling(call("weather")) if len(lists) == 1 else saying("Hi.")

    answer = await converse(ask, messages, Toolbox([weather]), 5)
    assert messages == QUESTION
    assert [len(one) for one in lists] == [1, 3]
    assert len(answer.messages) == 4


async def test_what_kimi_answered_before_can_be_sent_again():
    """Messages may be those of an earlier completion."""
    kimi = Kimi(saying("Again."))
    await converse(kimi.ask, [*QUESTION, saying("Hi.").choices[0].message], Toolbox([]), 1)
    assert kimi.asked[0][1] == {"role": "assistant", "content": "Hi.", "reasoning_content": "hm"}


async def test_a_model_that_never_stops_calling_is_stopped():
    """After so many rounds there is an error, with a conversation that can go on: no call in it is unanswered."""
    kimi = Kimi(*(calling(call("weather", '{"city": "Oslo"}', f"c{number}")) for number in range(3)))
    with pytest.raises(ToolRoundsExceeded, match="2 rounds") as caught:
        await converse(kimi.ask, QUESTION, Toolbox([weather]), 2)
    assert caught.value.rounds == 2
    assert len(kimi.asked) == 3
    assert caught.value.messages == kimi.asked[2]
    assert [message["role"] for message in caught.value.messages] == ["user", *["assistant", "tool"] * 2]


async def test_the_last_round_may_still_be_answered():
    """As many rounds as were allowed, then an answer: no error."""
    kimi = Kimi(*[calling(call("weather"))] * 2, saying("Sunny."))
    assert (await converse(kimi.ask, QUESTION, Toolbox([weather]), 2)).rounds == 2


async def test_no_rounds_at_all_make_no_loop():
    """Said before anything is sent."""
    kimi = Kimi()
    with pytest.raises(ConfigurationError, match="max_rounds=0"):
        await converse(kimi.ask, QUESTION, Toolbox([weather]), 0)


async def test_an_error_of_the_request_ends_the_loop():
    """It is not the model's to solve."""

    async def ask(messages):
        raise APIConnectionError("dropped")

    with pytest.raises(APIConnectionError):
        await converse(ask, QUESTION, Toolbox([weather]), 2)


async def test_calls_of_one_turn_run_at_the_same_time():
    """Ten tools of an hour take an hour, and their results keep the order of the calls."""

    async def slow(number: int) -> int:
        await asyncio.sleep(3600 - number)
        return number

    loop = asyncio.get_running_loop()
    begun = loop.time()
    calls = [call("slow", json.dumps({"number": number}), f"c{number}") for number in range(10)]
    messages = await Toolbox([slow]).answer([ToolCall.model_validate(one) for one in calls])
    assert loop.time() - begun == pytest.approx(3600, abs=1)
    assert [(message["tool_call_id"], message["content"]) for message in messages] == [
        (f"c{number}", str(number)) for number in range(10)
    ]


async def test_a_failing_tool_does_not_disturb_the_others():
    """The model gets the exception's name and text, and the other results, even those that take longer."""

    async def slow():
        await asyncio.sleep(60)
        return "done"

    calls = [call("broken", '{"text": "no such city"}'), call("slow"), call("broken")]
    assert await answers([broken, slow], *calls) == ["ValueError: no such city", "done", "ValueError"]


@pytest.mark.real_time
async def test_failures_in_threads_are_told_as_well():
    """Sync functions fail like async ones."""

    def divide(by: int) -> float:
        return 1 / by

    assert await answers([divide], call("divide", '{"by": 0}'), call("divide", '{"by": 4}')) == [
        "ZeroDivisionError: division by zero",
        "0.25",
    ]


async def test_the_model_is_told_what_it_got_wrong():
    """Unknown tools with the known ones, arguments with the place."""
    calls = [call("wether"), call("weather", '{"city": '), call("weather", '{"city": 3}')]
    unknown, unreadable, invalid = await answers([weather, SEARCH], *calls)
    assert unknown == "Unknown tool 'wether'; the tools are: weather, $web_search"
    assert unreadable.startswith("Invalid arguments for weather:\n- arguments: Invalid JSON: EOF")
    assert invalid == "Invalid arguments for weather:\n- city: Input should be a valid string"


async def test_a_result_that_cannot_be_written_is_an_error_of_the_tool():
    """Not of the loop."""
    circle = []
    circle.append(circle)

    async def tool():
        return circle

    (content,) = await answers([tool], call("tool"))
    assert content.startswith("PydanticSerializationError: ")
    assert "Circular reference" in content


async def test_a_text_that_no_request_can_carry_is_escaped():
    """As in names of files that are no UTF-8."""

    async def files():
        return "caf\udce9.txt"

    assert await answers([files], call("files")) == ["caf\\udce9.txt"]


async def test_kimis_own_functions_get_their_arguments_back():
    """Kimi searches when it reads them; nothing is validated or changed."""
    toolbox = Toolbox([SEARCH, weather])
    assert repr(toolbox) == "<Toolbox $web_search, weather>"
    assert toolbox.declarations[0] == SEARCH
    assert toolbox.declarations[1]["function"]["name"] == "weather"
    arguments = '{"search_result": {"search_id": "x"},  "usage": {"total_tokens": 5}}'
    message = call("$web_search", arguments, "c7", "builtin_function")
    assert await toolbox.answer([ToolCall.model_validate(message)]) == [
        {"role": "tool", "tool_call_id": "c7", "name": "$web_search", "content": arguments}
    ]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ([{"type": "function", "function": {"name": "weather"}}], "declaration of 'weather' has no Python function"),
        ([{"type": "builtin_function"}], "builtin_function"),
        ([weather, weather], "two tools are named 'weather'"),
        ([SEARCH, SEARCH], r"two tools are named '\$web_search'"),
        (["weather"], "'weather' is neither a function nor the declaration of one"),
        ([lambda city: city], "use def"),
    ],
)
def test_tools_that_cannot_work_are_refused(tools, text):
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=text):
        Toolbox(tools)


async def test_cancelling_cancels_every_tool():
    """And is not taken for a failure of one."""
    ended = []

    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    kimi = Kimi(calling(call("slow"), call("slow"), call("broken")))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await converse(kimi.ask, QUESTION, Toolbox([slow, broken]), 5)
    assert ended == ["cancelled", "cancelled"]
    assert len(kimi.asked) == 1


def test_an_interrupt_ends_the_program_not_the_tool():
    """Ctrl-C is no answer for a model."""

    async def interrupted():
        raise KeyboardInterrupt

    async def main():
        await converse(Kimi(calling(call("interrupted"))).ask, QUESTION, Toolbox([interrupted]), 5)

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main())


@pytest.mark.real_time
async def test_sync_tools_of_one_turn_run_at_the_same_time():
    """Each waits for the other in its own thread; one after the other, neither would end."""
    barrier = threading.Barrier(2, timeout=10)

    def meet() -> str:
        barrier.wait()
        return "met"

    assert await answers([meet], call("meet"), call("meet")) == ["met", "met"]


@given(name=st.text(), arguments=st.text())
def test_whatever_the_model_writes_gets_an_answer(name, arguments):
    """No text of a model can break the loop, and the answer can be sent."""
    unknown, invalid = run_virtual(answers([weather], call(name, arguments), call("weather", arguments)))
    assert unknown.startswith("Unknown tool")
    assert invalid.startswith("Invalid arguments for weather:")


async def test_what_a_tool_waited_for_may_be_cancelled():
    """That is the tool's failure, and nobody's wish to stop."""

    async def impatient() -> str:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    assert await answers([impatient, weather], call("impatient"), call("weather", '{"city": "Oslo"}')) == [
        "CancelledError",
        "Oslo: sunny",
    ]


async def test_a_round_that_fails_keeps_what_the_tools_did():
    """The error has the conversation, for nobody wants to run them again."""

    async def ask(messages):
        if messages[-1]["role"] == "tool":
            raise APIConnectionError("gone")
        return calling(call("weather", '{"city": "Oslo"}'))

    with pytest.raises(APIConnectionError) as caught:
        await converse(ask, QUESTION, Toolbox([weather]), 5)
    assert caught.value.messages[-1]["content"] == "Oslo: sunny"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_is_forced_once(choice):
    """Or the model could never answer."""
    fields = {"model": "m", "tool_choice": choice}
    assert for_round(fields, QUESTION) == fields
    assert for_round(fields, [*QUESTION, {"role": "tool", "content": ""}]) == {"model": "m"}
    free = {"model": "m", "tool_choice": "auto"}
    assert for_round(free, [{"role": "tool", "content": ""}]) == free


async def test_a_call_that_was_cut_off_is_told():
    """Another round would be cut off as well; what the tools did before is kept."""
    first, cut = calling(call("weather", '{"city": "Oslo"}')), calling(call("weather", '{"city": "B'))
    cut.choices[0].finish_reason = "length"
    with pytest.raises(InvalidResponseError, match="max_tokens") as caught:
        await converse(Kimi(first, cut).ask, QUESTION, Toolbox([weather]), 5)
    assert [message["role"] for message in caught.value.messages] == ["user", "assistant", "tool"]
    assert caught.value.messages[-1]["content"] == "Oslo: sunny"


async def test_a_tool_that_exits_ends_nothing():
    """It is told to the model like any failure."""

    def leave() -> str:
        raise SystemExit(3)

    assert await answers([leave], call("leave")) == ["RuntimeError: the function raised SystemExit"]


def test_tools_are_a_list():
    """Not a function by itself."""
    with pytest.raises(ConfigurationError, match="list of functions"):
        Toolbox(weather)
