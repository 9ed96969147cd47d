"""URLs that somebody has set, checked before they are used, and shown without their passwords."""

import re
from collections.abc import Collection

import httpx

from .errors import ConfigurationError

_CREDENTIALS = re.compile(r"^([^:/?#]+://)?.*@", re.DOTALL)


def checked(url: str, name: str, *, schemes: Collection[str], like: str) -> httpx.URL:
    """A URL with one of those schemes and a host.

    Raises:
        ConfigurationError: it is none. It begins with ``name``, which is where the URL was set.
    """
    problem = ""
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in schemes and parsed.host:
            return parsed
    except (httpx.InvalidURL, ValueError) as exc:  # which may quote the password: it is not told as the cause
        problem = str(exc) if "@" not in url else "no URL; percent-encode what is special in its password"
    *most, last = (f"{scheme}://" for scheme in schemes)
    problem = problem or f"must begin with {', '.join(most)} or {last} and a host, like {like}"
    raise ConfigurationError(f"{name}={without_password(url)!r}: {problem}")


def without_password(url: str) -> str:
    """A URL as it may be shown; of what is none, all that may be a password is left out."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    if not parsed.host:
        return _CREDENTIALS.sub(r"\1", url)
    return str(parsed.copy_with(userinfo=b"")) if parsed.userinfo else url
