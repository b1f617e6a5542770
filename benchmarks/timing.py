"""Paired timing and memory, for the benchmarks of both hosts."""

import resource
import statistics
import subprocess
import sys
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


def resident():
    """Largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def memory(script, arguments):
    """Resident GB before and at the peak of what a benchmark does, in a process of its own.

    The script must print the two numbers last.
    """
    command = [sys.executable, script, *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(x) for x in text.split()[-2:]]
