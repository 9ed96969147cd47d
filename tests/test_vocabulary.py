import base64
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kimi_async import vocabulary

OFFICIAL_SHA256 = "b6c497a7469b33ced9c38afb1ad6e47f03f5e5dc05f15930799210ec050c5103"


@pytest.fixture(scope="session")
def packed():
    """The packed vocabulary, fresh from splintr, whatever this process has loaded."""
    return vocabulary._pack()


@pytest.fixture
def copy(packed, tmp_path):
    """Where an earlier process left the packed vocabulary."""
    file = tmp_path / "kimi_k2.vocabulary"
    file.write_bytes(packed)
    return file


@pytest.fixture
def start_process(monkeypatch):
    """As if nothing were loaded yet; a call begins the next such process."""

    def start():
        monkeypatch.setattr(vocabulary, "_encodings", {})

    start()
    return start


# Loading


def test_the_packed_vocabulary_is_the_official_one(packed):
    """Written in tiktoken's format, it has the digest of Moonshot's tiktoken.model."""
    ranks = vocabulary._unpack(packed)
    text = b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())

    assert len(ranks) == 163_584
    assert hashlib.sha256(text).hexdigest() == OFFICIAL_SHA256


def test_a_first_start_leaves_a_copy_that_the_next_needs_no_splintr_vocabulary_for(
    start_process, monkeypatch, tmp_path
):
    """The second process unpacks the copy; it never asks splintr for the tokens."""
    first = vocabulary.encoding(tmp_path)
    start_process()
    monkeypatch.setattr(vocabulary, "_pack", lambda: pytest.fail("the copy was there"))

    second = vocabulary.encoding(tmp_path)

    assert second is not first
    assert len(second.encode_ordinary("中文abc")) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["kimi_k2.vocabulary"]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]],
    ids=["truncated", "empty", "one bit"],
)
def test_a_damaged_copy_is_replaced(copy, packed, damage):
    """The digest tells, and the vocabulary is packed anew."""
    copy.write_bytes(damage(packed))

    assert vocabulary._packed(copy) == packed
    assert copy.read_bytes() == packed


def test_a_cache_that_cannot_be_written_is_no_error(start_process, tmp_path):
    """Here the directory would lie under a file."""
    (tmp_path / "file").touch()

    encoding = vocabulary.encoding(tmp_path / "file" / "cache")

    assert len(encoding.encode_ordinary("What's")) == 1


def test_another_vocabulary_is_refused(start_process, monkeypatch, tmp_path):
    """A splintr-rs with other tokens must not miscount in silence."""
    monkeypatch.setattr(vocabulary, "_RANKS", 1_000)

    with pytest.raises(ValueError, match="another vocabulary"):
        vocabulary.encoding(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_platform_without_splintr_has_no_encoding(start_process, monkeypatch, copy):
    """Not even with a copy that another platform left: the pattern is missing."""
    monkeypatch.setitem(sys.modules, "splintr", None)

    with pytest.raises(ImportError, match="splintr"):
        vocabulary.encoding(copy.parent)


def test_concurrent_callers_get_one_encoding(start_process, monkeypatch, copy):
    """Twenty threads: the first of them builds it, the others wait."""
    built = []
    build = vocabulary._load
    monkeypatch.setattr(vocabulary, "_load", lambda file: built.append(build(file)) or built[-1])

    with ThreadPoolExecutor(20) as pool:
        encodings = list(pool.map(vocabulary.encoding, [copy.parent] * 20))

    assert len(built) == 1
    assert all(encoding is built[0] for encoding in encodings)


# Long texts


def cut_one_by_one(text):
    """Moonshot's rule, a character at a time: cut before the 25,001st of a kind in a row, and at every 400,000."""
    pieces, kind, run = [""], None, 0
    for at, character in enumerate(text):
        run = run + 1 if character.isspace() is kind and at % 400_000 else 1
        kind = character.isspace()
        if at and (run > 25_000 or at % 400_000 == 0):
            pieces.append("")
            run = 1
        pieces[-1] += character
    return [piece for piece in pieces if piece]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("a 中\n\x1c"), st.sampled_from([1, 9, 24_999, 25_000, 25_001, 60_000])), max_size=4
    )
)
@example([(" ", 1), ("a", 25_001), (" ", 1)])
@example([("a", 20_000), (" ", 1), ("a", 379_999), ("a", 20_000)])
def test_texts_are_cut_where_moonshot_cuts_them(runs):
    """Runs of 25,000 spaces or other characters, and nothing is lost."""
    text = "".join(character * length for character, length in runs)

    assert list(vocabulary.pieces(text)) == cut_one_by_one(text)


def test_ordinary_long_texts_are_not_cut():
    """Up to 400,000 characters of words, slicing changes nothing."""
    text = "The moon 月亮 is 384,400 km away.\n" * 2_000

    assert list(vocabulary.pieces(text)) == [text]
