"""Models of MACE on the GPU's kernels: in Triton's interpreter, and on a GPU if there is one."""

from mace import modules

import ase
import pytest
import torch

from gaunt_plugin.mace.convert import to_gaunt

from .building import make_batch, make_model

pytest.importorskip("triton", reason="triton is not installed")

SMALL = {"hidden": "2x0e+2x1o", "max_ell": 1}
STOCK = "RealAgnosticResidualInteractionBlock"
MODELS = {
    "power": lambda: make_model(**SMALL),
    "converted": lambda: to_gaunt(make_model(STOCK, STOCK, cls=modules.ScaleShiftMACE, **SMALL)),
}
OPERATORS = {
    "power": {"convolution", "edge_frames", "powers"},
    "converted": {"channelwise_convolution", "polynomials"},
}


def training_step(model, device):
    """Energy, forces, and the gradient of a loss on both in all parameters."""
    model.zero_grad()
    atoms = ase.Atoms("HO", positions=[[0, 0, 0], [0.8, 0.4, 0.1]])
    batch = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in make_batch(model, atoms).items()
    }
    out = model(batch, training=True)
    (out["forces"].square().sum() + out["energy"].sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out["energy"].detach(), out["forces"].detach(), *gradients]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step(name, way):
    torch.set_default_dtype(torch.float64)  # set back by the fixture of conftest.py
    model = MODELS[name]().to(way.name)
    found = training_step(model, way.name)
    assert {operator for operator, _ in way.calls} >= OPERATORS[name]
    assert {number for _, number in way.calls} == {0, 1, 2}
    way.switch(False)
    expected = training_step(model, way.name)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
