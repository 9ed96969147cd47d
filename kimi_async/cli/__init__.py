"""The command line.

Exit status: 0 all answered, 1 some failed, 2 usage, 3 stopped early, 130 interrupted, 141 nobody reads the output.
"""

import os
import sys

from cyclopts import App, CycloptsError
from rich.console import Console

from kimi_async.errors import ConfigurationError, LedgerUnavailable

from .batch import batch
from .chat import chat
from .count import count
from .limits import limits
from .mock import mock
from .options import CLOSED_PIPE, INTERRUPTED, STDIN, USAGE

app = App(
    name="kimi-async",
    help="Kimi's chat completions, as fast as the account's limits allow and never faster.",
    help_epilogue="The API key comes from MOONSHOT_API_KEY, the base URL from MOONSHOT_BASE_URL.",
    error_formatter=lambda error: f"kimi-async: {error}",
)
app.command(batch)
app.command(chat)
app.command(count)
app.command(limits)
app.command(mock)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = [STDIN if word == "-" else word for word in (sys.argv[1:] if arguments is None else arguments)]
    stderr = Console(stderr=True, soft_wrap=True)
    try:
        status = app(words, exit_on_error=False, error_console=stderr, result_action="return_value")
    except CycloptsError:
        status = USAGE  # cyclopts has said what is wrong
    except (ConfigurationError, LedgerUnavailable) as exc:
        stderr.print(f"kimi-async: {exc}", markup=False, highlight=False)
        status = USAGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = CLOSED_PIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    except OSError as exc:
        what = f"{exc.filename}: {exc.strerror}" if exc.filename else exc
        stderr.print(f"kimi-async: {what}", markup=False, highlight=False)
        status = USAGE
    sys.exit(status)
