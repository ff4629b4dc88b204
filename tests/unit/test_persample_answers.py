"""The oracle is autograd, one sample at a time, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paramscope.errors import RequestError
from paramscope.models.load import logits
from paramscope.persample import linear, tied_head
from paramscope.persample.answers import (
    kronecker_factors,
    squared_norms,
    unit_gates,
    unit_squared_norms,
    weighted_sums,
)
from paramscope.persample.capture import capture
from paramscope.persample.layers import UnknownLayerError
from tests.unit.conftest import make_tiny
from tests.unit.test_persample import CLOSE, FLOAT32, by_autograd, randn

ROUTES = ["gram", "tiles", "product"]
PADDING = 1
shapes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 9), st.integers(2, 9))
few = settings(deadline=None, max_examples=25)


def kinds(d, p):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.pytorch_utils import Conv1D

    return {
        "linear": nn.Linear(d, p), "linear-no-bias": nn.Linear(d, p, bias=False),
        "conv1d": Conv1D(p, d), "layer-norm": nn.LayerNorm(d),
        "layer-norm-no-bias": nn.LayerNorm(d, bias=False), "rms-norm": nn.RMSNorm(d),
        "llama-rms-norm": LlamaRMSNorm(d), "head-layer-norm": nn.LayerNorm(d),
        "head-rms-norm": nn.RMSNorm(d), "embedding": nn.Embedding(p, d),
        "padded-embedding": nn.Embedding(p, d, padding_idx=PADDING),
    }  # fmt: skip


KINDS = list(kinds(1, 2))


def case(kind, shape, seed=0):
    """A layer in float64 away from its start, its input a, and the gradient g of its output."""
    B, T, d, p = shape
    torch.manual_seed(seed)
    module = kinds(d, p)[kind].double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if "embedding" in kind:
        a = torch.randint(p, (B, T))
    else:
        a = torch.randn(B, T, *([3] if "head" in kind else []), d, dtype=torch.float64)
    g = torch.randn(module(a).shape, dtype=torch.float64)
    return module, a, g


def close(kind):
    """transformers' RMSNorm works in float32 whatever it is given."""
    return FLOAT32 if kind == "llama-rms-norm" else CLOSE


def rows_first(module, gradients):
    """Per-sample gradients [B, p, …] of each parameter, its units on the second axis."""
    if type(module).__name__ == "Conv1D":
        return gradients | {"weight": gradients["weight"].mT}
    return gradients


def dense(x):
    return x.to_dense() if x.is_sparse else x


def every_answer(module, a, g, weights, **options):
    """Answers 2, 3 and 5 as one dictionary; what is by sample has `by-sample` in its key."""
    norms = squared_norms("m", module, a, g, **options)
    sums = weighted_sums("m", module, a, g, weights, **options)
    return {
        **{f"norm {name} by-sample": x for name, x in norms.items()},
        **{f"sum {name}": x for name, x in sums.items()},
        "gates by-sample": dense(unit_gates("m", module, a, g, **options)),
        "unit norms by-sample": dense(unit_squared_norms("m", module, a, g, **options)),
    }


