"""Stage `results`: the study's numbers in one record and one table."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output

Paths = list[Path] | None


def results(
    output: Output,
    output_csv: Annotated[Path, Option(help="CSV to write: a row a rule, class, sigma and seed.")],
    model: Annotated[str, Option(help="Name of the model.")],
    units: Annotated[Path, Option(help="Table of units.")],
    quality: Annotated[Path, Option(help="Record of the embedding's quality.")],
    partition: Annotated[list[Path], Option(help="Classes by one rule; repeat for more.")],
    responses: Annotated[Paths, Option(help="Responses by one rule; repeat for more.")] = None,
    statistics: Annotated[Paths, Option(help="Statistics of one rule; repeat for more.")] = None,
    curvature_summary: Annotated[Path | None, Option(help="Table of curvature a tensor.")] = None,
    spotcheck: Annotated[Path | None, Option(help="Record of the curvature's spot check.")] = None,
    removal: Annotated[
        Path | None, Option(help="Record of what removal of directions takes.")
    ] = None,
    tensor_responses: Annotated[
        Path | None, Option(help="Table of responses to noise in each weight.")
    ] = None,
    membership: Annotated[Path | None, Option(help="Record of membership inference.")] = None,
    gate: Annotated[Path | None, Option(help="Record of the corpus's blind gate.")] = None,
    target_training: Annotated[Path | None, Option(help="Table of the target's losses.")] = None,
    base_training: Annotated[Path | None, Option(help="Table of the base's losses.")] = None,
    benchmarks: Annotated[str | None, Option(help="Folder of Snakemake's benchmarks.")] = None,
) -> None:
    """Gather the study: counts a class, separation scores, quality of curvature and embedding."""
    arguments = dict(locals())
    from dataclasses import asdict

    import pandas as pd

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.artifacts.tables import read_table, read_table_provenance
    from paramscope.machine import machine
    from paramscope.response import results as study
    from paramscope.response.findings import findings, findings_record

    def content(path: Path) -> dict[str, object]:
        return {key: value for key, value in read_record(path).items() if key != "provenance"}

    def benchmark_rows(folder: Path) -> dict[str, pd.DataFrame]:
        """Rows by stage: STAGE.tsv, or STAGE/SHARD.tsv of a stage in shards."""
        files: dict[str, list[pd.DataFrame]] = {}
        for path in sorted(folder.rglob("*.tsv")):
            stage = path.relative_to(folder).parts[0].removesuffix(".tsv")
            files.setdefault(stage, []).append(pd.read_csv(path, sep="\t"))
        return {stage: pd.concat(parts) for stage, parts in files.items()}

    source = read_table_provenance(units)
    record: dict[str, object] = {
        "model": model,
        "synthetic": bool(source["synthetic"]),
        "device": source["device"],
        "seed": source["seed"],
        "machine": machine(),
        "units": study.units_record(read_table(units)),
        "embedding": content(quality),
        "partitions": study.partitions_record({p.stem: read_table(p) for p in partition}),
    }
    if gate is not None:
        record["blind_gate"] = content(gate)
    if removal is not None:
        record["removal"] = content(removal)
    if tensor_responses is not None:
        from paramscope.response.tensors import foresight  # loads torch: planted units need none

        record["foresight"] = asdict(foresight(read_table(tensor_responses)))
    if membership is not None:
        record["membership"] = study.membership_record(read_record(membership))
    for name, path in (("base", base_training), ("target", target_training)):
        if path is not None:
            record[name] = study.training_record(read_table(path))
    if target_training is not None:
        trained = read_table_provenance(target_training)
        record |= {key: trained[key] for key in ("device", "seed", "versions")}
    if curvature_summary is not None and spotcheck is not None:
        summary = read_table(curvature_summary)
        record["curvature"] = study.curvature_record(summary, read_record(spotcheck))
    rules = {path.name.removesuffix(".statistics.json"): path for path in statistics or []}
    tested = {rule: read_record(path) for rule, path in rules.items()}
    record["responses"] = study.responses_record(tested)
    record["findings"] = findings_record(findings(list(tested.values())))
    if benchmarks is not None:
        record["stages"] = study.stages_record(benchmark_rows(Path(benchmarks)))
    rows = study.response_rows({path.stem: read_table(path) for path in responses or []})
    made_by = provenance("cli.results", arguments, synthetic=bool(source["synthetic"]))
    write_record(output, record, made_by)
    with atomic(output_csv) as partial:
        rows.to_csv(partial, index=False)
    print(f"{len(rows)} rows in {output_csv}, the study's record in {output}")
