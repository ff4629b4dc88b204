"""Stage `prm_statistics`: what the responses say about the classes."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import Output, Seed


def prm_statistics(
    responses: Annotated[Path, Argument(help="Merged responses of one partition rule.")],
    output: Output,
    rule: Annotated[str, Option(help="Partition rule that made the classes.")] = "curvature",
    null: Annotated[
        Path | None, Option(help="Statistics of the random rule, which S is set against.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Test whether the classes of a partition respond differently to noise.

    Slopes over σ² a noise seed with BCa intervals, paired sign-flip tests with Holm's
    correction, efficiency at +5% perplexity, the separation score, and a descriptive MANOVA.
    What can't be had is null, and the record's notes say why.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.artifacts.tables import read_table, read_table_provenance
    from paramscope.response.responses import RESPONSES, merge
    from paramscope.response.statistics import statistics

    synthetic = bool(read_table_provenance(responses)["synthetic"])
    made_by = provenance("cli.prm_statistics", arguments, synthetic=synthetic)
    control = None if null is None else read_record(null)
    found = statistics(merge([read_table(responses, RESPONSES.names)]), rule, seed, control)
    write_record(output, found.record(), made_by)
    for note in found.notes:
        print(f"note: {note}")
    print(f"{len(found.comparisons)} comparisons over {found.n_seeds} seeds in {output}")
