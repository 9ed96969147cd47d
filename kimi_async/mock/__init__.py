"""A mock of Kimi's gateway: a real HTTP server that refuses, charges and fails like the real one.

It checks the limits on its side, so that a test or a benchmark can ask it whether they were ever exceeded::

    from kimi_async import RateLimits
    from kimi_async.mock import MockSettings, running

    settings = MockSettings(limits=RateLimits(concurrency=10, rpm=600, tpm=500_000, minute=2.0))
    async with running(settings) as base_url:
        ...  # any client; then GET {base_url}/stats

======== ==============================================================================
policies how a limit is counted over time: sliding, fixed, bucket, gcra; pure arithmetic
account  the four limits in one atomic decision, and the peaks that prove they held
faults   what goes wrong, how often
fate     what an admitted request gets, drawn from its body
settings all of that as one frozen value
requests a body, read and validated
rules    parameters and messages that a model refuses, in Kimi's words
replies  what the model says: prose, thoughts, tool calls, JSON
schema   a value for a JSON schema
answers  Kimi's envelopes and errors, as bytes
stream   a completion in chunks
files    uploads, and their endpoints
batches  batches, and theirs
exchange the client's end: reading it, seeing it hang up, hanging up on it
gateway  the ASGI application
server   on a socket: ``serve`` blocks, ``running`` shares a loop, ``spawn`` starts a process
======== ==============================================================================

Not covered: ``logprobs``, ``prediction``, the Responses, Formula and Anthropic routes, JSON schemas' ``pattern``;
batches never expire. Images and videos count what the token counter says, whatever is in them; the content of a
file is what was uploaded, whatever its purpose. ``max_tokens`` too small for a tool call or for JSON cuts it.

Errors that it never answers with: an exhausted quota or balance, 400 ``content_filter``, limits of a project or of one
model (``project TPM``, ``user+model max RPM``, and ``org-... / proj-...`` as the account in a text), the burst's
``Organization Rate limit exceeded``, and refusals by a limit without ``Retry-After`` (``engine_overloaded_error``
never has one).
"""

from .account import Account, AccountStats, Refusal
from .faults import Faults
from .gateway import Gateway
from .policies import Policy
from .server import running, serve, spawn
from .settings import MockSettings

__all__ = [
    "Account",
    "AccountStats",
    "Faults",
    "Gateway",
    "MockSettings",
    "Policy",
    "Refusal",
    "running",
    "serve",
    "spawn",
]
