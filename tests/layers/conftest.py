import pytest
import torch


@pytest.fixture(autouse=True)
def _double():
    """Layers are built and run in float64, from the same seed, unless a test says otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
