"""Lines of batch files: four forms in, clear words about what is none."""

import json

import pytest

from kimi_async.chat import ChatCompletion
from kimi_async.errors import (
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    InternalServerError,
    InvalidResponseError,
    KimiError,
    RateLimitError,
)
from kimi_async.jsonl import (
    BadLine,
    BatchResult,
    Defaults,
    output_line,
    parse_line,
    parse_output_line,
    read_lines,
    survey,
)
from kimi_async.responses import status_error

HELLO = [{"role": "user", "content": "你好"}]
NONE = Defaults()


def parse(value, defaults=NONE):
    """One line, number 7."""
    text = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return parse_line(text, 7, defaults)


@pytest.mark.parametrize(
    ("value", "custom_id", "body"),
    [
        ("你好", "line-7", {"messages": HELLO}),
        ({"prompt": "你好"}, "line-7", {"messages": HELLO}),
        ({"prompt": "你好", "custom_id": "a", "max_tokens": 9}, "a", {"messages": HELLO, "max_tokens": 9}),
        ({"messages": HELLO, "temperature": 0.3}, "line-7", {"messages": HELLO, "temperature": 0.3}),
        (
            {
                "custom_id": "b",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": HELLO},
            },
            "b",
            {"model": "m", "messages": HELLO},
        ),
        ({"body": {"messages": HELLO}}, "line-7", {"messages": HELLO}),
        ({"prompt": None, "messages": HELLO}, "line-7", {"messages": HELLO}),
        ({"prompt": "你好", "messages": None}, "line-7", {"messages": HELLO}),
    ],
)
def test_four_forms(value, custom_id, body):
    """A string, a prompt, messages, and the Batch form, with and without a name."""
    request = parse(value)
    assert (request.custom_id, request.body, request.line) == (custom_id, body, 7)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"{bad", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'"\xff"', "not UTF-8 at byte 2"),
        ([1], "a list, where an object or a string is expected"),
        (None, "a NoneType, where"),
        ({"prompt": 5}, "prompt is no text"),
        ({}, "neither a prompt nor messages"),
        ({"messages": []}, "neither a prompt nor messages"),
        ({"messages": ["hi"]}, "messages holds something that is no message"),
        ({"prompt": "x", "messages": HELLO}, "both prompt and messages: which one is the request?"),
        ({"prompt": "x", "body": {"messages": HELLO}}, "both body and prompt: which one is the request?"),
        ({"messages": HELLO, "body": {"messages": HELLO}}, "both body and messages"),
        ({"body": 3}, "body is no object"),
        ({"body": {}}, "neither a prompt nor messages"),
        ({"custom_id": 3, "prompt": "x"}, "custom_id is 3, where a text is expected"),
        (b'{"custom_id": "\\ud800", "prompt": "x"}', "surrogates not allowed"),
        ({"custom_id": "", "prompt": "x"}, "custom_id is '', where a text is expected"),
        ({"url": "/v1/embeddings", "body": {"messages": HELLO}}, "url: Input should be '/v1/chat/completions'"),
    ],
)
def test_what_is_no_request_says_why(value, problem):
    """In words, with its number, and with its name if it got that far."""
    bad = parse(value)
    assert isinstance(bad, BadLine)
    assert bad.line == 7
    assert problem in bad.problem


def test_a_bad_line_keeps_its_name():
    """So that its error can be told from others'."""
    assert parse({"custom_id": "mine", "prompt": 5}).custom_id == "mine"


def test_defaults_fill_in_what_a_line_leaves_out():
    """They never override it."""
    defaults = Defaults(model="m", max_tokens=10, temperature=0.3, system="Be brief.")
    assert parse("你好", defaults).body == {
        "model": "m",
        "max_tokens": 10,
        "temperature": 0.3,
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
    }
    own = {
        "model": "x",
        "max_completion_tokens": 5,
        "temperature": 1,
        "messages": [{"role": "system", "content": "s"}],
    }
    assert parse({"body": own}, defaults).body == own


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    """Numbers are those of the file."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'\xef\xbb\xbf"a"\r\n\r\n   \n"b"')
    assert [(line.line, line.body["messages"][0]["content"]) for line in read_lines(file, NONE)] == [
        (1, "a"),
        (4, "b"),
    ]


def test_two_lines_of_one_name_are_refused_naming_both(tmp_path):
    """Their answers could not be told apart."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"custom_id": "a", "prompt": "x"}\n"y"\n{"custom_id": "a", "prompt": "z"}\n')
    with pytest.raises(ConfigurationError, match=r"in\.jsonl: lines 1 and 3 both have custom_id 'a'"):
        survey(file)


