"""What fits where, before it is run: devices, what they can hold, and what a stage asks of them."""
