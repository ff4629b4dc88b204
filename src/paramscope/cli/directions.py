"""Stage `directions`: eigen-directions of the curvature's Kronecker factors, and their classes."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import Output, Seed, Threads


def directions(
    factors: Annotated[Path, Argument(help="Factors, from `paramscope kfac`.")],
    output: Output,
    by: Annotated[
        str,
        Option(
            help="count: a share of the directions at each end; mass: those of highest curvature "
            "that hold a share of it, and the rest."
        ),
    ] = "count",
    share: Annotated[float, Option(help="That share.")] = 0.25,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Class the eigen-directions of each weight: lowest curvature W_sens, highest W_func.

    Writes U_A/LAYER [d, d], U_S/LAYER [p, p], curvature/LAYER and labels/LAYER [p, d]; the
    labels are 0 for W_func, 1 for W_sens, 2 for W_both.
    """
    arguments = dict(locals())
    import torch
    from tqdm import tqdm

    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import read_tensors, write_tensors
    from paramscope.curvature.kfac import Factors, eigen
    from paramscope.errors import ArtifactError
    from paramscope.geometry.directions import (
        class_shares,
        from_content,
        label_directions,
        labelled_to_content,
    )

    torch.set_num_threads(threads)
    stored = read_tensors(factors)
    layers = [name.removeprefix("A/") for name in stored if name.startswith("A/")]
    if not layers:
        raise ArtifactError(f"{factors}: no Kronecker factors; make them by paramscope kfac")
    found = from_content(stored) or {  # with the curvature that was measured along them
        name: eigen(Factors(stored[f"A/{name}"], stored[f"S/{name}"], stored["tokens"]))
        for name in tqdm(layers, "eigenvectors")
    }
    labelled = label_directions(found, by=by, share=share, seed=seed)
    content = labelled_to_content(labelled)
    made_by = provenance("cli.directions", arguments, device="cpu")
    write_tensors(output, content, made_by)
    size = sum(x.numel() * x.element_size() for x in content.values()) / 1e6
    for label, rows in class_shares(labelled).groupby("class", sort=False):
        n, mass = rows["n"].sum(), rows["mass"].mean()
        print(f"{label}: {n:,} directions, {mass:.2%} of a layer's curvature on average")
    print(f"directions of {len(labelled)} weights, {size:,.1f} MB, in {output}")
