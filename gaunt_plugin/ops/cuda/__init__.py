"""GPU kernels in Triton, generated per layer."""
