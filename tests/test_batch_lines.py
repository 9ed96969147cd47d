"""Lines of batch files: four forms in, clear words about what is none."""

import json

import pytest

from kimi_async.batch.lines import BadLine, Defaults, parse_line, read_lines, survey
from kimi_async.errors import ConfigurationError

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
    """Bad ones included: each gets its line in the output."""
    file = tmp_path / "in.jsonl"
    file.write_text('"a"\n{bad\n{"custom_id": "c", "prompt": "z"}\n')
    assert survey(file) == {"line-1", "line-2", "c"}
