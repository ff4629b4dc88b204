"""Perturbation response mapping: noise into each class of parameters, and what it changes."""
