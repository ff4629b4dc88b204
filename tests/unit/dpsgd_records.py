"""Synthetic records of DP-SGD's cost and use: test data, measured nowhere."""

import numpy as np

from paramscope.names import DPSGD_PARTS

SMALL_WORKLOAD = {
    "name": "decoder-small", "family": "llama", "hidden": 256, "layers": 4, "heads": 4,
    "ffn": 1024, "vocabulary": 2000, "length": 512, "batch": 2, "tied": False,
    "parameters": 5_219_584,
}  # fmt: skip
LARGE_WORKLOAD = {
    "name": "decoder-16k", "family": "llama", "hidden": 2048, "layers": 20, "heads": 16,
    "ffn": 8192, "vocabulary": 32_000, "length": 16_384, "batch": 1, "tied": False,
    "parameters": 1_474_560_000,
}  # fmt: skip
# of the model's bytes, in the order of DPSGD_PARTS, then of vanilla's time
COSTS = {
    "vanilla": ((1, 0.9, 2, 2.4, 0, 0.15, 1.6, 0.04), 1.0),
    "vanilla+checkpoint": ((1, 0.9, 2, 0.7, 0, 0.15, 1.6, 0.04), 1.22),
    "opacus_hooks": ((1, 2.9, 2, 3.1, 0.001, 1.3, 1.6, 0.06), 2.31),
    "opacus_ghost": ((1, 1, 2, 2.9, 0.004, 1.1, 1.6, 0.06), 3.44),
    "ghost": ((1, 0.9, 2, 2.4, 0.003, 0.9, 1.6, 0.04), 2.15),
    "flash": ((1, 0.9, 2, 2.4, 0.003, 0.3, 1.6, 0.04), 1.93),
    "bk": ((1, 0.8, 2, 2.3, 0.003, 0.45, 1.6, 0.04), 1.13),
    "bk+chunk": ((1, 0.9, 2, 2.3, 0.003, 0.45, 0.2, 0.04), 1.16),
    "bk+chunk+checkpoint": ((1, 0.9, 2, 0.7, 0.003, 0.45, 0.2, 0.04), 1.39),
    "per_layer": ((1, 0.6, 2, 2.3, 0.001, 0.2, 1.6, 0.04), 1.10),
    "micro": ((1, 1.9, 2, 1.2, 0.0, 0.08, 0.8, 0.04), 1.04),
    "micro+chunk+checkpoint": ((1, 1.9, 2, 0.35, 0.0, 0.08, 0.1, 0.04), 1.27),
}
METHODS = ("vanilla", "opacus_hooks", "opacus_ghost", "ghost", "flash", "bk", "per_layer", "micro")
REFUSAL = (
    "Opacus 1.6's ghost mode can't run OPTForCausalLM: its position embeddings have a batch of "
    "one, and its head is tied to the embedding, so the norms would be wrong; take micro, which "
    "is exact for anything"
)


def profile(variant, workload=SMALL_WORKLOAD, **changes):
    """The record of one variant; `changes` replace whole fields."""
    shares, slowness = COSTS[variant]
    method, *options = variant.split("+")
    model = 4 * workload["parameters"]
    breakdown = {p: round(s * model) for p, s in zip(DPSGD_PARTS, shares, strict=True)}
    peak = sum(breakdown.values())
    median = 0.31 * slowness * workload["parameters"] / 5_219_584
    walls = [median * spread for spread in (1.0, 0.98 - 0.01 * slowness, 1.05 + 0.01 * slowness)]
    record = {
        "workload": dict(workload),
        "variant": variant,
        "method": method,
        "options": {
            "chunk_tokens": 128 if "chunk" in options else 0,
            "checkpoint": "checkpoint" in options,
            "dtype": "float32",
            "trainable": "all",
        },
        "privacy": {"max_norm": 1.0, "noise_multiplier": 1.0},
        "device": "cpu, 2 threads",
        "device_type": "cpu",
        "predicted": False,
        "refused": None,
        "snapshots": [],
        "peak": {
            "bytes": peak,
            "operation": "aten._log_softmax_backward_data.default",
            "phase": "iter0_after_forward",
        },
        "breakdown": breakdown,
        "explained": 1.0,
        "timeline": timeline(breakdown, two_backwards=method in ("opacus_ghost", "ghost", "flash")),
        "iterations": [
            {"wall_s": w, "forward_s": 0.3 * w, "backward_s": 0.6 * w, "step_s": 0.1 * w}
            for w in walls
        ],
        "timing": {"median_s": median, "low_s": min(walls), "high_s": max(walls), "n": 3},
        "reserved_bytes": None,
        "nvml": None,
    }
    return record | changes