def test_a_given_name_may_not_be_a_line_numbers(tmp_path):
    """``line-2`` is what the nameless second line is called."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"custom_id": "line-2", "prompt": "x"}\n"y"\n')
    with pytest.raises(ConfigurationError, match="lines 1 and 2"):
        survey(file)


def test_a_survey_names_every_line(tmp_path):
    """Bad ones included: each gets its line in the output; with the numbers of the lines."""
    file = tmp_path / "in.jsonl"
    file.write_text('"a"\n{bad\n{"custom_id": "c", "prompt": "z"}\n')
    assert survey(file) == {"line-1": 1, "line-2": 2, "c": 3}


COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "kimi-k2.6",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "你好"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def read_back(outcome):
    """What our own line for an outcome is read as."""
    return parse_output_line(json.dumps(output_line(outcome)))


def output(status, body, error=None, **response):
    """A line of Batch output form, read."""
    line = {"custom_id": "a", "response": {"status_code": status, "body": body, **response}, "error": error}
    return parse_output_line(json.dumps(line).encode())


def test_an_answer_is_read_from_the_line_that_holds_it():
    """Kimi's leave out the request id, or have an empty one."""
    result = output(200, COMPLETION, request_id="req-1")
    assert (result.custom_id, result.text, result.error) == ("a", "你好", None)
    assert (result.completion.request_id, result.completion.usage.total_tokens) == ("req-1", 7)
    assert output(200, COMPLETION, request_id="").completion.request_id is None
    assert output(200, COMPLETION).completion.request_id is None


@pytest.mark.parametrize(
    ("status", "kind", "said", "exception"),
    [
        (400, "content_filter", "high risk", BadRequestError),
        (429, "rate_limit_reached_error", "organization max RPM: 3", RateLimitError),
        (500, "server_error", "boom", InternalServerError),
    ],
)
def test_an_error_with_a_status_is_the_exception_for_it(status, kind, said, exception):
    """Wherever the line has its words: in the answer's body, as Kimi's envelope or as text, or beside it."""
    envelope = {"error": {"message": said, "type": kind}}
    for result in (
        output(status, envelope, request_id="req-1"),
        output(status, json.dumps(envelope), request_id="req-1"),
        output(status, None, {"code": kind, "message": said}, request_id="req-1"),
    ):
        assert type(result.error) is exception
        assert result.completion is None
        assert (result.error.status_code, result.error.type, result.error.request_id) == (status, kind, "req-1")
        assert said in str(result.error)


def test_an_error_without_an_answer_has_its_code_and_words():
    """Such as that of a request which a batch did not come to."""
    line = {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "too late"}}
    result = parse_output_line(json.dumps(line))
    assert type(result.error) is KimiError
    assert str(result.error) == "batch_expired: too late"
    assert "neither a response nor an error" in str(parse_output_line('{"custom_id": "a"}').error)


def test_an_answer_that_is_no_completion_is_an_error_of_its_own():
    """One result, not the end of all."""
    error = output(200, {"choices": []}).error
    assert isinstance(error, InvalidResponseError)
    assert error.body == '{"choices": []}'


@pytest.mark.parametrize("text", [b"{bad", b"[]", b'{"response": {"status_code": 200}}', "\ud800", b"\xff"])
def test_a_line_that_is_no_output_says_so(text):
    """With how it begins."""
    with pytest.raises(InvalidResponseError, match="no line of batch output"):
        parse_output_line(text)


def test_our_own_lines_are_read_back_as_what_was_written():
    """Answers whole; errors by their status and words; bad lines as errors."""
    completion = ChatCompletion.model_validate(COMPLETION)
    completion._request_id = "req-1"
    answered = BatchResult(custom_id="a", completion=completion)
    assert read_back(answered) == answered
    assert read_back(answered).completion.request_id == "req-1"

    body = json.dumps({"error": {"message": "high risk", "type": "content_filter"}}).encode()
    refused = status_error(400, {"msh-request-id": "req-2"}, body, model="kimi-k2.6")
    error = read_back(BatchResult(custom_id="b", error=refused)).error
    assert (type(error), str(error), vars(error)) == (type(refused), str(refused), vars(refused))

    lost = read_back(BatchResult(custom_id="c", error=APITimeoutError("no answer in time"))).error
    assert str(lost) == "APITimeoutError: no answer in time"
    bad = read_back(BadLine(3, "line-3", "not JSON"))
    assert (bad.custom_id, str(bad.error)) == ("line-3", "invalid_line: line 3: not JSON")
