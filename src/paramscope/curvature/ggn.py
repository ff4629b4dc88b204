"""Diagonal of the generalised Gauss–Newton matrix by random draws, a few gradients each.

For the mean negative log-likelihood over W predicted tokens, G = Σ_t J_tᵀ (diag p_t − p_t p_tᵀ)
J_t / W with J_t the logits' Jacobian. A draw takes random r_t whose covariance is exactly the
middle factor (`labels`); the square of each sequence's own gradient g_s = Σ_t J_tᵀ r_t / √W has
the mean diag G_s, and their sum diag G. Squaring by sequence, not by batch, is what keeps the
noise at about √(2/(S·k)) for S sequences and k draws.

Three parts need less chance. The head's own term Σ p(1 − p)h²/W is exact. With a tied head
the embedding's draw is exact up to its cross term with the head's, which is drawn. And a
layer whose output at a token reaches no other token's logits takes its squares token by
token: the left-out products have mean zero.

Sources: Schraudolph 2002 for G; Bekas et al. 2007 for diagonals from probes; Dangel et al.
2020 (arXiv:1912.10985) for diagonals layer by layer from sampled output gradients. For the
softmax cross-entropy G is the Fisher information (Martens 2020, arXiv:1412.1193).
"""

from collections.abc import Collection

from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.curvature.passes import Drawn, Passes
from paramscope.models.sequences import Sequences
from paramscope.persample.embedding import without_padding
from paramscope.persample.graphs import Graph, Take
from paramscope.persample.layers import add_squares
from paramscope.persample.precision import accumulator
from paramscope.persample.tied_head import cross_term


def ggn_draws(
    model: PreTrainedModel,
    sequences: Sequences,
    draws: range,
    *,
    seed: int,
    batch_size: int,
    graph: Graph = "whole",
    local: Collection[str] | None = None,
) -> list[dict[str, Tensor]]:
    """diag G over `sequences`, once a draw: by parameter name, each of its parameter's shape.

    A draw's value hangs on (seed, sequence names, draw number) alone: never on the batch size
    or on which other draws are made with it. Draws share their forwards; each holds one
    accumulator of the model's size, in float32 at least.

    Args:
        graph: how the model's graph is held; of no effect on the values.
        local: as in `Passes`.

    Raises:
        UnsupportedModelError: as `Passes`.
    """
    passes = Passes(model, sequences, batch_size, graph, local)
    totals = [
        {name: accumulator(p, *p.shape) for name, p in model.named_parameters()} for _ in draws
    ]
    what = f"GGN draws {draws.start}-{draws.stop - 1}"
    for drawn in passes.batches(draws, seed, what):
        drawn.backward(_squares_into(totals, passes, drawn))
        for total in totals:
            total[passes.names[id(passes.head.weight)]] += drawn.head.weight
            if passes.head.bias is not None:
                total[passes.names[id(passes.head.bias)]] += drawn.head.bias
    for total in totals:
        for value in total.values():
            value /= sequences.n_predicted
    return totals


def _squares_into(totals: list[dict[str, Tensor]], passes: Passes, drawn: Drawn) -> Take:
    def take(k: int, name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        own = module.named_parameters(recurse=False)
        into = {suffix: totals[k][passes.names[id(p)]] for suffix, p in own}
        add_squares(name, module, a, g, name in passes.local, into)
        if passes.tied and module is passes.embedding:
            g = without_padding(a, g, module.padding_idx)
            cross_term(a, g, drawn.h, drawn.head.own[k], into["weight"])

    return take
