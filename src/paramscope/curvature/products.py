"""Exact products with the Hessian and the Gauss–Newton matrix, as vectors or single entries.

Attention runs in SDPA's math kernel here: the fused ones have no second derivative, and
transformers' "eager" takes its softmax in float32 even in a float64 model.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from paramscope.memory import Microbatch, fitting
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences

Entry = tuple[str, int]  # parameter name, flat index


def loss_gradients(
    model: PreTrainedModel, batch: Sequences, parameters: Mapping[str, Tensor], share: float = 1.0
) -> dict[str, Tensor]:
    """The gradient of `share` times the batch's mean loss, by name, with the graph it came by.

    Zeros without a graph where the batch does not use a parameter.
    """
    with sdpa_kernel(SDPBackend.MATH):
        loss = mean_loss(model, batch) * share
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def hessian_entries(
    model: PreTrainedModel, sequences: Sequences, entries: Sequence[Entry]
) -> Iterator[float]:
    """H_ii of the mean loss over `sequences`, one forward and then a backward an entry.

    The gradient's graph is kept, and each entry differentiates one element of it.
    """
    all_parameters = dict(model.named_parameters())
    parameters = {name: all_parameters[name] for name in sorted({name for name, _ in entries})}
    gradients = loss_gradients(model, sequences, parameters)
    for name, index in entries:
        element = gradients[name].flatten()[index]
        if not element.requires_grad:  # the loss is linear in it
            yield 0.0
            continue
        row = torch.autograd.grad(element, parameters[name], retain_graph=True, allow_unused=True)
        yield 0.0 if row[0] is None else float(row[0].flatten()[index])


@torch.no_grad()
def ggn_entries(
    model: PreTrainedModel, sequences: Sequences, entries: Sequence[Entry]
) -> Iterator[float]:
    """G_ii of the mean loss over `sequences`: one forward-mode product an entry.

    G_ii = Σ_t var over p_t of (J_t e_i) / W: the variance, under the model's own next-token
    distribution, of how the logits move.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    mask = sequences.predicted
    positions = torch.arange(sequences.ids.shape[1], device=mask.device).expand_as(sequences.ids)
    for name, index in entries:

        def scores(value: Tensor, name: str = name) -> Tensor:
            inputs = {"input_ids": sequences.ids, "position_ids": positions, "use_cache": False}
            output: Tensor = functional_call(model, {name: value}, kwargs=inputs).logits
            return output[:, :-1]

        tangent = torch.zeros_like(parameters[name])
        tangent.view(-1)[index] = 1
        with sdpa_kernel(SDPBackend.MATH):
            z, moved = jvp(scores, (parameters[name],), (tangent,))[:2]
        p = z.softmax(-1)
        variance = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
        yield float((variance * mask).sum() / sequences.n_predicted)


class HessianProduct:
    """v ↦ Hv for the mean loss over `sequences`, summed over fixed microbatches.

    Vectors are flat, [N], in the order of `model.named_parameters()`. Where memory runs out, a
    product is begun anew with half of a `Microbatch`.
    """

    def __init__(
        self, model: PreTrainedModel, sequences: Sequences, batch_size: int | Microbatch
    ) -> None:
        self.model, self.sequences, self.batch_size = model, sequences, batch_size
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.size = sum(p.numel() for p in self.parameters)

    def __call__(self, vector: Tensor) -> Tensor:
        """Hv, [N].

        Raises:
            DeviceError: memory runs out, and the microbatch can't be halved any more.
        """
        return fitting(
            self.batch_size, lambda size: self._product(vector, size), len(self.sequences)
        )

    def _product(self, vector: Tensor, size: int) -> Tensor:
        parts = self.shaped(vector[:, None]).values()
        shaped = [v[0].to(p) for v, p in zip(parts, self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        for batch in self.sequences.batches(size):
            share = batch.n_predicted / self.sequences.n_predicted
            named = dict(zip(self.names, self.parameters, strict=True))
            gradients = loss_gradients(self.model, batch, named, share).values()
            along = torch.stack(
                [(g * v).sum() for g, v in zip(gradients, shaped, strict=True)]
            ).sum()
            products = torch.autograd.grad(along, self.parameters, materialize_grads=True)
            total += torch.cat([x.flatten() for x in products]).to(vector)
        return total

    def shaped(self, vectors: Tensor) -> dict[str, Tensor]:
        """Flat vectors [N, k] by parameter name, each [k, *the parameter's shape]."""
        parts = vectors.T.split([p.numel() for p in self.parameters], 1)
        return {
            name: part.reshape(-1, *p.shape)
            for name, part, p in zip(self.names, parts, self.parameters, strict=True)
        }
