"""Stage `plan_accuracy`: how near plans come to what real runs take on this machine's CPU."""

from typing import Annotated

from typer import Option

from paramscope.cli.options import OutputFolder, Threads


def plan_accuracy(
    output: OutputFolder,
    strategy: Annotated[
        list[str] | None, Option(help="Run its cases alone; repeat for more; all unless told.")
    ] = None,
    threads: Threads = 2,
) -> None:
    """Hold plans to real runs of every strategy: accuracy.parquet and accuracy.md.

    Each case runs at random weights in a process of its own, counted by torch's profiler.
    """
    arguments = dict(locals())
    import os
    from concurrent.futures import ThreadPoolExecutor

    os.environ["TQDM_DISABLE"] = "1"  # the stages' own bars: an estimate does not do their work
    import pandas as pd

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.devices import choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.planner.accuracy import ACCURACY, CASES, document, row, verdict_of
    from paramscope.planner.needs import process_bytes
    from paramscope.planner.real_run import run_alone

    cases = [case for case in CASES if strategy is None or case.strategy in strategy]
    missing = set(strategy or ()) - {case.strategy for case in cases}
    if missing:
        known = ", ".join(dict.fromkeys(case.strategy for case in CASES))
        raise RequestError(f"no case of {', '.join(sorted(missing))}; there are some of {known}")
    device = describe_device(choose_device("cpu", threads))  # its threads count in an estimate
    process = process_bytes()
    rows = []
    with ThreadPoolExecutor(1) as pool:  # real runs go on while estimates are made
        runs = [pool.submit(run_alone, case, threads) for case in cases]
        try:
            for number, (case, ran) in enumerate(zip(cases, runs, strict=True), start=1):
                verdict = verdict_of(case, process)
                rows.append(row(case, verdict, ran.result(), threads))
                print(
                    f"{number}/{len(cases)} {case.strategy} {case.workload.name}: predicted "
                    f"{verdict.estimate.peak_bytes:,} bytes, {rows[-1]['error']:+.3%}",
                    flush=True,
                )
        finally:
            pool.shutdown(cancel_futures=True)
    frame = pd.DataFrame(rows)
    made_by = provenance("cli.plan_accuracy", arguments, device=device)
    write_table(output / "accuracy.parquet", frame, ACCURACY, made_by)
    with atomic(output / "accuracy.md") as partial:
        text = document(frame, device)
        partial.write_text(f"{text}\n<!-- made by: {made_by.command} -->\n", encoding="utf-8")
    errors = frame["error"].abs()
    print(
        f"{len(frame)} cases: error at most {errors.max():.3%}, median {errors.median():.3%}; "
        f"{frame['false_fit'].sum()} false fits"
    )
