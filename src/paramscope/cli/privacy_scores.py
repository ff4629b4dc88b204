"""Stage `privacy_scores`: what private models are worth and give away, by their base and target."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import (
    BatchSize,
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    Output,
    Seed,
    Threads,
)


def privacy_scores(
    output: Output,
    base: Annotated[Path, Option(help="Model folder that has seen no member.")],
    target: Annotated[Path, Option(help="Model folder finetuned on the members, not privately.")],
    private: Annotated[
        list[Path], Option(help="Model folder from `paramscope dp-finetune`; repeat for more.")
    ],
    member: Annotated[Path, Option(help="Documents that target and private were finetuned on.")],
    nonmember: Annotated[Path, Option(help="Documents that none of them saw.")],
    evaluation: Annotated[Path, Option(help="Text that perplexity is told of.")],
    model: Annotated[str, Option(help="Name of the model, for the record.")] = "",
    bootstrap: Annotated[
        int, Option(help="Resamples of windows and of documents behind an interval.")
    ] = 1000,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Measure perplexity and the loss attack's AUC of base, private models and target.

    Writes a record with 95% intervals from a bootstrap over windows and over documents, the same
    resamples for all models. auc_bound is of one document's membership against the randomness of
    runs, at the budget that was spent; the AUC measured, of members against non-members in one
    run, is its average counterpart. auc_bound_one_run, the looser, holds for that AUC's
    expectation to the letter.
    """
    arguments = dict(locals())
    from dataclasses import asdict

    from paramscope.artifacts.digest import file_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.cli.inputs import sequences_for, windows_for
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.dpsgd.utility import Budget, yardstick
    from paramscope.errors import RequestError
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.models.sequences import load_tokenizer

    place = choose_device(device, threads)
    if not private:
        raise RequestError("no private model is given; name one by --private")
    budgets = [read_record(folder / "privacy.json") for folder in private]
    members = file_digest(member)
    for folder, told in zip(private, budgets, strict=True):
        if members not in told["provenance"]["inputs"].values():
            raise RequestError(f"{folder} was not finetuned on {member}; give its members")
        if told["delta"] != budgets[0]["delta"]:
            raise RequestError(
                f"{folder} has delta {told['delta']:g}, and {private[0]} has "
                f"{budgets[0]['delta']:g}; give models of one delta"
            )
    load_tokenizer(base)
    for folder in (target, *private):
        load_tokenizer(folder)
        if file_digest(folder / "tokenizer.json") != file_digest(base / "tokenizer.json"):
            raise RequestError(
                f"{folder} has another tokenizer than {base}: their perplexities can't be compared"
            )
    size = microbatch_of(arguments)
    judged = yardstick(
        windows_for(base, evaluation, length, place),
        *(sequences_for(base, split, length, place) for split in (member, nonmember)),
        bootstrap=bootstrap,
        seed=seed,
        batch_size=size,
    )
    keys = ("epsilon_spent", "delta", "noise_multiplier", "steps")
    models = [("base", base, Budget.of(0.0, 0.0, None, 0))]
    models += [
        ("private", folder, Budget.of(*(told[key] for key in keys)))
        for folder, told in zip(private, budgets, strict=True)
    ]
    models += [("target", target, Budget())]
    rows = []
    for name, folder, budget in models:
        scores = judged.scores(load_model(folder, place, DTYPES[dtype]))
        rows.append({"name": name, **asdict(budget), **asdict(scores)})
        spent = "no privacy" if budget.epsilon is None else f"epsilon {budget.epsilon:.3g}"
        bound = "" if budget.auc_bound is None else f"; bound {budget.auc_bound:.3f}"
        print(
            f"{name}, {spent}: perplexity {scores.perplexity:,.2f} [{scores.perplexity_low:,.2f}, "
            f"{scores.perplexity_high:,.2f}], AUC {scores.auc:.3f} [{scores.auc_low:.3f}, "
            f"{scores.auc_high:.3f}]{bound}"
        )
    record = {
        "model": model,
        "delta": budgets[0]["delta"],
        "n_members": len(judged.members),
        "n_nonmembers": len(judged.nonmembers),
        "attack": "loss",
        "bootstrap": bootstrap,
        "rows": rows,
    }
    made_by = provenance(
        "cli.privacy_scores", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_record(output, record, made_by)
    print(f"scores of {len(rows)} models in {output}")
