"""Planted memory: does a rule's score find the rows that alone were finetuned on the members?

    python tests/benchmarks/partition.py OUTPUT.parquet [--hidden 64 --layers 2 --seed 0]

A small OPT is trained on Python's own documentation. Then chosen rows of some tensors are
finetuned on new documents, the rest of the model frozen, and rescaled to the norms that they
had before: ‖w‖ alone would find them otherwise. For each score there is the area under the
ROC curve of finding the chosen rows among their tensors' rows (level row, mean over tensors),
and of finding the tensors that hold them among all (level tensor), beside its null: the same
score against chosen rows drawn at random, as many a tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel
from typer import Argument, Option, run

from paramscope.artifacts.digest import file_digest, seed_of
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import write_table
from paramscope.corpus.chunks import cut, is_prose
from paramscope.corpus.deduplicate import without_near_duplicates
from paramscope.corpus.sources import stdlib_documents
from paramscope.corpus.splits import document_id
from paramscope.curvature.ggn import ggn_draws
from paramscope.geometry.granularity import groups, places
from paramscope.geometry.membership import membership_table
from paramscope.models.load import Architecture, new_opt
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences, documents
from paramscope.models.tokenizer import train_tokenizer
from paramscope.models.training import Schedule, membership_judge, train

FOUND = pa.schema(
    [
        pa.field("planting", pa.int32(), nullable=False),
        pa.field("level", pa.string(), nullable=False),
        pa.field("score", pa.string(), nullable=False),
        pa.field("roc", pa.float64(), nullable=False),
        pa.field("null_mean", pa.float64(), nullable=False),
        pa.field("null_low", pa.float64(), nullable=False),
        pa.field("null_high", pa.float64(), nullable=False),
        pa.field("p", pa.float64(), nullable=False),
        pa.field("member_loss", pa.float64(), nullable=False),
        pa.field("nonmember_loss", pa.float64(), nullable=False),
        pa.field("attack_auc", pa.float64(), nullable=False),
    ]
)
# Each score is higher where its rule says W_sens.
SCORES = ("gate", "loss_gap", "contrast", "low_curvature", "weight_norm", "saliency")


@dataclass(frozen=True)
class Text:
    """Sequences to train the base on, to plant, and that no model sees."""

    public: Sequences
    members: Sequences
    nonmembers: Sequences
    vocabulary: int

    @staticmethod
    def of(texts: Sequence[str], held_out: int, vocabulary: int, length: int) -> "Text":
        """Texts in random order: `held_out` members, as many non-members, the rest public."""
        public = texts[2 * held_out :]
        encode = train_tokenizer(public, vocabulary)
        parts = (public, texts[:held_out], texts[held_out : 2 * held_out])
        made = [documents(encode, part, [document_id(t) for t in part], length) for part in parts]
        return Text(made[0], made[1], made[2], vocabulary)


def shuffled_chunks(folder: Path | None, seed: int, characters: int = 280) -> list[str]:
    """Chunks of the standard library's documentation without near-duplicates, at random."""
    chunks = [c for each in stdlib_documents(folder) for c in cut(each.text, characters)]
    kept = without_near_duplicates(filter(is_prose, chunks))
    order = np.random.default_rng(seed_of(seed, "chunks")).permutation(len(kept))
    return [kept[i] for i in order]


def trained_base(text: Text, architecture: Architecture, epochs: int, seed: int) -> PreTrainedModel:
    """An OPT model trained from scratch on the public text."""
    model = new_opt(architecture, text.vocabulary, seed_of(seed, "initialisation"))
    schedule = Schedule(epochs, 16, 3e-3, evaluate_every=10**9)
    judge = membership_judge(text.members, text.nonmembers, 64)
    train(model, text.public, schedule, judge, seed_of(seed, "base"))
    return model


