import pytest
import torch

# The tensors here are small: threads that wait for each other cost more than they give.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _double():
    """Layers are built and run in float64, from the same seed, unless a test says otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
