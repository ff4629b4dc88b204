"""Stage `embedding`: the units on a plane, in clusters."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import Output, Seed


def embedding(
    units: Annotated[Path, Argument(help="Table of units with their features.")],
    output: Output,
    output_quality: Annotated[
        Path, Option(help="Record to write: silhouettes and how far the picture can be believed.")
    ],
    n_neighbors: Annotated[int, Option(help="Neighbours a unit that UMAP keeps near.")] = 15,
    min_dist: Annotated[float, Option(help="Least distance in the plane, 0 to 1.")] = 0.1,
    clustering: Annotated[str, Option(help="dbscan or hdbscan, in the plane.")] = "dbscan",
    eps: Annotated[float, Option(help="Reach of DBSCAN, in the plane's units.")] = 0.5,
    min_samples: Annotated[
        int, Option(help="Units within reach of a core unit; HDBSCAN's smallest cluster.")
    ] = 5,
    seed: Seed = 0,
) -> None:
    """Lay the units out by UMAP of their standardised features and cluster the plane."""
    arguments = dict(locals())
    from dataclasses import asdict

    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
    from paramscope.geometry.embedding import EMBEDDING, Layout, embed
    from paramscope.geometry.features import FEATURES

    synthetic = bool(read_table_provenance(units)["synthetic"])
    layout = Layout(n_neighbors, min_dist, clustering, eps, min_samples, seed)
    frame, quality = embed(read_table(units, ["unit", *FEATURES]), layout)
    made_by = provenance("cli.embedding", arguments, synthetic=synthetic)
    write_table(output, frame, EMBEDDING, made_by)
    write_record(output_quality, {"synthetic": synthetic} | asdict(quality), made_by)
    for note in quality.notes:
        print(f"note: {note}")
    print(
        f"{quality.n_clusters} clusters of {quality.n_units} units, trustworthiness "
        f"{quality.trustworthiness:.3f}, in {output}"
    )
