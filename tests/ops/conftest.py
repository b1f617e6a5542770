import pytest

from gaunt_plugin.ops import _operator

from ..layers.conftest import _double  # noqa: F401 (float64, one seed)


@pytest.fixture
def calls(monkeypatch):
    """The kernels' passes that were run, ``(operator, pass)``, in order."""
    found, call = [], _operator.call

    def record(name, number, arrays):
        found.append((name, number))
        return call(name, number, arrays)

    monkeypatch.setattr(_operator, "call", record)
    return found
