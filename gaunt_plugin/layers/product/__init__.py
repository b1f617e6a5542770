"""Products of two features."""
