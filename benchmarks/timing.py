"""Contenders that take turns, each in a process of its own, with limits on time and memory.

A case is measured by forking one process per contender. They run one at a time, in turns, so
that a change of the machine's speed hits all alike; what one keeps in memory is not counted for
another; and one that takes too long or too much is stopped without the rest.
"""

import importlib.util
import os
import resource
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import torch
from torch.utils.flop_counter import FlopCounterMode

from gaunt_plugin.ops.cpu.build import is_built

WARM_UP = 3  # TorchScript compiles in its first calls
OUT_OF_MEMORY = "out of memory"
_FORK = get_context("fork")
_device, _dtype = "cpu", "float32"  # of this process


def device() -> str:
    """Where a contender puts its module and its inputs."""
    return _device


def model_dtype() -> str:
    """The case's dtype; torch's default too, until a host sets its own."""
    return _dtype


@dataclass
class Work:
    """What a contender does: its passes by name.

    With ``whole``, the operation itself, and what it must read, the floor is known as well.
    """

    passes: dict[str, Callable[[], object]]
    whole: Callable[[], torch.Tensor] | None = None
    read: list[torch.Tensor] = field(default_factory=list)


@dataclass
class Case:
    """Contenders for one job; the first is what the others are compared with.

    ``x`` is the case's place in its series: a contender that gives up at one place is not tried
    further on. Contenders are called in their own processes, with inputs of the same seed.
    """

    series: str
    x: float
    shape: str
    contenders: dict[str, Callable[[], Work]]
    dtype: str = ""


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    seconds: float = 60.0  # limit of one call
    memory: float = 8e9  # limit of one process, bytes
    budget: float = 3.0  # s for the repeats of one pass of all contenders
    repeats: int = 9  # at most
    construction: float = 0.0  # limit of it, s; 0: that of one call


@dataclass
class Row:
    """One line of the CSV file; times in ms, memory in MB."""

    series: str
    x: float
    shape: str
    dtype: str
    contender: str
    work: str
    result: str = "ok"
    median: float | str = ""
    fastest: float | str = ""
    slowest: float | str = ""
    repeats: int | str = ""
    build: float | str = ""
    memory_before: float | str = ""
    memory_peak: float | str = ""
    flops: int | str = ""
    bytes: int | str = ""


def with_plain(name: str, build: Callable[[], Work]) -> dict[str, Callable[[], Work]]:
    """A contender and, where there are kernels, the same without them."""

    def plain():
        os.environ["GAUNT_KERNELS"] = "0"  # of the contender's own process
        return build()

    return {name: build, f"{name}, plain": plain} if with_kernels() else {name: build}


def with_kernels() -> bool:
    """Whether operators have kernels here."""
    return is_built() or shutil.which("nvidia-smi") is not None


