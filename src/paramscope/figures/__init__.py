"""Figures: one module each, from the artifacts' frames and records to a Matplotlib figure."""
