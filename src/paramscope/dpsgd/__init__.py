"""DP-SGD: per-sample clipping by several methods, private finetuning, and what each one costs."""