def choose(
    model: PreTrainedModel, share: float, tensor_share: float, seed: int
) -> dict[str, list[str]]:
    """Rows drawn at random, `share` of each of `tensor_share` of the tensors; by tensor."""
    rng = np.random.default_rng(seed_of(seed, "chosen"))
    known = groups(model, "row")
    taken = rng.choice(len(known), max(1, round(tensor_share * len(known))), replace=False)
    return {
        known[i].name: [
            known[i].units[row]
            for row in rng.choice(known[i].size, max(1, round(share * known[i].size)), False)
        ]
        for i in sorted(taken)
    }


def plant(
    model: PreTrainedModel,
    units: Sequence[str],
    members: Sequences,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    batch: int = 16,
) -> None:
    """Finetune these rows alone on the members, in place, each kept at the norm it had.

    Adam without decay; after each step a row with its bias is scaled back to its norm.
    """
    where = places(model, units)
    parameters = {name: model.get_parameter(name) for name in where}
    parts = {n: p.detach().index_select(*where[n]).clone() for n, p in parameters.items()}
    before = {n: part.clone() for n, part in parts.items()}
    for part in parts.values():
        part.requires_grad_()
    optimizer = torch.optim.Adam(parts.values(), learning_rate)
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed_of(seed, "planting", step))
        drawn = torch.randperm(len(members), generator=generator)[:batch]
        one = Sequences(members.ids[drawn], members.lengths[drawn], ("",) * len(drawn))
        found = torch.autograd.grad(mean_loss(model, one), list(parameters.values()))
        for (name, part), gradient in zip(parts.items(), found, strict=True):
            part.grad = gradient.index_select(*where[name])
        optimizer.step()
        with torch.no_grad():
            _match_norms(parts, before, where)
            for name, parameter in parameters.items():
                parameter.index_copy_(*where[name], parts[name])


def scores(model: PreTrainedModel, text: Text, probe: int, seed: int) -> pd.DataFrame:
    """Every rule's score of rows and tensors: columns unit, granularity, tensor, and `SCORES`.

    Gates, loss gaps and contrasts are of the first `probe` members and non-members, curvature
    is of the other non-members.
    """
    members, nonmembers = text.members[:probe], text.nonmembers[:probe]
    found = membership_table(model, members, nonmembers, draws=4, seed=seed, batch_size=32)
    found = found.set_index(["granularity", "unit"])
    draws = ggn_draws(model, text.nonmembers[probe:], range(8), seed=seed, batch_size=16)
    diagonal = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    for group in groups(model, "row") + groups(model, "tensor"):
        w, h = group.gather(weights), group.gather(diagonal)
        own = [(group.granularity, unit) for unit in group.units]
        found.loc[own, "low_curvature"] = -h.mean(1).numpy()
        found.loc[own, "weight_norm"] = w.square().mean(1).sqrt().numpy()
        found.loc[own, "saliency"] = (0.5 * h * w.square()).sum(1).numpy()
    return found.reset_index()[["unit", "granularity", "tensor", *SCORES]]


def roc_by_tensor(
    values: pd.Series, tensors: pd.Series, chosen: np.ndarray, draws: int, seed: int
) -> tuple[float, np.ndarray]:
    """Area under the ROC curve, mean over tensors with a chosen unit; and a null's, [draws].

    The null takes as many units of each tensor at random. Equal values count one half.
    """
    areas, null = [], []
    rng = np.random.default_rng(seed_of(seed, "null"))
    for _, rows in values.groupby(tensors):
        ranks = rankdata(rows)
        inside = chosen[values.index.get_indexer(rows.index)]
        k, n = int(inside.sum()), len(rows)
        if not 0 < k < n:
            continue
        random = np.array([rng.choice(n, k, replace=False) for _ in range(draws)])
        lowest, pairs = k * (k + 1) / 2, k * (n - k)
        areas.append((ranks[inside].sum() - lowest) / pairs)
        null.append((ranks[random].sum(1) - lowest) / pairs)
    return float(np.mean(areas)), np.mean(null, axis=0)


