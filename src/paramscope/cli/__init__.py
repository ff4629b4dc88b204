"""The command line: one module a stage, each importing its stage only when it runs."""
