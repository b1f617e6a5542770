"""Paired timing, for the benchmarks of both hosts."""

import statistics
import time


def interleaved(calls, repeats):
    """Median time of each call in ms, the calls taking turns; one warm-up."""
    times = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
