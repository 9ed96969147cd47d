"""Side by side: ``kimi_async`` and what people use instead, against the mock gateway. ``python -m benchmarks run``.

============  ==================================================================================
scenarios     what is measured: a module each
contenders    who is compared: a module each; ``venvs`` makes the environments of those that clash
prompts       requests whose cost in tokens is known exactly
schedule      the ideal first-come-first-served schedule, and bounds: pure arithmetic
processes     one process for each measurement, one core for the clients, another for the gateway
lanes         work that mostly waits, several pieces at a time
worker        what a contender's process runs in an environment of its own
crowd         several processes that begin together
trial         one contender, one file of requests, one gateway
suite         runs scenarios, and shows how far they are
results       the records: scenarios, observations, and the file that keeps them
comparison    ratios within one repetition, and who is first
report        tables in ``results/report.md`` and in this folder's README, by way of ``tables``
plots         a plot for each scenario
guard         ``check``: whether ground was lost against the committed results
profile       where the CPU time of a request goes, by function
============  ==================================================================================
"""
