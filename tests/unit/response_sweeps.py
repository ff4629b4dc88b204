"""Sweeps with known answers, and a judge of tiny models, for the tests of `response`."""

import numpy as np
import pandas as pd
import torch

from paramscope.models.sequences import padded
from paramscope.response.sweep import Judge

SIGMAS = (0.25, 0.5, 1.0, 2.0)
CLASSES = ("W_func", "W_sens", "W_both")


def sweep(log_ppl, auc, sigmas=SIGMAS, odd=0.0, draws=None, energy=None):
    """Rows with Δlog PPL = a·σ² and ΔAUC = b·σ², `log_ppl` and `auc` a list of a or b by class.

    One a and b a seed. `odd` adds ±odd·σ, which the mean of ±z must cancel. ΔAUC by Min-K% is
    twice ΔAUC, the loss gap three times.
    """
    rows = []
    for label in log_ppl:
        for seed, (a, b) in enumerate(zip(log_ppl[label], auc[label], strict=True)):
            for sigma in sigmas:
                for sign in (-1, 1):
                    x, y = (c * sigma**2 + sign * odd * sigma for c in (a, b))
                    rows.append(
                        {
                            "class": label,
                            "sigma": sigma,
                            "seed": seed,
                            "sign": sign,
                            "draw": draws[seed] if draws else 0,
                            "n_units": 10,
                            "n_parameters": 330,
                            "noise": "relative",
                            "predicted_delta_log_ppl": a * sigma**2,
                            "predicted_delta_log_ppl_se": 0.1 * a * sigma**2,
                            "noise_energy": (energy or {}).get(label, 7.0) * sigma**2,
                            "ppl": 20 * np.exp(x),
                            "delta_log_ppl": x,
                            "delta_log_ppl_se": 0.001,
                            "auc": 0.8 + y,
                            "delta_auc": y,
                            "delta_auc_se": 0.001,
                            "auc_min_k": 0.7 + 2 * y,
                            "delta_auc_min_k": 2 * y,
                            "loss_gap": 0.5 + 3 * y,
                            "delta_loss_gap": 3 * y,
                        }
                    )
    return pd.DataFrame(rows)


def noisy_sweep(n_seeds=8, seed=0, **options):
    """Classes that differ: W_func costs perplexity, W_sens gives up membership."""
    generator = np.random.default_rng(seed)
    a = {"W_func": 0.2, "W_sens": 0.05, "W_both": 0.1}
    b = {"W_func": -0.02, "W_sens": -0.03, "W_both": -0.02}
    scatter = {label: 1 + 0.2 * generator.standard_normal((2, n_seeds)) for label in CLASSES}
    return sweep(
        {label: a[label] * scatter[label][0] for label in CLASSES},
        {label: b[label] * scatter[label][1] for label in CLASSES},
        **options,
    )


def random_text(n, name, generator):
    """`n` sequences of 8 random tokens that a tiny model knows."""
    rows = [torch.randint(4, 24, (8,), generator=generator).tolist() for _ in range(n)]
    return padded(rows, [f"{name}-{i}" for i in range(n)])


def random_judge(generator=None, bootstrap=30):
    """A judge by random windows, members and non-members, the same ones each time."""
    generator = generator or torch.Generator().manual_seed(0)
    texts = ((6, "window"), (7, "member"), (5, "nonmember"))
    return Judge(
        *(random_text(n, name, generator) for n, name in texts),
        min_k_percent=20, bootstrap=bootstrap, batch_size=4, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
