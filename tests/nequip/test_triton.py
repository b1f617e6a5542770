"""Models of NequIP on the GPU's kernels: in Triton's interpreter, and on a GPU if there is one."""

import ase
import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.model import NequIPGNNModel
from nequip.model.modify_utils import modify

from .test_models import make_graph, make_model

pytest.importorskip("triton", reason="triton is not installed")

SMALL = {"l_max": 1, "num_features": 2, "num_layers": 3}
KERNELS = [{"modifier": "enable_GauntKernels"}]
MODELS = {
    "power": lambda: make_model(**SMALL, correlation=2),
    "stock": lambda: modify(make_model(NequIPGNNModel, **SMALL), KERNELS),
}
OPERATORS = {
    "power": {"convolution", "edge_frames", "powers"},
    "stock": {"channelwise_convolution"},
}


def training_step(model, graph):
    """Energy, forces, and the gradient of a loss on both in all parameters."""
    model.zero_grad()
    out = model(dict(graph))
    (out["forces"].square().sum() + out["total_energy"].sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out["total_energy"].detach(), out["forces"].detach(), *gradients]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step(name, way):
    """As the plain form, with edges that are sorted once by senders and once by receivers."""
    model = MODELS[name]().train().to(way.name)
    atoms = ase.Atoms("HOC", positions=[[0, 0, 0], [0.8, 0.4, 0.1], [-0.5, 1.0, 0.3]])
    graph = AtomicDataDict.to_(make_graph(atoms), way.name)
    sorted_rows = way.sorted_rows()
    found = training_step(model, graph)
    assert {operator for operator, _ in way.calls} >= OPERATORS[name]
    assert {number for _, number in way.calls} == {0, 1, 2}
    assert sorted(sorted_rows) == [0, 1]
    way.switch(False)
    expected = training_step(model, graph)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
