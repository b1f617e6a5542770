"""The fastest way to launch a kernel on a GPU: timed once, and kept in the cache of builds.

``GAUNT_TUNE=1`` switches it on. Every way gives the same numbers, so that a choice changes the time
alone, and ranks or processes may choose differently.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence

import torch

from gaunt_plugin._compiler import cache
from gaunt_plugin.ops.cuda import source, triton_version

_known: dict[str, int] = {}


def run_fastest(kernel, programs: int, candidates: Sequence[int], run, results, *what) -> None:
    """Call ``run(candidate, *results)`` with the fastest candidate, or the first if none is known.

    Args:
        kernel: that is run.
        programs: the size of the launch.
        candidates: numbers, the usual one first.
        run: called with other arrays for results while it is timed: it may add to what lies there.
        results: arrays or None; without any nothing is run.
        what: else the choice depends on.
    """
    written = [result for result in results if result is not None]
    if not written:
        return
    if not programs or not switched_on(written[0].device):
        run(candidates[0], *results)
        return

    def time(candidate: int) -> float:
        scratch = [result if result is None else torch.empty_like(result) for result in results]
        return milliseconds(lambda: run(candidate, *scratch))

    # Launches whose sizes are within a factor of two share a choice.
    what += kernel.fn.__module__, kernel.fn.__name__, programs.bit_length()
    what += tuple(result is not None for result in results)
    key = f"{what}, {candidates}, {_name(written[0].device)}, triton {triton_version()}"
    run(_best(key, candidates, time), *results)


def switched_on(device: torch.device) -> bool:
    """Whether launches are timed on this device."""
    return os.environ.get("GAUNT_TUNE", "") not in ("", "0") and device.type == "cuda"


def milliseconds(call: Callable[[], object]) -> float:
    """The time of a launch on the GPU."""
    return importlib.import_module("triton.testing").do_bench(call, warmup=2, rep=10)


def _best(key: str, candidates: Sequence[int], time: Callable[[int], float]) -> int:
    if key not in _known:
        path = cache("triton") / f"tuned-{source.digest(key)}"
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found not in map(str, candidates):
            # Timing waits for the device, which ends the capture of a CUDA graph.
            if torch.cuda.is_current_stream_capturing():
                return candidates[0]
            found = str(min(candidates, key=time))
            source.write(path, found)
        _known[key] = int(found)
    return _known[key]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
