"""An exported file in this process, ready to be called."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from gaunt_plugin.deploy import contract
from gaunt_plugin.deploy.contract import DTYPES, ModelFileError
from gaunt_plugin.ops.cpu.build import library, status

_TURN = threading.RLock()


@contextlib.contextmanager
def run_as_written() -> Iterator[None]:
    """Run TorchScript as the pair style does, without compiling for sizes; see gaunt_model.cpp."""
    executor = torch._C._jit_set_profiling_executor(False)
    optimize = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(optimize)
        torch._C._jit_set_profiling_executor(executor)


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Compile to TorchScript without torch's remarks on how the hosts' layers are written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The TorchScript type system doesn't support")
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        yield


class Program:
    """The model of an exported file as a function of a graph, see ``contract``.

    It is called within :meth:`settings`. A pickle holds the path and reads the file again; deep
    copies share what was read, for nothing changes it.

    Args:
        path: written by ``gaunt export``.
        device: where it runs, as torch names it.
        threads: of torch while it runs; default: as many as torch has then.
        kernels: ``"auto"``: compiled kernels where the file calls them and they are built, on the
            CPU; True: the same, but an error if they can't run; False: never.

    Attributes:
        about: the file's description.
        device: where it runs.
        kernels: whether compiled kernels run.

    Raises:
        ModelFileError: no such file, or kernels asked for that can't run.
        ValueError: another argument is none of those above.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        kernels: bool | str = "auto",
    ) -> None:
        if threads is not None and not (isinstance(threads, int) and threads > 0):
            raise ValueError(f"threads is {threads!r}; possible are None and numbers from 1 on")
        if kernels not in ("auto", True, False):
            raise ValueError(f"kernels is {kernels!r}; possible are 'auto', True and False")
        self._arguments = Path(path).absolute(), device, threads, kernels
        self.device = _device(device)
        self._threads = threads
        missing = None
        if self.device.type != "cpu":
            missing = "they are for the CPU"
        elif library() is None:
            missing = status()
        program, self.about = contract.load(Path(path), kernels=bool(kernels) and missing is None)
        if not self.about.kernels:
            missing = "the file doesn't call them"
        if kernels is True and missing is not None:
            raise ModelFileError(f"{path} can't run with compiled kernels: {missing}")
        self.kernels = bool(kernels) and missing is None
        self._program = program.eval().to(self.device)

    def __call__(
        self, vectors: torch.Tensor, index: torch.Tensor, types: torch.Tensor, owned: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies of the atoms and gradients with respect to the vectors."""
        return self._program(vectors, index, types, owned)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """What the program needs of this process, which gets its own settings back.

        They belong to all threads of a process, so programs take turns; a thread that uses torch
        beside them can meet them.
        """
        with _TURN, run_as_written(), torch.inference_mode(False), torch.enable_grad():
            dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
            torch.set_default_dtype(DTYPES[self.about.dtype])
            if self._threads not in (None, threads):
                torch.set_num_threads(self._threads)
            try:
                yield
            finally:
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
                torch.set_default_dtype(dtype)

    def __deepcopy__(self, memo: dict) -> Program:
        return self

    def __reduce__(self) -> tuple:
        return Program, self._arguments


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device {name!r}; possible are cpu, cuda, cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} asked for, but this torch sees no GPU")
    return device
