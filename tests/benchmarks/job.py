"""What the curvature benchmark tells each of its processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One contender's process: what it measures, and where it writes.

    Attributes:
        contender: its name, or "reference" or "gradient".
        reference: Torch file of the exact entries; "reference" writes it.
        result: JSON file for what was measured.
        budgets: those to measure; None for as many as `seconds_cap` allows.
    """

    model: str
    calibration: str
    sequences: int
    length: int
    batch: int
    entries: int
    seed: int
    threads: int
    seconds_cap: float
    reference: str
    result: str
    contender: str = ""
    repeat: int = 0
    largest_budget: int = 10**9
    budgets: tuple[int, ...] | None = None
