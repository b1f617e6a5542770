"""Triton kernels in tests: in Triton's interpreter, or on a GPU."""

from gaunt_plugin.ops import _operator, cuda
from gaunt_plugin.ops.cuda import groups, launch

from .ops.passes import assert_same, passes


class Way:
    """A device, the passes that kernels ran on it, and a switch."""

    def __init__(self, name, monkeypatch):
        self.name, self.calls, self.patch = name, [], monkeypatch
        self.kernels = _operator.KERNELS["cuda"]._replace(call=self.record)
        self.switch(True)

    def record(self, name, number, arrays):
        self.calls.append((name, number))
        launch.call(name, number, arrays)

    def switch(self, on):
        ready = cuda.ready if on else lambda device: False
        self.patch.setitem(_operator.KERNELS, self.name, self.kernels._replace(ready=ready))

    def sorted_rows(self):
        """Rows of edge_index, filled as edges are sorted from now on."""
        rows, make = [], groups._groups.make

        def record(edge_index, row, *sizes):
            rows.append(row)
            return make(edge_index, row, *sizes)

        self.patch.setattr(groups._groups, "make", record)
        return rows

    def same(self, run, inputs, kind, compare=passes):
        """Compare with the plain form; what the kernels gave."""
        self.switch(True)
        self.calls.clear()
        found = compare(run, inputs)
        assert {number for _, number in self.calls} == {0, 1, 2}
        self.switch(False)
        self.calls.clear()
        assert_same(found, compare(run, inputs), kind)
        assert not self.calls
        return found
