"""The process that ``spawn`` starts: settings come as a line on standard input, the base URL goes to standard output.

It ends when standard input does, that is, when the parent is gone.
"""

import os
import sys
import threading

from .server import LOOPBACK, serve
from .settings import MockSettings


def _outlive_nobody() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # from a thread, and with nothing to save


def _announce(base_url: str) -> None:
    sys.stdout.write(base_url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    settings = MockSettings.from_json(sys.stdin.buffer.readline())
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    serve(settings, LOOPBACK, int(sys.argv[1]), _announce)
