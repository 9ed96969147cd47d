"""What a contender's process runs, in the contender's own environment: a job on standard input, its result on output.

Both are one line of JSON. Between them, when the contender is imported and has opened what it needs, there is a line
each way: one to say so, and one to let it begin. What the contender itself prints goes to standard error. It imports
the standard library and the contender's module alone: nothing else may be installed there, and nothing else is to be
measured.
"""

import asyncio
import json
import os
import resource
import sys
import threading
import time
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
    measurement = _Measurement(answers, len(requests), imported, entry.settling + job["patience"])

    async def whole() -> None:
        await run(Account(**job["account"]), requests, measurement.progress)
        measurement.end()

    asyncio.run(whole())


class _Measurement:
    """What is measured from the beginning on, and told once.

    Args:
        answers: where to.
        count: of requests.
        imported: seconds that the import took.
        patience: seconds after which it is told how far the contender is.
    """

    def __init__(self, answers: TextIO, count: int, imported: float, patience: float) -> None:
        self.progress = Progress(count, self._begin)
        self._answers = answers
        self._imported = imported
        self._patience = patience
        self._cpu = 0.0
        self._once = threading.Lock()

    def _begin(self) -> None:
        print("ready", file=self._answers, flush=True)
        if not sys.stdin.readline():
            os._exit(1)  # nobody is there any more
        watch = threading.Timer(self._patience, self.end)  # a thread, since a loop that is stuck cannot stop itself
        watch.daemon = True
        watch.start()
        self._cpu = time.process_time()

    def end(self) -> None:
        """Answer, and end the process.

        What is still open then is dropped, not closed in order: that is not measured, and some take long for it.
        """
        with self._once:
            cpu = time.process_time() - self._cpu
            result = {
                "outcomes": [asdict(outcome) for outcome in self.progress.outcomes()],
                "cpu": cpu,
                "peak_memory": _peak_memory(),
                "imported": self._imported,
            }
            print(json.dumps(result), file=self._answers, flush=True)
            os._exit(0)


def _peak_memory() -> int:
    """Bytes. Linux's ``ru_maxrss`` begins with that of the process which started this one; ``VmHWM`` does not."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
