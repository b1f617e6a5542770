"""The one table of tolerances, and the comparison that uses it.

All are relative to the largest entry of the reference.
"""

import numpy as np
import torch

TOLERANCES = {
    "exact": 0.0,  # copies, reloads: the same bits
    "oracle": 1e-12,  # float64 against an independent formula
    "program": 1e-12,  # the same layer scripted, compiled or read back from a file
    "program32": 1e-5,  # float32
    "equivariance": 1e-10,  # float64
    "span": 1e-10,  # residual of a fit, float64
    "float32": 1e-4,
    "derivative": 1e-6,  # float64 against finite differences
    "statistic": 0.05,  # against a Monte Carlo estimate with a fixed seed
    "scale": 0.15,  # a layer's output at initialisation
}


def assert_close(actual, expected, kind: str) -> None:
    """Compare two arrays or tensors of one shape with the tolerance named ``kind``."""
    actual, expected = (
        value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for value in (actual, expected)
    )
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if expected.size:
        error, size = np.abs(actual - expected).max(), np.abs(expected).max()
        assert error <= TOLERANCES[kind] * size, (
            f"off by {error:.2e} where the largest is {size:.2e}"
        )
