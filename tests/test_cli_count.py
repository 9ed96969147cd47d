"""``kimi-async count``: what a file costs, line by line and in all."""

import io
import json
import sys
import tracemalloc

import pytest

from kimi_async.cli import main
from kimi_async.cli.count import Row, Total, summary

LINES = [
    '"hello"',
    '{"prompt": "hello", "max_tokens": 100, "custom_id": "a"}',
    '{"messages": [{"role": "user", "content": "hello"}], "model": "kimi-k3", "max_tokens": 10}',
    '{"custom_id": "b", "body": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}}',
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """No key, no base URL, and no network."""
    for name in ("MOONSHOT_API_KEY", "KIMI_API_KEY", "MOONSHOT_BASE_URL", "KIMI_BASE_URL", "KIMI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def count(tmp_path, capsys):
    """Run the command on lines; the exit status and both outputs."""

    def run(lines, *arguments):
        file = tmp_path / "in.jsonl"
        file.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(SystemExit) as exited:
            main(["count", str(file), *arguments])
        return exited.value.code, *capsys.readouterr()

    return run


def cells(out):
    """Tab-separated values by their heads."""
    head, *rows = (line.split("\t") for line in out.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_each_line_has_its_tokens_and_its_price(count):
    """In all forms of a line: 8 tokens of prompt for K2.6, the model's default where no max_tokens is."""
    status, out, err = count(LINES)
    rows = cells(out)
    assert status == 0
    assert [row["custom_id"] for row in rows] == ["line-1", "a", "line-3", "b"]
    assert [row["prompt_tokens"] for row in rows] == ["8", "8", "101", "8"]
    assert [row["max_tokens"] for row in rows] == ["32768", "100", "10", "5"]
    assert [row["charged"] for row in rows] == ["32776", "108", "111", "13"]
    assert rows[1]["price"] == f"{(8 * 6.5 + 100 * 27) / 1e6:.6f}"
    assert "lines   4\n" in err
    assert "tokens  125 of prompt, 33,008 charged\n" in err


def test_defaults_fill_what_lines_leave_out(count):
    """Model, max_tokens and system prompt; a line's own hold."""
    _, out, _ = count(LINES[:2], "--model", "kimi-k2.7-code", "--max-tokens", "7", "--system", "x")
    assert [(row["model"], row["max_tokens"], row["prompt_tokens"]) for row in cells(out)] == [
        ("kimi-k2.7-code", "7", "13"),
        ("kimi-k2.7-code", "100", "13"),
    ]


def test_every_answer_asked_for_is_charged(count):
    """Two of 50 tokens, of a model that gives more than one."""
    _, out, _ = count(['{"prompt": "hello", "n": 2, "max_tokens": 50}'], "--model", "moonshot-v1-8k")
    (row,) = cells(out)
    assert (row["n"], row["charged"], row["price"]) == ("2", "108", f"{(8 * 2 + 100 * 10) / 1e6:.6f}")


def test_lines_that_cannot_be_sent_are_reported_and_left_out_of_the_sums(count):
    """With their numbers, on standard error; what can never fit is told with the remedy; exit status 1."""
    bad = ["{bad", '{"prompt": "x", "max_tokens": 0}', '{"prompt": "x", "temperature": 0.3}']
    large = ['{"prompt": "x", "max_tokens": 600000}', '{"prompt": "x", "max_tokens": 600000, "model": "kimi-k3"}']
    status, out, err = count([LINES[1], *bad, *large, '{"prompt": "x\\ty", "custom_id": "c\\td", "max_tokens": 1}'])
    rows = cells(out)
    assert status == 1
    assert [bool(row["problem"]) for row in rows] == [False, True, True, True, True, True, False]
    assert rows[-1]["custom_id"] == "c d"
    for words in ("line 2: not JSON", "line 3: max_tokens=0", "line 4: temperature=0.3", "line 5: ", "line 6: "):
        assert words in err
    assert "context of kimi-k2.6 is 262,144" in rows[4]["problem"]
    assert "TPM is 500,000: lower max_tokens" in rows[5]["problem"]
    assert "lines   7, 3 cannot be sent, 2 can never fit" in err
    assert f"{8 + 100 + int(rows[-1]['charged']):,} charged" in err


@pytest.mark.parametrize(
    ("arguments", "time"),
    [
        (["--rpm", "10"], "within the first minute's limits"),
        (["--rpm", "5"], "at least 1:01, bound by rpm"),
        (["--rpm", "3"], "at least 3:01, bound by rpm"),
        (["--rpm", "5", "--tpm", "250"], "at least 4:02, bound by tpm"),
        (["--tpd", "540"], "at least 24:00:01, bound by tpd"),
        ([], "at least 3:01, bound by rpm"),
    ],
)
def test_the_time_is_what_the_limits_allow_at_least(count, arguments, time):
    """Ten lines of 108 tokens: the first window is free, then whole ones with their guard; by default tier 0's."""
    _, _, err = count([LINES[1].replace('"a"', f'"{number}"') for number in range(10)], *arguments)
    assert f"time    {time}" in err


@pytest.mark.parametrize(
    ("url", "arguments", "price"),
    [
        ("", [], "¥0.0028"),
        ("https://api.moonshot.ai/v1", [], "$0.0004"),
        ("https://gw.cncorp.com/v1", [], "$0.0004"),
        ("https://api.moonshot.ai/v1", ["--currency", "CNY"], "¥0.0028"),
        ("", ["--currency", "USD"], "$0.0004"),
    ],
)
def test_the_currency_is_that_of_the_site(count, monkeypatch, url, arguments, price):
    """Unless one is asked for."""
    monkeypatch.setenv("MOONSHOT_BASE_URL", url)
    _, _, err = count([LINES[1]], *arguments)
    assert f"at most {price}" in err


def test_models_without_a_known_price_are_told(count):
    """Their lines have none, and the sum says so."""
    _, out, err = count([LINES[1]], "--model", "kimi-of-tomorrow")
    assert cells(out)[0]["price"] == ""
    assert "1 lines of models without a known price left out" in err


def test_json_is_an_object_a_line_and_the_total(count):
    """Everything on standard output, for programs."""
    status, out, err = count([LINES[1], "{bad"], "--json", "--rpm", "1")
    first, second, last = map(json.loads, out.splitlines())
    assert (status, err.count("\n")) == (1, 1)
    assert (first["line"], first["custom_id"], first["tokens"], first["problem"]) == (1, "a", 108, None)
    assert (second["tokens"], second["problem"][:8]) == (None, "not JSON")
    total = last["total"]
    assert (total["lines"], total["bad"], total["tokens"], total["currency"]) == (2, 1, 108, "CNY")
    assert (total["least_seconds"], total["bound_by"]) == (0, None)


def test_a_terminal_gets_aligned_columns_and_the_total_below(count, monkeypatch):
    """Wide characters and long names keep their column; nothing goes to standard error."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    status, out, err = count([LINES[1].replace('"a"', f'"{name}"') for name in ("x" * 30, "月" * 9)])
    head, first, second, *_ = out.splitlines()
    assert (status, err) == (0, "")
    assert first.index("kimi-k2.6") == head.index("model")
    assert second.index("kimi-k2.6") == head.index("model") - 9
    assert out.rstrip().splitlines()[-4].startswith("lines   2")


def test_standard_input_is_read_for_a_hyphen(monkeypatch, capsys):
    """As batch does."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"hello"\n\n"hello"')))
    with pytest.raises(SystemExit) as exited:
        main(["count", "-"])
    assert exited.value.code == 0
    assert [row["line"] for row in cells(capsys.readouterr().out)] == ["1", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere.jsonl"], "nowhere.jsonl: No such file"), ([], "INPUT"), (["-", "--rpm", "0"], "rpm=0")],
)
def test_usage_errors_have_status_2(capsys, monkeypatch, arguments, message):
    """One line that says what is wrong."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(SystemExit) as exited:
        main(["count", *arguments])
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_an_empty_file_costs_nothing(count):
    """And is no failure."""
    status, out, err = count([])
    assert (status, cells(out)) == (0, [])
    assert "tokens  0 of prompt, 0 charged" in err


def test_memory_does_not_grow_with_the_file(count):
    """Ten times the lines take no more than the text of their output more."""
    peaks = []
    for number in (300, 3000):
        lines = [LINES[3].replace('"b"', f'"{n}"') for n in range(number)]
        tracemalloc.start()
        status, out, _ = count(lines)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (status, out.count("\n")) == (0, number + 1)
    assert peaks[1] - peaks[0] < 2_000_000


def test_the_total_counts_each_kind_of_line():
    """Answerable, bad, too large."""
    total = Total()
    total.add(Row(line=1, custom_id="a", prompt_tokens=1, max_tokens=2, n=1, tokens=3, price=0.5))
    total.add(Row(line=2, custom_id="b", problem="bad"))
    total.add(Row(line=3, custom_id="c", tokens=10**6, problem="large"))
    assert (total.lines, total.good, total.bad, total.too_large, total.tokens) == (3, 1, 1, 1, 3)
    assert "at most $0.5000" in summary(total, (0.0, "rpm"), "USD")
