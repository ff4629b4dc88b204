"""Measure a causal language model: what its parameters do, remember, and cost."""

__version__ = "0.1.0"
