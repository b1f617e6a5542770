"""Commands of a host, run in forks of one process that has imported it.

A process that imports a host costs seconds. One helper process imports it, and every command runs
in a fork of it: nothing that a command changes is seen by another one or by the tests.
"""

import multiprocessing
import os
from pathlib import Path

FORK = """
import os, runpy, sys
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
sys.path[:] = [path for path in sys.path if path]
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(output, 1)
os.dup2(output, 2)
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__")
"""


class Forks:
    """Runs commands in folders of their own.

    Args:
        root: where the folders lie.
        preload: modules that the helper imports.
        timeout: of a command, s.
    """

    def __init__(self, root: Path, preload: list[str], timeout: float) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the helper and its forks
        self.root = root
        self.timeout = timeout
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(preload)

    def start(self, folder: Path, module: str, *arguments, log: str = "output.txt"):
        """Start ``python -m module arguments``."""
        arguments = [str(argument) for argument in arguments]
        values = {"folder": str(folder), "module": module, "arguments": arguments, "log": log}
        values["environment"] = dict(os.environ)  # not that of the helper's start
        process = self.context.Process(target=exec, args=(FORK, values))
        process.log = folder / log
        process.start()
        return process

    def finish(self, process, fails: bool = False) -> str:
        """Wait for a command and return what it printed."""
        process.join(self.timeout)
        output = process.log.read_text()
        assert process.exitcode is not None, f"still running after {self.timeout} s:\n{output}"
        assert (process.exitcode != 0) == fails, output
        return output

    def run(self, folder: Path, module: str, *arguments, fails: bool = False) -> str:
        return self.finish(self.start(folder, module, *arguments), fails)
