"""What the compression benchmark tells each of its processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One process: what it measures, on which model and text, and where it writes.

    Attributes:
        case: a name in `compression_cases.CASES`.
        model: the given model's folder; with `hidden`, nothing of it is read.
        calibration: documents to prune by, of which a random model reads none.
        result: JSON file for what was measured.
        hidden: width of an OPT at random weights that stands in for it; 0: the given model.
        layers: blocks of that OPT.
        sequences: calibration sequences at most.
        tokens: tokens a sequence at most.
        batch: sequences a forward, where a contender does several at once.
        density: share of the weights that is kept.
        threads: CPU threads within operations; steps are also timed on one.
        rounds: turns of each flow, of which a process takes one; 8 optimizer steps for each.
        seed: of random weights and tokens.
        contender: of the case "flow".
        turn: the round that this process is of.
    """

    case: str
    model: str
    calibration: str
    result: str
    hidden: int = 0
    layers: int = 4
    sequences: int = 64
    tokens: int = 256
    batch: int = 1
    density: float = 0.1
    threads: int = 2
    rounds: int = 3
    seed: int = 0
    contender: str = ""
    turn: int = 0

    @property
    def subject(self) -> str:
        """The model in words."""
        return f"OPT {self.hidden} × {self.layers}, random" if self.hidden else "given model"
