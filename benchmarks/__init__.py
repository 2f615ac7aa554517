"""Measurements, each a ratio against a limit found in the same run."""
