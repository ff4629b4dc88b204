"""The oracle is autograd, one sample at a time, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paramscope.persample import embedding, linear, tied_head
from paramscope.persample.capture import capture
from paramscope.persample.layers import UnknownLayerError, check_known, squared_sums

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64 sums of a few thousand terms of order one
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
shapes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_autograd(module, inputs, g):
    """Per-sample gradients of each parameter, [B, ...], one backward a sample."""
    rows = []
    for x, gs in zip(inputs, g, strict=True):
        output = module(x[None])
        rows.append(torch.autograd.grad((output * gs[None]).sum(), list(module.parameters())))
    names = [name for name, _ in module.named_parameters()]
    return {n: torch.stack(parts) for n, parts in zip(names, zip(*rows, strict=True), strict=True)}


def close(module):
    """transformers' RMSNorm works in float32 whatever it is given."""
    return FLOAT32 if type(module).__name__ == "LlamaRMSNorm" else CLOSE


def modules(d, p):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.pytorch_utils import Conv1D

    return [
        nn.Linear(d, p), nn.Linear(d, p, bias=False), Conv1D(p, d), nn.LayerNorm(d),
            nn.LayerNorm(d, bias=False), nn.RMSNorm(d), LlamaRMSNorm(d)]  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_squares_of_every_kind_are_autograds(shape):
    B, T, d, p = shape
    for module in modules(d, p):
        module = module.double()
        x = randn(B, T, d, seed=1)
        g = randn(*module(x).shape, seed=2)
        gradients = by_autograd(module, x, g)
        sums = squared_sums("m", module, x, g, local=False)
        assert sums.keys() == gradients.keys()
        for name, value in sums.items():
            expected = gradients[name].square().sum(0)
            torch.testing.assert_close(value, expected, **close(module))


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_token_squares_are_those_of_one_token_samples(shape):
    B, T, d, p = shape
    for module in modules(d, p):
        module = module.double()
        x = randn(B, T, d, seed=1)
        g = randn(*module(x).shape, seed=2)
        alone = squared_sums(
            "m", module, x.reshape(B * T, 1, d), g.reshape(B * T, 1, -1), local=False
        )
        for name, value in squared_sums("m", module, x, g, local=True).items():
            torch.testing.assert_close(value, alone[name], **CLOSE)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_embedding_squares_are_autograds(shape):
    B, T, rows, d = shape
    ids = torch.randint(rows, (B, T), generator=torch.Generator().manual_seed(3))
    module = nn.Embedding(rows, d).double()
    g = randn(B, T, d, seed=2)
    expected = by_autograd(module, ids, g)["weight"].square().sum(0)
    torch.testing.assert_close(
        embedding.squared_sum(ids, g, torch.zeros_like(expected)), expected, **CLOSE
    )


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_tied_square_is_the_square_of_the_sum(shape):
    B, T, V, d = shape
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
    g, h, r = randn(B, T, d, seed=4), randn(B, T, d, seed=5), randn(B, T, V, seed=6)
    own = by_autograd(nn.Embedding(V, d).double(), ids, g)["weight"]
    head = r.transpose(1, 2) @ h
    expected = (own + head).square().sum(0) - own.square().sum(0) - head.square().sum(0)
    crossed = torch.zeros_like(expected)
    tied_head.cross_term(ids, g, h, tied_head.own_tokens(r, ids), crossed)
    torch.testing.assert_close(crossed, expected, **CLOSE)


def test_softmax_term_is_the_expected_square_over_labels():
    # Σ_y p_y (onehot_y − p)² h², the Fisher information of the head, by full enumeration.
    p, h = randn(2, 3, 5, seed=7).softmax(-1), randn(2, 3, 4, seed=8)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for s in range(2):
        for t in range(3):
            for y in range(5):
                r = nn.functional.one_hot(torch.tensor(y), 5) - p[s, t]
                expected += p[s, t, y] * torch.outer(r, h[s, t]).square()
    torch.testing.assert_close(tied_head.softmax_ggn(p, h), expected, **CLOSE)


def test_chunks_change_nothing():
    x, g = randn(5, 6, 7), randn(5, 6, 3)
    torch.testing.assert_close(
        linear.squared_sum(x, g, chunk_bytes=1), linear.squared_sum(x, g), rtol=1e-12, atol=1e-12
    )


def test_bfloat16_is_summed_in_float32():
    x, g = randn(300, 1, 2).bfloat16(), randn(300, 1, 2, seed=1).bfloat16()
    total = linear.squared_sum(x, g)
    assert total.dtype == torch.float32
    # Each product is rounded to bf16 once (2^-8 relative); a bf16 sum of 300 would lose far more.
    expected = linear.squared_sum(x.double(), g.double())
    torch.testing.assert_close(total.double(), expected, rtol=2**-7, atol=0)


def test_rms_norms_own_epsilon_is_that_of_the_format_it_computes_in():
    """At inputs near √eps the wrong one is plain to see."""
    module = nn.RMSNorm(4).bfloat16()
    x = (0.01 * randn(3, 2, 4)).bfloat16()
    (ours,) = (squared_sums("m", module, x, module(x), local=False)["weight"],)
    expected = (module(x).double() ** 2).sum(1).square().sum(0)  # gain 1: the output is x̂
    torch.testing.assert_close(ours.double(), expected, rtol=0.05, atol=0)


class Twice(nn.Module):
    """One linear layer called twice on the way, and once on flattened tokens."""

    def __init__(self):
        super().__init__()
        self.shared, self.once = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.shared(x).flatten(0, 1))
        return self.once(x).reshape(-1, 6, 2)


def test_capture_joins_calls_and_serves_several_backwards():
    model, x = Twice().double(), randn(3, 6, 4)
    cotangents = [randn(3, 6, 2, seed=s) for s in (1, 2)]
    received = []

    def receive(name, module, a, g):
        received.append((name, squared_sums(name, module, a, g, local=False)))

    with capture(model, (3, 6)) as captured:
        output = model(x)
        for r in cotangents:
            captured.backward(output, r, receive, retain_graph=True)
    assert [name for name, _ in received] == ["once", "shared"] * 2
    for i, r in enumerate(cotangents):
        expected = by_autograd(model, x, r)
        for name, sums in received[2 * i : 2 * i + 2]:
            for suffix, value in sums.items():
                square = expected[f"{name}.{suffix}"].square().sum(0)
                torch.testing.assert_close(value, square, **CLOSE)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_unknown_layer_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    with pytest.raises(UnknownLayerError, match=r"^1: .*Conv1d.*Linear, Conv1D, Embedding"):
        check_known(model)
