"""Stage `activation_sparsity`: how often each unit is silent."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    BatchSize,
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    ModelFolder,
    Output,
    Threads,
)


def activation_sparsity(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that activations are taken over.")],
    output: Output,
    threshold: Annotated[float, Option(help="Silent is |a| up to this, after the ReLU.")] = 1e-5,
    batch: BatchSize = 32,
    length: Length = 64,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Count the tokens at which each unit's activation is zero."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import describe_device
    from paramscope.geometry.sparsity import SPARSITY
    from paramscope.geometry.sparsity import activation_sparsity as count
    from paramscope.memory import halved

    network, text, place = model_and_text(
        model, calibration, length=length, device=device, dtype=dtype, threads=threads
    )
    size = microbatch_of(arguments)
    table = size.fit(lambda n: count(network, text, threshold, n))
    made_by = provenance(
        "cli.activation_sparsity", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, table, SPARSITY, made_by)
    activated = table[table["after_activation"]]
    print(
        f"{len(table)} units over {int(table['n_tokens'].max())} tokens in {output}; after an "
        f"activation function: mean sparsity {activated['sparsity'].mean():.3f}, "
        f"{int((activated['sparsity'] == 1).sum())} of {len(activated)} dead"
    )
