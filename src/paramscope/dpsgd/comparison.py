"""All profiles of a workload side by side: as a table, as text, and for a paper."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from paramscope.artifacts.profiles import (
    Profile,
    devices_told,
    memory_ratio,
    of_workload,
    time_ratio,
    told,
    vanilla_of,
    variant_told,
    workload_told,
)
from paramscope.names import DPSGD_PARTS
from paramscope.units import time_unit_of, unit_of

NOTHING = "-"
RATIO = "x vanilla"
PART_COLUMNS = {part: f"part_{part.replace(' ', '_')}" for part in DPSGD_PARTS}
PROFILES = pa.schema(
    [
        pa.field("workload", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("chunk_tokens", pa.int32()),  # 0: the cross-entropy is not chunked
        pa.field("checkpoint", pa.bool_(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("trainable", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("device_type", pa.string(), nullable=False),
        pa.field("predicted", pa.bool_(), nullable=False),
        pa.field("refused", pa.string()),  # why; null where it was not, and then the rest is
        pa.field("peak_bytes", pa.int64()),
        pa.field("peak_operation", pa.string()),
        pa.field("peak_phase", pa.string()),
        *(pa.field(column, pa.int64()) for column in PART_COLUMNS.values()),  # bytes at the peak
        pa.field("explained", pa.float64()),  # share of the peak that has a name
        pa.field("reserved_bytes", pa.int64()),  # by CUDA's allocator; null elsewhere
        pa.field("iterations", pa.int32()),  # timed; null where nothing was
        pa.field("median_s", pa.float64()),
        pa.field("low_s", pa.float64()),  # the least
        pa.field("high_s", pa.float64()),  # the greatest
        pa.field("memory_ratio", pa.float64()),  # to vanilla's; null where there is none
        pa.field("time_ratio", pa.float64()),
    ]
)
_SPECIAL = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def table(profiles: Iterable[Profile], workload: str) -> pd.DataFrame:
    """A row of `PROFILES` a variant, vanilla first.

    Raises:
        ArtifactError: as `of_workload`.
    """
    found = of_workload(profiles, workload)
    vanilla = vanilla_of(found)
    rows = pd.DataFrame([_row(profile, vanilla) for profile in found], columns=PROFILES.names)
    numbers = [field.name for field in PROFILES if pa.types.is_floating(field.type)]
    return rows.astype(dict.fromkeys(numbers, "float64"))  # also where nothing was timed


def _row(profile: Profile, vanilla: Profile | None) -> dict[str, object]:
    peak, parts, timing = (profile[field] or {} for field in ("peak", "breakdown", "timing"))
    options = profile["options"]
    return {
        "workload": profile["workload"]["name"],
        **{name: profile[name] for name in ("variant", "method", "device", "device_type")},
        **{name: options[name] for name in ("chunk_tokens", "checkpoint", "dtype", "trainable")},
        "predicted": profile["predicted"],
        "refused": profile["refused"],
        **{f"peak_{name}": peak.get(name) for name in ("bytes", "operation", "phase")},
        **{column: parts.get(part) for part, column in PART_COLUMNS.items()},
        "explained": profile["explained"],
        "reserved_bytes": profile.get("reserved_bytes"),
        "iterations": timing.get("n"),
        **{name: timing.get(name) for name in ("median_s", "low_s", "high_s")},
        "memory_ratio": memory_ratio(profile, vanilla),
        "time_ratio": time_ratio(profile, vanilla),
    }


def summary(profiles: Iterable[Profile], workload: str) -> str:
    """The variants as aligned text: peak, time and ratios, the parts, and what was refused.

    Raises:
        ArtifactError: as `of_workload`.
    """
    found = of_workload(profiles, workload)
    shown = [profile for profile in found if not profile["refused"]]
    lines = [
        f"{workload}: DP-SGD's cost by variant",
        f"{workload_told(found[0])}; {devices_told(found)}",
        "",
    ]
    if shown:
        lines += _shown(shown, vanilla_of(shown))
    refused = [profile for profile in found if profile["refused"]]
    if refused:
        lines += ["", "Refused"]
        lines += [
            f"  {variant_told(p['variant'])}: {' '.join(p['refused'].split())}" for p in refused
        ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _shown(shown: list[Profile], vanilla: Profile | None) -> list[str]:
    """Lines of costs, then of parts, then of what the columns are."""
    size, unit = unit_of(max(profile["peak"]["bytes"] for profile in shown))
    second, tick = _time_unit(p["timing"]["low_s"] for p in shown if p["timing"])
    head = ("variant", f"peak ({unit})", RATIO, f"time ({tick})", "least", "greatest", RATIO)
    costs = [
        (
            told(profile),
            _value(profile["peak"]["bytes"] / size),
            _ratio(memory_ratio(profile, vanilla)),
            *(_timed(profile, name, second) for name in ("median_s", "low_s", "high_s")),
            _ratio(time_ratio(profile, vanilla)),
            f"{profile['peak']['operation']}, past {profile['peak']['phase']}",
        )
        for profile in shown
    ]
    lines = _aligned([(*head, "peak in"), *costs], left=(0, 7))
    held = [part for part in DPSGD_PARTS if any(p["breakdown"][part] for p in shown)]
    parts = [
        (told(profile), *(_part(profile["breakdown"][part] / size) for part in held))
        for profile in shown
    ]
    lines += ["", f"Parts of the peak ({unit})"]
    lines += _aligned([("variant", *held), *parts], left=(0,))
    lines += ["", f"1 {unit} = {size:,.0f} bytes; time: median, least and greatest iteration"]
    lines.append(
        f"{RATIO}: ratio to vanilla's, which is training without privacy"
        if vanilla
        else f"{RATIO}: ratio to vanilla's, which has no profile here"
    )
    if any(profile["predicted"] for profile in shown):
        lines.append("predicted: computed on tensors without data, nothing was timed")
    return lines


def latex(rows: pd.DataFrame) -> str:
    """A table for a paper (booktabs) of `table`'s rows; the least memory and time are bold.

    Bold is among what clips gradients, so not for the method vanilla, and not for predictions.
    Refused variants stand below with their reasons.
    """
    shown, refused = rows[rows["refused"].isna()], rows[rows["refused"].notna()]
    size, unit = unit_of(float(shown["peak_bytes"].max()) if len(shown) else 0.0)
    private = shown[(shown["method"] != "vanilla") & ~shown["predicted"].astype(bool)]
    least = {name: private[name].astype(float).min() for name in ("peak_bytes", "median_s")}
    second, tick = _time_unit(shown["low_s"].dropna())
    lines = [rf"variant & peak ({unit}) & $\times$ & time ({tick}) & least--greatest & $\times$ \\"]
    lines.append(r"\midrule")
    for row in shown.to_dict("records"):
        bold = {
            name: row["method"] != "vanilla" and not row["predicted"] and row[name] == value
            for name, value in least.items()
        }
        median, low, high = (row[name] / second for name in ("median_s", "low_s", "high_s"))
        cells = [
            _told(row),
            _bold(_value(row["peak_bytes"] / size), bold["peak_bytes"]),
            _ratio(row["memory_ratio"]),
            _bold(_value(median), bold["median_s"]),
            NOTHING if pd.isna(low) else f"{_value(low)}--{_value(high)}",
            _ratio(row["time_ratio"]),
        ]
        lines.append(" & ".join("--" if cell == NOTHING else cell for cell in cells) + r" \\")
    if len(refused):
        lines.append(r"\midrule")
    for row in refused.to_dict("records"):
        reason = " ".join(row["refused"].split()).translate(_SPECIAL)
        lines.append(
            rf"{_told(row)} & \multicolumn{{5}}{{p{{0.6\linewidth}}}}{{refused: {reason}}} \\"
        )
    body = "\n".join(lines)
    return f"\\begin{{tabular}}{{lrrrrr}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _time_unit(seconds: Iterable[float]) -> tuple[float, str]:
    return time_unit_of(min(seconds, default=1.0))


def _timed(profile: Profile, name: str, second: float) -> str:
    return _value(profile["timing"][name] / second) if profile["timing"] else NOTHING


def _part(value: float) -> str:
    """Two decimals; of what is there, no 0."""
    return "0" if not value else "<0.01" if value < 0.005 else f"{value:,.2f}"


def _told(row: Mapping[Hashable, Any]) -> str:
    name = variant_told(str(row["variant"])).translate(_SPECIAL)
    return f"{name} (predicted)" if row["predicted"] else name


def _bold(text: str, bold: bool) -> str:
    return rf"\textbf{{{text}}}" if bold else text


def _aligned(rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Lines of columns two spaces apart, those in `left` flush left, others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def justify(index: int) -> Callable[[str, int], str]:
        return str.ljust if index in left else str.rjust

    return [
        "  "
        + "  ".join(
            justify(i)(cell, width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _value(value: float | None) -> str:
    """Four digits, or all whole ones; a dash for none."""
    if value is None or pd.isna(value):
        return NOTHING
    for limit, decimals in ((1, 3), (100, 2), (1000, 1)):
        if abs(value) < limit:
            return f"{value:.{decimals}f}"
    return f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{value:.2f}"
