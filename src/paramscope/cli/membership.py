"""Stage `membership`: how well attacks tell members from non-members."""

from enum import StrEnum
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
    Seed,
    Threads,
)


class LiraVariant(StrEnum):
    """Which shadow models judge a document."""

    online = "online"
    offline = "offline"


def membership(
    model: ModelFolder,
    base: Annotated[Path, Argument(help="The model before finetuning: the reference.")],
    member: Annotated[Path, Argument(help="Documents that the model was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it never saw.")],
    output: Output,
    output_summary: Annotated[Path, Option(help="Record to write.")],
    shadow: Annotated[
        list[Path] | None, Option(help="Table of a shadow model, for LiRA; repeat for more.")
    ] = None,
    lira_variant: Annotated[
        LiraVariant,
        Option(help="online: shadow models trained on a document and others; offline: others."),
    ] = LiraVariant.online,
    probe: Annotated[
        int,
        Option(min=0, help="First documents of each split, which shape classes and do not judge."),
    ] = 60,
    min_k: Annotated[
        float, Option(min=0, max=100, help="Percent of tokens in Min-K% and Min-K%++.")
    ] = 20,
    bootstrap: Annotated[int, Option(help="Resamples of documents behind an interval.")] = 1000,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Score every document by each attack, and judge the scores by ROC curves.

    Writes a row a document, and a record of AUC, true positive rates at 5% and 1% false
    positives, and loss gap, with 95% intervals from a bootstrap over documents.
    """
    arguments = dict(locals())
    import pandas as pd

    from paramscope.artifacts.digest import file_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.corpus.splits import judges
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.evaluation.lira import Variant, confidence, lira, stack
    from paramscope.evaluation.scores import (
        DOCUMENT_SCORES,
        LIRA,
        document_scores,
        membership_summary,
        zlib_bytes,
    )
    from paramscope.memory import halved
    from paramscope.models.folders import sequences_of
    from paramscope.models.load import load_model
    from paramscope.models.losses import document_losses, token_statistics
    from paramscope.models.sequences import load_tokenizer

    place = choose_device(device, threads)
    encode = load_tokenizer(model)
    load_tokenizer(base)
    if file_digest(model / "tokenizer.json") != file_digest(base / "tokenizer.json"):
        raise RequestError(
            f"{base} has another tokenizer than {model}: their losses a token can't be compared"
        )
    splits = [read_table(path, ["doc_id", "text"]) for path in (member, nonmember)]
    judging = [set(judges(split, probe)["doc_id"]) for split in splits]
    documents = pd.concat(splits, ignore_index=True)
    texts = sequences_of(encode, documents, length).to(place)
    size = microbatch_of(arguments)
    target = token_statistics(load_model(model, place, DTYPES[dtype]), texts, size, moments=True)
    before = token_statistics(load_model(base, place, DTYPES[dtype]), texts, size, moments=False)
    found = document_scores(
        target,
        texts.lengths,
        base_losses=document_losses(before.log_probs, texts.lengths),
        zlib_bytes=zlib_bytes(encode, documents["text"].tolist(), length).to(place),
        percent=min_k,
    )
    scores = pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()})
    scores.insert(0, "doc_id", documents["doc_id"])
    scores["member"] = scores.index < len(splits[0])
    scores["probe"] = ~scores["doc_id"].isin(judging[0] | judging[1])
    scores["n_tokens"] = texts.lengths.cpu().numpy()
    scores[LIRA] = float("nan")
    if shadow:
        tables = [read_table(path, ["doc_id", "trained_on", "confidence"]) for path in shadow]
        sure, trained_on = stack(tables, scores["doc_id"].tolist())
        own = confidence(-scores["loss"].to_numpy())
        scores[LIRA] = lira(own, sure, trained_on, Variant(lira_variant))
    summary = membership_summary(scores, bootstrap, seed)
    summary |= {"min_k": min_k, "shadows": len(shadow or []), "lira_variant": lira_variant}
    made_by = provenance(
        "cli.membership", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, scores, DOCUMENT_SCORES, made_by)
    write_record(output_summary, summary, made_by)
    for name, numbers in summary["scores"].items():
        print(
            f"{name}: AUC {numbers['auc']:.3f} [{numbers['auc_low']:.3f}, "
            f"{numbers['auc_high']:.3f}], TPR at 5% FPR {numbers['tpr_5']:.3f} "
            f"[{numbers['tpr_5_low']:.3f}, {numbers['tpr_5_high']:.3f}]"
        )
    print(f"scores of {len(scores)} documents in {output}, judged in {output_summary}")
