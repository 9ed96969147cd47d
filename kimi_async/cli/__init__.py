"""The command line.

Exit status: 0 all answered, 1 some failed, 2 usage, 3 stopped early, 130 interrupted, 141 nobody reads the output.
"""

import sys

from cyclopts import App, CycloptsError

from kimi_async.errors import ConfigurationError, LedgerUnavailable

from .batch import batch
from .chat import chat
from .count import count
from .limits import limits
from .mock import mock
from .options import CLOSED_PIPE, FULL, INTERRUPTED, STDIN, STOPPED, USAGE, what_failed
from .terminal import Aside, Output, discard

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
    stderr = Aside(stderr=True, soft_wrap=True)
    try:
        words = _words(sys.argv[1:] if arguments is None else arguments)
        status = app(words, exit_on_error=False, console=Output(), error_console=stderr, result_action="return_value")
        if sys.stdout is not None:
            sys.stdout.flush()  # what it still holds and cannot be written is told here
    except CycloptsError:
        status = USAGE  # cyclopts has said what is wrong
    except (ConfigurationError, LedgerUnavailable) as exc:
        stderr.print(f"kimi-async: {exc}", markup=False, highlight=False)
        status = USAGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = CLOSED_PIPE
    except OSError as exc:
        status = USAGE
        if exc.errno in FULL:
            status, exc.filename = STOPPED, exc.filename or "standard output"  # all else that is written has a name
        stderr.print(f"kimi-async: {what_failed(exc)}", markup=False, highlight=False)
    for stream in (sys.stdout, sys.stderr):
        discard(stream)
    sys.exit(status)


def _words(arguments: list[str]) -> list[str]:
    """With each lone hyphen as cyclopts takes it, which it would not: standard input, or the value of an option."""
    words: list[str] = []
    for word in arguments:
        if word != "-":
            words.append(word)
        elif words and words[-1] in _valued(words[0]):
            words[-1] += "=-"
        else:
            words.append(STDIN)
    return words


def _valued(command: str) -> set[str]:
    """The names of a command's options that take a value."""
    if command.startswith("-") or command not in app:
        return set()
    known = app[command].assemble_argument_collection()
    return {name for argument in known if argument.token_count()[0] for name in argument.names}
