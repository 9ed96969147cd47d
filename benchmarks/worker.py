"""What a contender's process runs, in the contender's own environment: a job on standard input, its result on output.

Both are one line of JSON. What the contender itself prints goes to standard error. It imports the standard library
and the contender's module alone: nothing else may be installed there, and nothing else is to be measured.
"""

import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from .contenders import CONTENDERS
from .contenders.contract import Account, Progress, Request


def main() -> None:
    """Do the one job, and end the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    began = time.perf_counter()
    entry = CONTENDERS[job["contender"]]
    run = entry.load()
    imported = time.perf_counter() - began
    requests = [Request(**request) for request in job["requests"]]
    progress = Progress(len(requests))
    end = _ending(answers, progress, imported)
    watch = threading.Timer(
        entry.settling + job["patience"], end
    )  # a thread, since a loop that is stuck cannot stop itself
    watch.daemon = True
    watch.start()

    async def whole() -> None:
        await run(Account(**job["account"]), requests, progress)
        end()

    asyncio.run(whole())


def _ending(answers: TextIO, progress: Progress, imported: float) -> Callable[[], None]:
    """What answers with all that was measured from now on, once, and ends the process.

    What is still open then is dropped, not closed in order: that is not measured, and some take long for it.
    """
    begin = time.process_time()
    once = threading.Lock()

    def end() -> None:
        with once:
            cpu = time.process_time() - begin
            result = {
                "outcomes": [asdict(outcome) for outcome in progress.outcomes()],
                "cpu": cpu,
                "peak_memory": _peak_memory(),
                "imported": imported,
            }
            answers.write(json.dumps(result) + "\n")
            answers.flush()
            os._exit(0)

    return end


def _peak_memory() -> int:
    """Bytes. Linux's ``ru_maxrss`` begins with that of the process which started this one; ``VmHWM`` does not."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
