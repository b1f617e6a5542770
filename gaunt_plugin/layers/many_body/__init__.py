"""Products of a feature with itself, symmetric contraction: a file per parametrisation."""
