"""What is measured: one module for each scenario, in the order of the report."""

from types import ModuleType

from . import (
    admission,
    fairness,
    faults,
    guide,
    ledgers,
    limits,
    makespan,
    memory,
    overhead,
    startup,
    streaming,
    waiters,
)

SCENARIOS: dict[str, ModuleType] = {
    "makespan": makespan,
    "fairness": fairness,
    "guide": guide,
    "limits": limits,
    "overhead": overhead,
    "memory": memory,
    "streaming": streaming,
    "waiters": waiters,
    "admission": admission,
    "startup": startup,
    "faults": faults,
    "ledgers": ledgers,
}