def predicted(variant, workload=SMALL_WORKLOAD):
    return profile(variant, workload, predicted=True, iterations=[], timing=None)


def refused(variant, workload=SMALL_WORKLOAD, reason=REFUSAL):
    empty = dict.fromkeys(
        ("snapshots", "peak", "breakdown", "explained", "timeline", "iterations", "timing")
    )
    return profile(variant, workload, refused=reason, **empty)


def timeline(breakdown, two_backwards=False, n=600):
    """Memory that rises over a forward, falls over one or two backwards, and a step."""
    at = np.linspace(0, 1, n)
    forward, backward = (0.2, 0.88) if two_backwards else (0.36, 0.9)
    rising = np.clip(at / forward, 0, 1)
    back = np.clip((at - forward) / (backward - forward), 0, 1)
    last = np.clip((back - 0.5) / 0.5, 0, 1) if two_backwards else back
    held = rising * (1 - last)
    wave = 0.5 + 0.5 * np.sin(24 * np.pi * back)
    weights = {
        "parameters": np.ones(n),
        "gradients": last,
        "optimizer states": np.ones(n),
        "saved activations": held,
        "norm samples": back * (last < 1),
        "temporary matrices": wave * (back > 0) * (back < 1),
        "logits and loss": (rising >= 0.97) * (back < 0.08),
        "other": np.ones(n),
    }
    peak_at = int(n * (forward + 0.03))
    by_part = {}
    for part, weight in weights.items():
        values = np.round(weight * breakdown[part] * 0.97).astype(int)
        values[peak_at - 8 : peak_at + 8] = round(0.99 * breakdown[part])
        values[peak_at] = breakdown[part]
        by_part[part] = values.tolist()
    ends = [0, int(n * forward), int(n * backward), n - 1]
    names = ("before_forward", "after_forward", "after_backward", "after_step")
    return {
        "live_bytes": [sum(parts) for parts in zip(*by_part.values(), strict=True)],
        "by_part": by_part,
        "operation_index": [4210 + 3 * i for i in range(n)],
        "phases": [
            {"name": f"iter3_{name}", "at": at} for name, at in zip(names, ends, strict=True)
        ],
        "peak_at": peak_at,
    }


def study(workload=SMALL_WORKLOAD):
    """Eight methods and four variants with options; one predicted, one refused."""
    made = {variant: profile(variant, workload) for variant in COSTS}
    made["opacus_ghost"] = refused("opacus_ghost", workload)
    made["flash"] = predicted("flash", workload)
    return list(made.values())


def utility(epsilons=(0.5, 1.0, 2.0, 4.0, 8.0), delta=0.003):
    """A record of privacy and utility: between the base and the target, nearer as ε grows."""

    def row(name, epsilon, share, bound, steps):
        perplexity, auc = 31.0 - 6.5 * share, 0.5 + 0.33 * share**2
        return {
            "name": name, "epsilon": epsilon, "noise_multiplier": None if bound in (0.5, None)
            else 2.0 / epsilon**0.5, "perplexity": perplexity, "perplexity_low": 0.97 * perplexity,
            "perplexity_high": 1.03 * perplexity, "auc": auc, "auc_low": auc - 0.045,
            "auc_high": auc + 0.045, "auc_bound": bound, "auc_bound_one_run": bound,
            "tpr_at_1": 0.01 + 0.1 * share, "steps": steps,
        }  # fmt: skip

    rows = [row("base", 0.0, 0.0, 0.5, 0)]
    for epsilon in epsilons:
        e, share = np.exp(epsilon), min(0.25 + 0.04 * epsilon, 0.95)
        rows.append(row("private", epsilon, share, 0.5 + (e - 1 + 2 * delta) / (2 * (e + 1)), 300))
    rows.append(row("target", None, 1.0, None, 300))
    return {"model": "tiny-opt", "delta": delta, "n_members": 300, "attack": "loss", "rows": rows}
