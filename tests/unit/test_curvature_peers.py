"""Our products with the Hessian and the Gauss–Newton matrix against another library's.

curvlinops (Dangel et al. 2025, arXiv:2501.19183) works with functorch over a stateless model, so
the two have no code in common but torch's own derivatives.
"""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paramscope.curvature.products import HessianProduct, ggn_entries
from paramscope.models.load import logits
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import padded
from tests.unit.conftest import make_tiny

curvlinops = pytest.importorskip("curvlinops")


class Scores(nn.Module):
    """Logits of all next tokens, [B·(T−1), V], of texts of one length [B, T]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return logits(self.model, ids)[:, :-1].flatten(0, 1)


@pytest.fixture(scope="module")
def case():
    model = make_tiny().double()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 24, (5, 7), generator=generator)
    text = padded(ids.tolist(), [f"t{i}" for i in range(5)])
    batches = [(part, part[:, 1:].flatten()) for part in ids.split(2)]
    return model, text, batches


def operator(case, kind):
    model, _, batches = case
    return getattr(curvlinops, kind)(
        Scores(model), nn.CrossEntropyLoss(), list(model.parameters()), batches,
        check_deterministic=False, batch_size_fn=lambda ids: 6 * len(ids),
    )  # fmt: skip


def central_difference(model, text, v, step=1e-5):
    """(∇L(θ + hv) − ∇L(θ − hv)) / 2h, with an error of h² and of rounding over h."""
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]

    def gradient(scale):
        parts = v.split([p.numel() for p in parameters])
        with torch.no_grad():
            for p, q, part in zip(parameters, kept, parts, strict=True):
                p.copy_(q + scale * part.view_as(p))
        found = torch.autograd.grad(mean_loss(model, text), parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    difference = (gradient(step) - gradient(-step)) / (2 * step)
    gradient(0.0)
    return difference


def test_products_with_the_hessian_agree(case):
    """But for the gains of layer norms, where torch's forward mode over a backward, which
    curvlinops takes, misses what central differences find and double backward gives.
    """
    model, text, _ = case
    theirs = operator(case, "HessianLinearOperator")
    ours = HessianProduct(model, text, batch_size=2)
    gains = torch.cat(
        [torch.full((p.numel(),), n.endswith("norm.weight")) for n, p in model.named_parameters()]
    )
    generator = torch.Generator().manual_seed(6)
    for _ in range(2):
        v = torch.randn(ours.size, generator=generator, dtype=torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            expected, got = theirs @ v, ours(v)
        # float64 through some twenty layers of sums of a few hundred terms
        torch.testing.assert_close(got[~gains], expected[~gains], rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(got, central_difference(model, text, v), rtol=1e-5, atol=1e-6)
        assert got[gains].norm() > 1e-2


def test_the_diagonal_of_the_gauss_newton_matrix_agrees(case):
    """Entry by entry, from unit vectors; one entry of every parameter, tied ones included."""
    model, text, _ = case
    theirs = operator(case, "GGNLinearOperator")
    places, entries, start = [], [], 0
    for name, parameter in model.named_parameters():
        middle = parameter.numel() // 2
        entries.append((name, middle))
        places.append(start + middle)
        start += parameter.numel()
    for (name, _), place, ours in zip(
        entries, places, ggn_entries(model, text, entries), strict=True
    ):
        v = torch.zeros(start, dtype=torch.float64)
        v[place] = 1
        with sdpa_kernel(SDPBackend.MATH):
            expected = float((theirs @ v)[place])
        assert ours == pytest.approx(expected, rel=1e-8, abs=1e-13), name
