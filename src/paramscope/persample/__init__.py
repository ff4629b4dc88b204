"""The layer calculus: what a layer's input and its output's gradient say of each sample.

A layer's per-sample gradient is known from its input a and the gradient g of its output.
One module a kind of layer answers questions about all samples without ever holding the
per-sample gradients of the whole model; `capture` pairs a and g; `layers` finds the kind.
"""