def require(package: str) -> None:
    """Let a contender that needs a package say so."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"not installed: {package.replace('_', '-')}")


class Stopped(Exception):  # noqa: N818 (no error of ours)
    """A contender gave up; the message is its result."""


def measure(case: Case, settings: Settings, given_up: dict[tuple, str]) -> list[Row]:
    """Time and memory of each contender's passes.

    Args:
        case: the case.
        settings: limits and repeats.
        given_up: by series, contender and pass (``""``: all of them), why it is not tried any
            more; grows.
    """
    settings = replace(settings, dtype=case.dtype or settings.dtype)
    rows, running = {}, {}

    def row(name, work, **values):
        common = case.series, case.x, case.shape, settings.dtype, name, work
        rows[name, work] = Row(*common, **values)

    def stop(name, work, why):
        given_up[case.series, name, work] = why
        row(name, work, result=why)

    for name, build in case.contenders.items():
        if (case.series, name, "") in given_up:
            row(name, "", result=given_up[case.series, name, ""])
            continue
        process = _Process(build, settings)
        try:
            limit = settings.construction or settings.seconds
            process.seconds, process.passes = process.answer(limit)
            running[name] = process
        except Stopped as why:
            stop(name, "", f"construction: {why}")
    try:
        for work in dict.fromkeys(w for p in running.values() for w in p.passes):
            times, memory = {}, {}
            for name, process in running.items():
                if work not in process.passes:
                    continue
                if (case.series, name, work) in given_up:
                    row(name, work, result=given_up[case.series, name, work])
                    continue
                try:
                    seconds, *memory[name] = _warm_up(process, work, settings)
                    times[name] = [seconds]
                except Stopped as why:
                    stop(name, work, str(why))
                    if work == process.passes[0]:
                        given_up[case.series, name, ""] = str(why)
            turn = sum(seconds for (seconds,) in times.values())
            repeats = min(settings.repeats, max(settings.budget / max(turn, 1e-9), 3))
            if turn > 4 * settings.budget:
                repeats = 0  # the last call before is the result
            else:
                times = {name: [] for name in times}
            for _ in range(int(repeats)):
                for name in list(times):
                    with suppress(Stopped):
                        seconds, before, peak = running[name].ask(work)
                        times[name].append(seconds)
                        memory[name] = before, max(peak, memory[name][1])
            for name, values in times.items():
                if values:
                    ms = [1e3 * value for value in values]
                    row(
                        name,
                        work,
                        median=statistics.median(ms),
                        fastest=min(ms),
                        slowest=max(ms),
                        repeats=len(ms),
                        build=running[name].seconds,
                        memory_before=memory[name][0],
                        memory_peak=memory[name][1],
                    )
        for name, process in running.items():
            with suppress(Stopped):
                first = rows[name, process.passes[0]]
                first.flops, first.bytes = process.ask("")
    finally:
        for process in running.values():
            process.end()
    order = list(case.contenders)
    return sorted(rows.values(), key=lambda r: order.index(r.contender))


def _warm_up(process, work: str, settings: Settings) -> tuple[float, float, float]:
    """The last of a few calls: fewer of those that take long.

    TorchScript, of which e3nn's layers are made, compiles in the second and third call.
    """
    spent = 0.0
    for turn in range(WARM_UP):
        measured = process.ask(work)
        spent += measured[0]
        if spent > (settings.budget / 2 if turn > 1 else 20 * settings.budget):
            break
    return measured


class _Process:
    """A fork in which one contender lives."""

    def __init__(self, build: Callable[[], Work], settings: Settings) -> None:
        self.settings = settings
        self.pipe, theirs = _FORK.Pipe()
        self.process = _FORK.Process(target=_serve, args=(theirs, build, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.alive = True

    def ask(self, question: str):
        if not self.alive:
            raise Stopped("not reached")
        time.sleep(0.015)  # until the threads of the one before sleep: OpenMP's wait for work
        self.pipe.send(question)
        return self.answer(self.settings.seconds)

    def answer(self, limit: float):
        if not self.pipe.poll(limit):
            self.end()
            raise Stopped(f"> {limit:g} s")
        try:
            good, value = self.pipe.recv()
        except EOFError:
            self.end()
            # Killed by the system, or a library that can't bear a failed allocation.
            raise Stopped(OUT_OF_MEMORY) from None
        if not good:
            self.end()
            raise Stopped(value)
        return value

    def end(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()


def _serve(pipe, build: Callable[[], Work], settings: Settings) -> None:
    global _device, _dtype
    _device, _dtype = settings.device, settings.dtype
    torch.set_num_threads(settings.threads)
    torch.set_default_dtype(getattr(torch, settings.dtype))
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    try:
        if settings.device == "cpu":
            limit = int(_status("VmSize") + settings.memory)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        start = time.perf_counter()
        work = build()
        pipe.send((True, (time.perf_counter() - start, list(work.passes))))
        while True:
            question = pipe.recv()
            answer = _pass(work.passes[question], settings) if question else _least(work)
            pipe.send((True, answer))
    except EOFError:
        pass
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        lacks = isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in text
        with suppress(OSError):
            pipe.send((False, OUT_OF_MEMORY if lacks else text[:120]))
    os._exit(0)


def _pass(call: Callable[[], object], settings: Settings) -> tuple[float, float, float]:
    """Seconds, and MB before and at the peak (resident, or of the GPU's allocator).

    On a GPU the seconds are its own, between events around the call.
    """
    gpu = settings.device != "cpu"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again
        before = _status("VmRSS")
    seconds = 0.0
    for _ in range(2):  # a short call once more, with threads awake and caches warm
        if seconds < 0.1:
            if gpu:
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                call()
                events[1].record()
                torch.cuda.synchronize()
                seconds = events[0].elapsed_time(events[1]) / 1e3
                continue
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if gpu else _status("VmHWM")
    return seconds, before / 1e6, peak / 1e6


def _status(name: str) -> int:
    """An entry of this process' status in bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def _least(work: Work) -> tuple[int, int]:
    """Floating-point operations in matrix products, and bytes in and out."""
    with FlopCounterMode(display=False) as counter:
        out = work.whole()
    return counter.get_total_flops(), sum(t.numel() * t.element_size() for t in [out, *work.read])


def layer(call: Callable[[], torch.Tensor], inputs: list[torch.Tensor], module=None) -> Work:
    """Passes of a layer ``call()``; weights are the module's.

    ``training on forces`` differentiates the gradient with respect to the inputs once more.
    """
    weights = [] if module is None else list(module.parameters())
    leaves = [t for t in inputs if t.requires_grad] + weights

    def forward():
        with torch.no_grad():
            return call()

    def backward():
        return torch.autograd.grad(call().square().sum(), leaves, allow_unused=True)

    def forces():
        inner = [t for t in inputs if t.requires_grad]
        first = torch.autograd.grad(call().square().sum(), inner, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, leaves, allow_unused=True)

    passes = {"forward": forward, "forward + backward": backward, "training on forces": forces}
    return Work(passes, call, [*inputs, *weights])