@pytest.mark.parametrize("kind", KINDS)
@few
@given(shapes)
def test_every_answer_is_autograds(kind, shape):
    module, a, g = case(kind, shape)
    gradients = by_autograd(module, a, g)
    weights = randn(len(a), seed=3)
    units = rows_first(module, gradients)
    own = rows_first(module, {name: p.detach()[None] for name, p in module.named_parameters()})
    expected = {
        **{f"norm {n} by-sample": x.flatten(1).square().sum(1) for n, x in gradients.items()},
        **{f"sum {n}": torch.tensordot(weights, x, 1) for n, x in gradients.items()},
        "gates by-sample": sum((x * own[n]).flatten(2).sum(2) if x.dim() > 2 else x * own[n]
                               for n, x in units.items()),
        "unit norms by-sample": sum(x.square().flatten(2).sum(2) if x.dim() > 2 else x.square()
                                    for n, x in units.items()),
    }  # fmt: skip
    actual = every_answer(module, a, g, weights)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == torch.float64
        torch.testing.assert_close(actual[name], value, **close(kind))


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "conv1d"])
@pytest.mark.parametrize("tile", [1, 5, 256])
@few
@given(shapes)
def test_every_route_to_a_norm_is_the_same(kind, tile, shape):
    module, a, g = case(kind, shape)
    gradients = rows_first(module, by_autograd(module, a, g))
    whole = {name: x.flatten(1).square().sum(1) for name, x in gradients.items()}
    units = sum(x.square().reshape(*x.shape[:2], -1).sum(2) for x in gradients.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "TILE_TOKENS", tile)
        for route in [*ROUTES, None]:
            norms = squared_norms("m", module, a, g, route=route)
            torch.testing.assert_close(norms, whole, **CLOSE)
            by_unit = unit_squared_norms("m", module, a, g, route=route)
            torch.testing.assert_close(by_unit, units, **CLOSE)


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "conv1d"])
@few
@given(shapes)
def test_kronecker_factors_are_sums_of_outer_products(kind, shape):
    module, a, g = case(kind, shape)
    d, p = a.shape[-1], g.shape[-1]
    inputs, outputs = torch.zeros(d + 1, d + 1).double(), torch.zeros(p, p).double()
    for x, y in zip(a.flatten(0, 1), g.flatten(0, 1), strict=True):
        x = torch.cat([x, torch.ones(1).double()])
        inputs += torch.outer(x, x)
        outputs += torch.outer(y, y)
    factors = kronecker_factors("m", module, a, g)
    has_bias = module.bias is not None
    expected = inputs if has_bias else inputs[:d, :d]
    torch.testing.assert_close(factors.input, expected, **CLOSE)
    torch.testing.assert_close(factors.output, outputs, **CLOSE)
    without = kronecker_factors("m", module, a, g, bias=False)
    torch.testing.assert_close(without.input, inputs[:d, :d], **CLOSE)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_kronecker_factors_are_exact_for_one_token(kind):
    # With one sample of one token, vec(G) vec(G)ᵀ is the Kronecker product of the factors.
    module, a, g = case(kind, (1, 1, 3, 4))
    gradients = rows_first(module, by_autograd(module, a, g))
    parts = [x[0].reshape(4, -1) for x in gradients.values()]
    whole = torch.cat(parts, 1).flatten()
    factors = kronecker_factors("m", module, a, g)
    product = torch.kron(factors.output, factors.input)
    torch.testing.assert_close(product, torch.outer(whole, whole), **CLOSE)


@few
@given(shapes)
def test_an_embeddings_factors_are_those_of_one_hot_inputs(shape):
    module, ids, g = case("embedding", shape)
    one_hot = nn.functional.one_hot(ids, module.num_embeddings).double()
    as_linear = nn.Linear(*module.weight.shape, bias=False)
    expected = kronecker_factors("m", as_linear, one_hot, g)
    factors = kronecker_factors("m", module, ids, g)
    torch.testing.assert_close(factors.input.diag(), expected.input, **CLOSE)
    torch.testing.assert_close(factors.output, expected.output, **CLOSE)
    padded = nn.Embedding(*module.weight.shape, padding_idx=PADDING)
    used = (ids != PADDING)[..., None]
    expected = kronecker_factors("m", as_linear, one_hot * used, g * used)
    factors = kronecker_factors("m", padded, ids, g)
    torch.testing.assert_close(factors.input.diag(), expected.input, **CLOSE)
    torch.testing.assert_close(factors.output, expected.output, **CLOSE)


