"""Stage `spotcheck`: the curvature estimate beside exact entries."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    BatchSize,
    CurvatureMethod,
    DeviceName,
    Dtype,
    DtypeName,
    Graph,
    GraphKind,
    Length,
    MemoryLimit,
    ModelFolder,
    Output,
    Probes,
    Seed,
    Threads,
)


def spotcheck(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Output,
    output_draws: Annotated[
        Path, Option(help="Table to write: the error by how many draws are taken.")
    ],
    output_quality: Annotated[Path, Option(help="Record to write: the table's summary.")],
    parameters: Annotated[int, Option(help="Entries, spread over the tensors.")] = 300,
    sequences: Annotated[int, Option(help="Documents that all three are taken over.")] = 16,
    draws: Annotated[int, Option(help="Draws of the estimate.")] = 16,
    method: CurvatureMethod = "ggn",
    probes: Probes = 16,
    graph: GraphKind = Graph.whole,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Set the estimated curvature of sampled parameters beside the exact G and the exact H.

    All three are over the same documents, the first of the calibration split.
    """
    arguments = dict(locals())
    from functools import partial

    import numpy as np
    import pandas as pd

    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.curvature.methods import estimator
    from paramscope.curvature.moments import moments
    from paramscope.curvature.products import ggn_entries, hessian_entries
    from paramscope.curvature.spotcheck import (
        SPOTCHECK,
        SPOTCHECK_DRAWS,
        by_draws,
        exact_entries,
        quality,
        stratified,
    )
    from paramscope.devices import describe_device
    from paramscope.memory import halved

    chosen = estimator(method, graph=graph.value, probes=probes)
    network, text, place = model_and_text(
        model,
        calibration,
        documents=sequences,
        length=length,
        device=device,
        dtype=dtype,
        threads=threads,
        memory_gb=memory_gb,
    )
    size = microbatch_of(arguments)
    made = size.fit(lambda n: chosen.draw(network, text, range(draws), seed=seed, batch_size=n))
    estimate = moments(made, chosen.random)
    error = estimate.standard_error()
    entries = stratified(estimate.mean, parameters, seed)
    checked = pd.DataFrame(entries, columns=["tensor", "index"])
    for column, values in (("estimate", estimate.mean), ("standard_error", error)):
        checked[column] = [float(values[name].flatten()[i]) for name, i in entries]
    sampled = np.array([[float(draw[name].flatten()[i]) for name, i in entries] for draw in made])
    n = len(entries)
    at_once = microbatch_of(arguments, "sequences", len(text))
    for column, exact, bar in (
        ("exact_ggn", ggn_entries, "exact G"),
        ("exact_hessian", hessian_entries, "exact H"),
    ):
        checked[column] = at_once.fit(partial(exact_entries, exact, network, text, entries, bar))
    made_by = provenance(
        "cli.spotcheck",
        arguments,
        device=describe_device(place),
        notes={"documents": len(text)},
        microbatch=halved(size, at_once),
    )
    write_table(output, checked, SPOTCHECK, made_by)
    write_table(output_draws, by_draws(sampled, checked), SPOTCHECK_DRAWS, made_by)
    found = quality(checked)
    write_record(
        output_quality,
        {"method": method, "sequences": len(text), "draws": len(made)} | found,
        made_by,
    )
    print(
        f"{n} entries in {output}: Spearman {found['spearman_ggn']:.3f} with G, "
        f"{found['spearman_hessian']:.3f} with H; R gap {found['r_gap']:.3f}"
    )
