"""What the compression benchmark found, set beside what was aimed at."""

from collections.abc import Mapping, Sequence

from tests.benchmarks.goals import Goal, quartiles


def flow_summary(runs: Sequence[Mapping]) -> dict:
    """Time and memory of our flow over the published one's, of one subject's runs.

    Times are compared turn by turn. Memory is what pruning takes beside the model's weights.
    """
    published = {run["turn"]: run for run in runs if run["contender"] == "published"}
    batches = sorted({run["batch"] for run in runs if run["contender"] != "published"})
    found = {}
    for batch in batches:
        ours = [r for r in runs if r["contender"] != "published" and r["batch"] == batch]
        ratios: dict = {
            key.replace("_s", "_ratio"): quartiles(
                [r[key] / published[r["turn"]][key] for r in ours]
            )
            for key in ("wall_s", "cpu_s")
        }
        growth = [r["rss_growth_bytes"] / published[r["turn"]]["rss_growth_bytes"] for r in ours]
        ratios["rss_growth_ratio"] = quartiles(growth)
        first, other = ours[0], published[0]
        ratios["tracked_peak_ratio"] = first["tracked_peak_bytes"] / other["tracked_peak_bytes"]
        whole = [run["tracked_peak_bytes"] + run["weights_bytes"] for run in (first, other)]
        ratios["tracked_peak_with_weights_ratio"] = whole[0] / whole[1]
        found[f"batch {batch}"] = ratios
    return found


def goals(found: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Each goal with what was reached, from the results of each case."""
    listed: list[Goal] = []
    for each in found.get("accuracy", ()):
        subject = each["subject"]
        listed += [
            Goal("|layer loss / float64's − 1|, worst", subject, 1e-3, each["worst_deviation"]),
            Goal("mask agreement, worst", subject, 0.99, each["worst_agreement"], at_least=True),
        ]
    for each in found.get("steps", ()):
        for row in each["rows"]:
            if row["scope"] != "pruned":
                continue
            subject = f"{each['subject']}, {row['threads']} thread(s)"
            listed.append(Goal("optimizer state / dense", subject, 0.11, row["state_ratio"]))
            listed += [
                Goal(f"step time / dense AdamW, {name}", subject, 1.1, ratio["median"])
                for name, ratio in row["step_ratio"].items()
            ]
    for each in found.get("checkpoint", ()):
        listed.append(
            Goal("checkpoint of pruned weights / dense", each["subject"], 0.1625, each["ratio"])
        )
    for each in found.get("flow", ()):
        for batch, row in each["ratios"].items():
            subject = f"{each['subject']}, {batch}"
            listed += [
                Goal("SparseGPT wall time / published", subject, 1, row["wall_ratio"]["median"]),
                Goal("peak of live tensors / published", subject, 0.5, row["tracked_peak_ratio"]),
                Goal("growth of RSS / published", subject, 0.5, row["rss_growth_ratio"]["median"]),
            ]
    return [goal.record() for goal in listed]
