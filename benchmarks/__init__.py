"""Side by side: ``kimi_async`` and what people use instead, against the mock gateway. ``python -m benchmarks all``.

============  ==================================================================================
makespan      how long a file of requests takes under RPM and TPM, compared with the ideal schedule
overhead      what a request costs the client's processor at concurrency 1, 100 and 1,000
limiter       what an admission costs; 100,000 waiters queued, admitted and cancelled
contenders    the clients that are compared, behind one function each
prompts       prompts whose cost in tokens is known exactly
schedule      the ideal first-come-first-served schedule: pure arithmetic
processes     one process for each measurement, one core for the clients, another for the gateway
report        results as JSON, tables for the terminal and for this folder's README
============  ==================================================================================
"""
