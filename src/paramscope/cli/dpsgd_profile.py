"""Stage `dpsgd_profile`: what one clipping method costs on one workload, in memory and time."""

from typing import Annotated

from typer import Option

from paramscope.cli.options import DeviceName, Dtype, DtypeName, Output, Seed, Threads


def dpsgd_profile(
    output: Output,
    method: Annotated[
        str,
        Option(
            help="vanilla, opacus_hooks, opacus_ghost, ghost, flash, bk, per_layer or micro; then "
            "+chunk (logits by chunks), +checkpoint (blocks run again in the backward), +bf16."
        ),
    ] = "bk",
    workload: Annotated[str, Option(help="What results call the workload.")] = "decoder-small",
    family: Annotated[str, Option(help="llama, opt or gpt2.")] = "llama",
    hidden: Annotated[int, Option(help="Width of the residual stream.")] = 256,
    layers: Annotated[int, Option(help="Decoder layers.")] = 4,
    heads: Annotated[int, Option(help="Attention heads; divides hidden.")] = 4,
    ffn: Annotated[int, Option(help="Neurons of a layer's MLP.")] = 688,
    vocabulary: Annotated[int, Option(help="Tokens of the vocabulary.")] = 2000,
    length: Annotated[int, Option(help="Tokens a sample.")] = 512,
    batch: Annotated[int, Option(help="Samples a step.")] = 2,
    tied: Annotated[bool, Option(help="The head's weight is the embedding's.")] = False,
    chunk_tokens: Annotated[int, Option(help="Tokens a chunk of +chunk.")] = 128,
    trainable: Annotated[
        str, Option(help="Regular expression of the names of trained parameters; empty: all.")
    ] = "",
    max_norm: Annotated[float, Option(help="Norm that a sample's gradient is clipped to.")] = 1.0,
    noise_multiplier: Annotated[float, Option(help="Noise's deviation over that norm.")] = 1.0,
    warmup: Annotated[int, Option(min=1, help="Iterations before any that counts.")] = 2,
    iterations: Annotated[int, Option(min=3, help="Iterations that are timed.")] = 10,
    predict: Annotated[
        bool, Option(help="Where the device is a CPU, compute the memory on fake tensors.")
    ] = False,
    record_refusal: Annotated[
        bool, Option(help="Where the method can't do the workload, write that as the result.")
    ] = False,
    wait: Annotated[
        bool, Option(help="Wait for a GPU that holds another process's memory.")
    ] = False,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Profile a clipping method: memory by part and phase, the peak, and time an iteration."""
    arguments = dict(locals())
    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.dpsgd.cases import Case
    from paramscope.dpsgd.privacy import Privacy
    from paramscope.dpsgd.profile import measure, refusal
    from paramscope.dpsgd.profile import predict as predicted
    from paramscope.dpsgd.variants import variant_of
    from paramscope.dpsgd.workloads import Workload
    from paramscope.errors import RequestError
    from paramscope.nvml import require_idle

    asked = variant_of(method, chunk_tokens)
    place = choose_device(device, threads)
    require_idle(place, wait)
    shape = Workload(workload, family, hidden, layers, heads, ffn, vocabulary, length, batch, tied)
    case = Case(
        shape,
        asked.method,
        asked.options,
        Privacy(max_norm, noise_multiplier, batch),
        DTYPES["bfloat16" if asked.bf16 else dtype],
        trainable,
        seed_of(seed, "dpsgd_profile", workload),
    )
    try:
        if predict and place.type == "cpu":
            record = predicted(case)
        else:
            record = measure(case, place, warmup, iterations)
    except RequestError as error:
        if not record_refusal:
            raise
        record = refusal(case, place, str(error))
    made_by = provenance("cli.dpsgd_profile", arguments, device=describe_device(place))
    write_record(output, {"variant": method} | record, made_by)
    if record["refused"]:
        print(f"{method} can't do {workload}: {record['refused']}")
        return
    timing = record["timing"]
    took = f", {timing['median_s']:.4g} s an iteration" if timing else ", predicted"
    print(f"{method} on {workload}: peak {record['peak']['bytes'] / 1e6:,.1f} MB{took}")