def partition(
    output: Annotated[Path, Argument(help="Table to write: a row a planting, level and score.")],
    hidden: Annotated[int, Option(help="Width of the residual stream.")] = 64,
    layers: Annotated[int, Option(help="Decoder layers.")] = 2,
    epochs: Annotated[int, Option(help="Passes of the base over the public text.")] = 3,
    documents: Annotated[int, Option(help="Members, and non-members.")] = 120,
    probe: Annotated[int, Option(help="The first of each that the scores may see.")] = 80,
    share: Annotated[float, Option(help="Chosen rows of a tensor.")] = 0.1,
    tensor_share: Annotated[float, Option(help="Tensors that have chosen rows.")] = 0.5,
    steps: Annotated[int, Option(help="Of finetuning the chosen rows.")] = 300,
    learning_rate: Annotated[float, Option(help="Of that finetuning.")] = 3e-3,
    plantings: Annotated[int, Option(help="How often rows are chosen anew.")] = 5,
    null_draws: Annotated[int, Option(help="Random choices behind the null.")] = 1000,
    seed: Annotated[int, Option(help="Seed of everything drawn.")] = 0,
    threads: Annotated[int, Option(help="CPU threads within operations.")] = 1,
) -> None:
    """Measure how well each rule's score finds planted memory."""
    arguments = dict(locals())
    torch.set_num_threads(threads)
    text = Text.of(shuffled_chunks(None, seed), documents, vocabulary=2048, length=64)
    size = Architecture(hidden, layers, heads=4, ffn=4 * hidden, positions=64)
    base = trained_base(text, size, epochs, seed)
    weights = {name: p.detach().clone() for name, p in base.state_dict().items()}
    judge = membership_judge(text.members, text.nonmembers, 64)
    rows = []
    for planting in range(plantings):
        base.load_state_dict(weights)
        own = seed_of(seed, planting)
        chosen = choose(base, share, tensor_share, own)
        units = [unit for units in chosen.values() for unit in units]
        plant(base, units, text.members, steps=steps, learning_rate=learning_rate, seed=own)
        member, nonmember, attack = judge(base)
        print(f"planting {planting}: losses {member:.3f}, {nonmember:.3f}, AUC {attack:.3f}")
        every = scores(base, text, probe, own)
        for level, wanted in (("row", units), ("tensor", list(chosen))):
            table = every[every["granularity"] == level].reset_index(drop=True)
            inside = table["unit"].isin(wanted).to_numpy()
            beside = table["tensor"] if level == "row" else pd.Series("model", table.index)
            for score in SCORES:
                roc, null = roc_by_tensor(table[score], beside, inside, null_draws, own)
                low, high = np.quantile(null, (0.025, 0.975))
                p = (1 + (null >= roc).sum()) / (1 + null_draws)
                rows.append((planting, level, score, roc, null.mean(), low, high, p,
                             member, nonmember, attack))  # fmt: skip
                print(f"  {level:6} {score:13} ROC {roc:.3f}, null {low:.3f} to {high:.3f}")
    notes = {"partition.py": file_digest(Path(__file__))[:16]}
    made_by = provenance("geometry.membership", arguments, notes=notes)
    write_table(output, pd.DataFrame(rows, columns=FOUND.names), FOUND, made_by)


def _match_norms(
    parts: dict[str, Tensor], before: dict[str, Tensor], where: dict[str, tuple[int, Tensor]]
) -> None:
    """Scale each row with its bias to the norm that it has in `before`, in place."""
    for weight in [name for name in parts if name.endswith(".weight")]:
        own = [n for n in (weight, weight.removesuffix("weight") + "bias") if n in parts]
        rows = {
            n: (parts[n].movedim(where[n][0], 0), before[n].movedim(where[n][0], 0)) for n in own
        }
        now, then = (
            sum(pair[i].reshape(len(pair[i]), -1).square().sum(1) for pair in rows.values())
            for i in (0, 1)
        )
        for row, _ in rows.values():
            row.mul_((then / now).sqrt().view(-1, *[1] * (row.dim() - 1)))


if __name__ == "__main__":
    run(partition)
