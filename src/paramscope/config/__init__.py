"""The configuration of a run: its model, its checks, and the files generated from it."""
