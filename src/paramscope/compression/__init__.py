"""Pruning a model's linear layers to a share of their weights, and getting back what that cost."""
