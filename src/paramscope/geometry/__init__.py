"""Units of parameters: their features, the picture of them, and the classes they fall in.

`features`, `embedding`, `fidelity`, `partition` and `planted` import no torch, so that a planted
model runs on any laptop; `sparsity` and `units`, which read a model, do.
"""
