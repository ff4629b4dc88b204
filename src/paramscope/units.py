"""Units that memory and time are told in: powers of ten."""

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
LARGER = (
    (1e18, "EB"),
    (1e15, "PB"),
    (1e12, "TB"),
)  # of a plan and a machine; tables and figures end at GB
TIMES = ((1.0, "s"), (1e-3, "ms"))
POWERS = {"GB": "10⁹", "MB": "10⁶", "kB": "10³"}


def unit_of(n_bytes: float) -> tuple[float, str]:
    """The largest of GB, MB and kB that `n_bytes` is one or more of, and its bytes."""
    return next((unit for unit in UNITS if n_bytes >= unit[0]), UNITS[-1])


def time_unit_of(seconds: float) -> tuple[float, str]:
    """Seconds where there is one or more of them, else milliseconds, and its seconds."""
    return next((unit for unit in TIMES if seconds >= unit[0]), TIMES[-1])


def amount(size: float | None) -> str:
    """Bytes in words, from kB to EB with one decimal; "unknown" for None."""
    if size is None:
        return "unknown"
    unit, name = next((unit for unit in LARGER if size >= unit[0]), unit_of(size))
    return f"{size / unit:,.1f} {name}"
