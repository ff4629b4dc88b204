"""Diagonal of the true Hessian by Hutchinson's estimator, with a fresh probe for each sequence.

The mean loss is a sum of the sequences' shares, so H = Σ_s H_s, and for a probe v_s of
independent signs E[v_s ∘ (H_s v_s)] = diag H_s. A probe that serves all sequences at once has
the off-diagonal of the whole H as its noise; a fresh one each has that of every H_s, whose
squares add up to less, for the same number of products.

A sequence needs one forward and one gradient whose graph is kept; every draw then costs one
backward through that graph. Attention runs in SDPA's math kernel, as in `products`.

Sources: Hutchinson 1990 (doi:10.1080/03610919008812866) for the probes; Bekas, Kokiopoulou and
Saad 2007 (doi:10.1016/j.apnum.2007.01.003) for the diagonal; Pearlmutter 1994 for the product.
"""

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.curvature.products import loss_gradients
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import accumulator


def hutchinson_draws(
    model: PreTrainedModel, sequences: Sequences, draws: range, *, seed: int, batch_size: int
) -> list[dict[str, Tensor]]:
    """diag H over `sequences`, once a draw: by parameter name, each of its parameter's shape.

    Entries can be negative. A draw's value hangs on (seed, sequence names, draw number) alone.
    `batch_size` has no effect: sequences are taken one at a time, since each has its own probe,
    so one sequence's graph is what is held, beside an accumulator of the model's size a draw,
    in float32 at least.
    """
    parameters = dict(model.named_parameters())
    totals = [{name: accumulator(p, *p.shape) for name, p in parameters.items()} for _ in draws]
    progress = tqdm(sequences.batches(1), total=len(sequences), unit="sequence")
    progress.set_description(f"Hutchinson draws {draws.start}-{draws.stop - 1}")
    for sequence in progress:
        share = sequence.n_predicted / sequences.n_predicted
        gradients = loss_gradients(model, sequence, parameters, share)
        # The loss is linear in what has a gradient but no graph: no curvature there.
        names = [name for name, gradient in gradients.items() if gradient.requires_grad]
        for i, (draw, total) in enumerate(zip(draws, totals, strict=True)):
            chosen = [parameters[name] for name in names]
            v = _probe(chosen, seed_of(seed, "hutchinson", sequence.names[0], draw))
            products = torch.autograd.grad(
                [gradients[name] for name in names],
                chosen,
                v,
                retain_graph=i + 1 < len(totals),
                materialize_grads=True,
            )
            for name, sign, product in zip(names, v, products, strict=True):
                total[name].addcmul_(sign, product)
    return totals


def rademacher(size: int, seed: int) -> Tensor:
    """Independent signs ±1 with equal chances, [size], int8, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 256, (-(-size // 8),), generator=generator, dtype=torch.uint8)
    if isinstance(words, FakeTensor):
        return torch.empty(size, dtype=torch.int8)  # no values to unpack
    bits = np.unpackbits(words.numpy(), count=size)  # a draw of 8 signs: 7 times as fast
    return torch.from_numpy(bits.view(np.int8)).mul_(2).sub_(1)


def _probe(parameters: list[Tensor], seed: int) -> list[Tensor]:
    """Signs in each parameter's shape and format."""
    signs = rademacher(sum(p.numel() for p in parameters), seed)
    parts = signs.split([p.numel() for p in parameters])
    return [part.view_as(p).to(p) for part, p in zip(parts, parameters, strict=True)]