@few
@given(shapes)
def test_tied_cross_terms_are_the_square_of_the_sum(shape):
    B, T, d, V = shape
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
    # The head may see other tokens than the embedding, as when one of them is called twice.
    g, h, r = randn(B, T, d, seed=4), randn(B, T + 2, d, seed=5), randn(B, T + 2, V, seed=6)
    head = r.mT @ h
    for padding in (None, PADDING):
        module = nn.Embedding(V, d, padding_idx=padding).double()
        own = by_autograd(module, ids, g)["weight"]
        by_row = ((own + head).square() - own.square() - head.square()).sum(2)
        for chunk_bytes in (1, linear.CHUNK_BYTES):
            cross = tied_head.cross_norms(ids, g, h, r, padding, chunk_bytes)
            torch.testing.assert_close(cross, by_row.sum(1), **CLOSE)
    tokens = tied_head.token_cross_norms(ids, g, h, r)
    module = nn.Embedding(V, d).double()
    own = by_autograd(module, ids, g)["weight"]
    by_row = ((own + head).square() - own.square() - head.square()).sum(2)
    rows = torch.zeros(B, V).double().scatter_add_(1, ids, tokens)
    torch.testing.assert_close(rows, by_row, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind):
    module, a, g = case(kind, (5, 7, 4, 6))
    weights = randn(5, seed=3)
    routes = [{"route": route} for route in ROUTES] if kind in KINDS[:3] else [{}]
    for options in routes:
        whole = squared_norms("m", module, a, g, **options)
        units = unit_squared_norms("m", module, a, g, **options)
        for chunk_bytes in (1, 100, 600):
            options["chunk_bytes"] = chunk_bytes
            torch.testing.assert_close(squared_norms("m", module, a, g, **options), whole)
            torch.testing.assert_close(unit_squared_norms("m", module, a, g, **options), units)
    whole = every_answer(module, a, g, weights)
    for chunk_bytes in (1, 100, 600):
        parts = every_answer(module, a, g, weights, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    if "norm" not in kind:
        whole = kronecker_factors("m", module, a, g)
        parts = kronecker_factors("m", module, a, g, chunk_bytes=1)
        torch.testing.assert_close(vars(parts), vars(whole), rtol=1e-12, atol=1e-12)


def test_a_chunk_is_not_exceeded(monkeypatch):
    seen = []
    blocks = linear._gradient_blocks

    def recorded(*args):
        for samples, rows, gradients in blocks(*args):
            seen.append(gradients.numel() * gradients.element_size())
            yield samples, rows, gradients

    monkeypatch.setattr(linear, "_gradient_blocks", recorded)
    x, g = randn(6, 5, 8), randn(6, 5, 10)
    for chunk_bytes in (64, 200, 640, 1300, 10_000):
        seen.clear()
        linear.squared_norms(x, g, "product", chunk_bytes)
        assert max(seen) <= chunk_bytes
        assert sum(seen) == 6 * 8 * 10 * 8  # each entry is made once


@pytest.mark.parametrize("kind", KINDS)
def test_microbatches_add_up(kind):
    module, a, g = case(kind, (5, 6, 3, 4))
    weights = randn(5, seed=3)
    whole = every_answer(module, a, g, weights)
    halves = [every_answer(module, a[s], g[s], weights[s]) for s in (slice(0, 2), slice(2, 5))]
    for name, value in whole.items():
        first, second = (half[name] for half in halves)
        joined = torch.cat([first, second]) if "by-sample" in name else first + second
        torch.testing.assert_close(joined, value, rtol=1e-12, atol=1e-12)
    if "norm" not in kind:
        whole = vars(kronecker_factors("m", module, a, g))
        halves = [vars(kronecker_factors("m", module, a[s], g[s])) for s in (slice(2), slice(2, 5))]
        added = {name: halves[0][name] + halves[1][name] for name in whole}
        torch.testing.assert_close(added, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_empty_answers(kind):
    module, a, g = case(kind, (2, 6, 3, 4))
    for name, value in every_answer(module, a[:0], g[:0], randn(0)).items():
        if "by-sample" in name:
            assert len(value) == 0
        else:
            assert not value.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_called_twice_has_its_calls_joined(kind):
    # Capture joins the calls of a module along T; the oracle runs it twice.
    module, a, g = case(kind, (3, 8, 4, 5))
    joined = every_answer(module, a, g, randn(3, seed=3))
    first, second = slice(0, 3), slice(3, 8)
    rows = []
    for x, y in zip(a, g, strict=True):
        output = (module(x[None, first]) * y[None, first]).sum()
        output = output + (module(x[None, second]) * y[None, second]).sum()
        rows.append(torch.autograd.grad(output, list(module.parameters())))
    for (name, _), parts in zip(module.named_parameters(), zip(*rows, strict=True), strict=True):
        expected = torch.stack([part.square().sum() for part in parts])
        torch.testing.assert_close(joined[f"norm {name} by-sample"], expected, **close(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_summed_in_float32(kind):
    module, a, g = case(kind, (3, 300, 4, 5))
    if getattr(module, "eps", 0) is None:
        module.eps = 1e-5  # None would be its input's format's own
    module, a, g = module.bfloat16(), a.bfloat16() if a.is_floating_point() else a, g.bfloat16()
    weights = torch.tensor([0.5, 1, 2])
    actual = every_answer(module, a, g, weights)
    if "norm" not in kind:
        actual |= vars(kronecker_factors("m", module, a, g))
    module, a, g = module.double(), a.double() if a.is_floating_point() else a, g.double()
    exact = every_answer(module, a, g, weights)
    if "norm" not in kind:
        exact |= vars(kronecker_factors("m", module, a, g))
    for name, value in exact.items():
        assert actual[name].dtype == torch.float32
        # The inputs are the same, so what differs is float32 rounding of sums of 300 tokens;
        # sums in bf16 would differ by 2^-8.
        scale = float(value.abs().max())
        torch.testing.assert_close(actual[name].double(), value, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("shape", [(2, 300, 7, 90), (3, 600, 5, 4), (2, 20, 30, 40)])
def test_flops_are_those_counted(shape):
    B, T, d, p = shape
    x, g = torch.randn(B, T, d), torch.randn(B, T, p)
    counted = {}
    for route in ROUTES:
        with FlopCounterMode(display=False) as counter:
            linear.squared_norms(x, g, route)
        counted[route] = counter.get_total_flops()
        assert counted[route] == B * linear.norm_flops(route, T, d, p)
    assert counted[linear.cheapest_norm(T, d, p)] == min(counted.values())


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 20_000))
def test_the_cheapest_route_is_chosen(T, d, p):
    chosen = linear.norm_flops(linear.cheapest_norm(T, d, p), T, d, p)
    assert chosen == min(linear.norm_flops(route, T, d, p) for route in ROUTES)


def test_a_norm_is_never_below_zero():
    # Gradients that cancel to rounding error: a Gram sum of either sign (14 of these 20 below).
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 1, 6, generator=generator).repeat(1, 9, 1)
        g = torch.randn(1, 9, 5, generator=generator)
        g[:, -1] -= g.sum(1)
        for route in ROUTES:
            assert (linear.squared_norms(x, g, route) >= 0).all()
            assert (linear.unit_squared_norms(x, g, False, route) >= 0).all()


def test_refusals_name_the_module_and_the_cause():
    a = g = randn(2, 3, 4)
    for module in (nn.LayerNorm(4), nn.RMSNorm(4)):
        with pytest.raises(RequestError, match=r"^block\.ln: a (Layer|RMS)Norm .*diagonal"):
            kronecker_factors("block.ln", module, a, g)
    odd = nn.Conv1d(2, 2, 1)
    for answer in (squared_norms, unit_gates, unit_squared_norms, kronecker_factors):
        with pytest.raises(UnknownLayerError, match=r"^conv: .*Conv1d.*Linear, Conv1D, Embedding"):
            answer("conv", odd, a, g)
    with pytest.raises(UnknownLayerError, match=r"^conv: "):
        weighted_sums("conv", odd, a, g, torch.ones(2))
    with pytest.raises(UnknownLayerError, match="more than the last axis"):
        squared_norms("wide", nn.LayerNorm((3, 4)), a, g)


def captured_answers(model, ids, cotangent, weights):
    """‖gradient‖² and θ·gradient of each sample, and the weighted sum, of the whole model."""
    names = {id(p): name for name, p in model.named_parameters()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    norms, gates = torch.zeros(2, len(ids)).double()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    heads = []

    def receive(name, module, a, g):
        nonlocal norms, gates
        norms = norms + sum(squared_norms(name, module, a, g).values())
        gates = gates + dense(unit_gates(name, module, a, g)).sum(1)
        for suffix, value in weighted_sums(name, module, a, g, weights).items():
            sums[names[id(getattr(module, suffix))]] += value
        if module is head:
            heads.append((a, g))
        if module is embedding and embedding.weight is head.weight:
            norms = norms + tied_head.cross_norms(a, g, *heads[0], embedding.padding_idx)

    with capture(model, tuple(ids.shape)) as captured:
        captured.backward(logits(model, ids), cotangent, receive)
    return norms, gates, sums


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("opt", True), ("opt", False), ("gpt2", True), ("llama", True), ("llama", False)],
)
def test_a_whole_models_answers_are_autograds(kind, tied):
    model = make_tiny(kind, tied)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 24, (4, 9), generator=generator)
    ids[0, 3:6] = ids[0, 1]  # repeats, so that embeddings' rows are sums
    ids[1, 4] = model.config.pad_token_id or 0
    z = logits(model, ids).detach()
    cotangent = z.softmax(-1) - nn.functional.one_hot(ids.roll(-1, 1), 24)
    weights = torch.tensor([0.5, 1.0, 0.0, -2.0]).double()
    norms, gates, sums = captured_answers(model, ids, cotangent, weights)
    parameters = dict(model.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for s in range(len(ids)):
        output = (logits(model, ids[s : s + 1]) * cotangent[s]).sum()
        rows = torch.autograd.grad(output, parameters.values())
        gradients = dict(zip(parameters, rows, strict=True))
        square = sum(float(x.square().sum()) for x in gradients.values())
        assert float(norms[s]) == pytest.approx(square, rel=1e-9)
        gate = sum(float((p.detach() * gradients[n]).sum()) for n, p in parameters.items())
        assert float(gates[s]) == pytest.approx(gate, rel=1e-9, abs=1e-9)
        for name, x in gradients.items():
            expected[name] += weights[s] * x
    torch.testing.assert_close(sums, expected, **CLOSE)
