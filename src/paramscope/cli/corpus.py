"""The stage `corpus`: from a source of text to five splits that a blind gate has passed."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import OutputFolder, Seed


class Source(StrEnum):
    """Where the text comes from."""

    stdlib = "stdlib"
    local = "local"
    hub = "hub"


def corpus(
    output: OutputFolder,
    source: Annotated[
        Source,
        Option(
            help="stdlib: Python's own documentation; local: the files of --path; hub: files of "
            "--dataset."
        ),
    ] = Source.stdlib,
    dataset: Annotated[
        str, Option(help="Dataset on the hub, or a local folder laid out like it.")
    ] = "",
    path: Annotated[
        list[Path] | None,
        Option(help="File of text (.txt, .raw, ..., .jsonl, .parquet); may be repeated."),
    ] = None,
    seed: Seed = 0,
    chunk_characters: Annotated[int, Option(min=20, help="Characters a document at most.")] = 280,
    public: Annotated[int, Option(min=1, help="Documents that train the base.")] = 4000,
    member: Annotated[int, Option(min=10, help="Documents that finetune the target.")] = 300,
    nonmember: Annotated[int, Option(min=10, help="Documents that no model sees.")] = 300,
    calibration: Annotated[int, Option(min=1, help="Documents for curvature and sparsity.")] = 128,
    evaluation: Annotated[int, Option(min=1, help="Documents for perplexity.")] = 96,
    permutations: Annotated[int, Option(min=1, help="Permutations behind the gate's p.")] = 200,
    alpha: Annotated[
        float, Option(min=0.001, max=0.5, help="The gate fails at a Holm-corrected p up to this.")
    ] = 0.05,
    deals: Annotated[
        int, Option(min=1, help="Deals tried, in order, until one passes the gate.")
    ] = 3,
    allow_failed_gate: Annotated[
        bool, Option("--allow-failed-gate", help="Go on after a failed gate, and record it.")
    ] = False,
) -> None:
    """Make the documents: read a source, cut it, drop near-duplicates, deal five splits.

    Writes public, member, nonmember, calibration and evaluation .parquet and gate.json.
    """
    arguments = dict(locals())
    from dataclasses import asdict

    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.corpus.chunks import cut, is_prose
    from paramscope.corpus.deduplicate import without_near_duplicates
    from paramscope.corpus.gate import blind_gate
    from paramscope.corpus.sources import (
        describe,
        hub_files,
        local_documents,
        stdlib_documents,
    )
    from paramscope.corpus.splits import DOCUMENTS, deal
    from paramscope.errors import RequestError

    if source is Source.stdlib and path:
        raise RequestError("--path is for the local source: add --source local, or leave it out")
    if dataset and source is not Source.hub:
        raise RequestError("--dataset is for the hub: add --source hub, or leave it out")
    if source is Source.stdlib:
        documents = stdlib_documents()
    else:
        files = hub_files(dataset, list(map(str, path or []))) if source is Source.hub else path
        documents = local_documents(files or [])
    chunks = [chunk for each in documents for chunk in cut(each.text, chunk_characters)]
    prose = [chunk for chunk in chunks if is_prose(chunk)]
    texts = without_near_duplicates(prose)
    counts = {
        "public": public,
        "member": member,
        "nonmember": nonmember,
        "calibration": calibration,
        "evaluation": evaluation,
    }
    failed: list[str] = []
    for number in range(deals):  # a fair deal fails by chance now and then: deal again, and say so
        splits = deal(texts, counts, seed_of(seed, "deal", number) if number else seed)
        gate = blind_gate(
            list(splits["member"]["text"]),
            list(splits["nonmember"]["text"]),
            permutations=permutations,
            alpha=alpha,
            seed=seed,
        )
        if gate.passed:
            break
        failed.append(gate.verdict())
    if not gate.passed and not allow_failed_gate:
        raise RequestError(
            f"the blind gate fails {deals} deals, the last with {gate.verdict()}: text alone tells "
            "members from non-members.\n"
            "Try another --seed or source; --allow-failed-gate goes on with a record of it"
        )
    sizes = {"chunks": len(chunks), "prose": len(prose), "distinct": len(texts)}
    made_by = provenance("cli.corpus", arguments, notes=describe(documents) | sizes)
    for split, frame in splits.items():
        write_table(output / f"{split}.parquet", frame, DOCUMENTS, made_by)
    write_record(output / "gate.json", asdict(gate) | {"failed_deals": failed}, made_by)
    print(
        f"{len(documents)} sources, {len(chunks)} chunks, {len(prose)} of them prose, "
        f"{len(texts)} without near-duplicates, {sum(counts.values())} dealt"
    )
    for verdict in failed:
        print(f"a deal failed the blind gate: {verdict}")
    print(f"blind gate {'passed' if gate.passed else 'FAILED'}: {gate.verdict()}")
    print(f"documents and gate.json are in {output}")
