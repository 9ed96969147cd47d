"""Kimi's vocabulary: taken from ``splintr-rs``, checked, kept as a packed copy, and handed to ``tiktoken``.

One byte-pair vocabulary of 163,584 tokens serves every model from Kimi K2 to K3. ``splintr-rs`` brings it along, so
counting needs no network; ``tiktoken`` is the engine. Both are imported when the vocabulary is first loaded.
"""

import hashlib
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

MAX_RUN = 25_000
"""Characters. A longer run without a space, or of nothing but spaces, is cut; a text up to this length never is."""

# Moonshot's tokenization_kimi.py cuts at the same places: the pattern panics on a million spaces in a row.
_SLICE = 400_000
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{MAX_RUN + 1},}}|(?<!\s)\s{{{MAX_RUN + 1},}}")
_HALF_RUN = re.compile(rf"\S{{{MAX_RUN // 2}}}|\s{{{MAX_RUN // 2}}}")

_RANKS = 163_584
_PACKED_SHA256 = "aabc967dab7c955bcf18a2658ab751a933e1e1f4e03625d3762b7b0b8879837e"
_CACHE_FILE = "kimi_k2.vocabulary"

_lock = threading.Lock()
_encodings: dict[str, "Encoding"] = {}


def encoding(cache_dir: Path) -> "Encoding":
    """Kimi's encoding, built by the first caller of the process; callers in other threads wait for it.

    Blocks, for up to 0.45 s. Special tokens are left out: what is counted is text.

    Args:
        cache_dir: where a packed copy is looked for and left. It need not be writable.

    Raises:
        ImportError: no ``splintr-rs`` or ``tiktoken`` on this platform.
        ValueError: this ``splintr-rs`` carries another vocabulary than Kimi's.
    """
    with _lock:
        if _PACKED_SHA256 not in _encodings:
            _encodings[_PACKED_SHA256] = _load(cache_dir / _CACHE_FILE)
        return _encodings[_PACKED_SHA256]


def pieces(text: str) -> Iterator[str]:
    """Cut a text where Moonshot's own tokenizer cuts it."""
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        # Every long run fills a half-run at a multiple of its length; a look there spares ordinary text the search.
        suspect = any(_HALF_RUN.match(part, at) for at in range(0, len(part), MAX_RUN // 2))
        runs = _LONG_RUN.finditer(part) if suspect else ()
        cuts = [cut for run in runs for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN)]
        for begin, end in pairwise((0, *cuts, len(part))):
            yield part[begin:end]


def _load(file: Path) -> "Encoding":
    import splintr  # noqa: PLC0415 - 9 ms and 37 MB that importing the package should not cost
    import tiktoken  # noqa: PLC0415 - likewise, 30 ms

    ranks = _unpack(_packed(file))
    # Built directly: a tiktoken_ext plugin could break the plugins of others, and get_encoding may download.
    return tiktoken.Encoding("kimi_k2", pat_str=splintr.KIMI_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _packed(file: Path) -> bytes:
    """The packed vocabulary: 163,584 lengths, one byte each and less by one, and then the tokens by rank.

    Its digest is pinned, so neither a damaged cache nor a ``splintr-rs`` with another vocabulary can miscount.
    """
    with suppress(OSError):
        packed = file.read_bytes()
        if _digest(packed) == _PACKED_SHA256:
            return packed
    packed = _pack()
    with suppress(OSError):
        _write(file, packed)
    return packed


def _pack() -> bytes:
    import splintr  # noqa: PLC0415 - see _load

    vocabulary = splintr.Tokenizer.from_pretrained("kimi_k2")
    tokens = [vocabulary.decode_token_bytes(rank) for rank in range(_RANKS)]
    packed = bytes(len(token) - 1 for token in tokens) + b"".join(tokens)
    if _digest(packed) != _PACKED_SHA256:
        raise ValueError(f"splintr-rs {splintr.__version__} carries another vocabulary than Kimi's")
    return packed


def _digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()


def _unpack(packed: bytes) -> dict[bytes, int]:
    ends = accumulate((length + 1 for length in packed[:_RANKS]), initial=_RANKS)
    return {packed[begin:end]: rank for rank, (begin, end) in enumerate(pairwise(ends))}


def _write(file: Path, packed: bytes) -> None:
    """Write beside it and rename: another process sees all of the file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        path = Path(directory, file.name)
        path.write_bytes(packed)
        path.replace(file)
