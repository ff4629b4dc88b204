"""The oracles are whole Hessians of models of some 200 parameters, and XDiag's definition."""

import itertools
import json

import pytest
import torch
from torch.func import functional_call

from paramscope.artifacts.tensors import read_tensors
from paramscope.cli import eigenspace as stage
from paramscope.curvature import exact as exact_module
from paramscope.curvature import finite_difference as differences_module
from paramscope.curvature.exact import exact_diagonal
from paramscope.curvature.finite_difference import finite_difference_diagonal
from paramscope.curvature.hutchinson import hutchinson_draws, rademacher
from paramscope.curvature.lanczos import LanczosState, lanczos
from paramscope.curvature.methods import METHODS, method
from paramscope.curvature.moments import moments
from paramscope.curvature.products import HessianProduct
from paramscope.curvature.xdiag import vector_bytes, xdiag, xdiag_draws
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences, padded
from tests.unit.conftest import make_tiny, tiny_config

f64 = torch.float64


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def micro(kind):
    """A float64 model of 184 to 217 parameters."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(kind, tied=kind != "llama")
    sizes = {
        "opt": {"hidden_size": 4, "word_embed_proj_dim": 4, "ffn_dim": 5, "num_hidden_layers": 1},
        "gpt2": {"n_embd": 4, "n_layer": 1, "n_inner": 5},
        "llama": {"hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 1, "head_dim": 2},
    }
    positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    # OPT's table of positions begins with 2 that are not used.
    for key, value in (sizes[kind] | {"vocab_size": 8, positions: 6}).items():
        setattr(config, key, value)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":  # works in float32 inside
                setattr(module, name, torch.nn.RMSNorm(len(child.weight), child.variance_epsilon))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=["opt", "gpt2", "llama"])
def small(request):
    return micro(request.param)


@pytest.fixture(scope="module")
def few():
    """Without OPT's `padding_idx` 1, whose row autograd takes to be constant at the input."""
    return padded([[4, 5, 2, 5, 7, 3], [4, 4, 6], [2, 6, 4, 3]], ["a", "b", "c"])


@pytest.fixture(scope="module")
def small_draws(small, few):
    return hutchinson_draws(small, few, range(400), seed=1, batch_size=1)


def full_hessian(model, sequences):
    """∇² of the mean loss by torch's own `hessian`, [N, N], with the loss written out anew."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(vector):
        parts = vector.split(sizes)
        weights = {n: x.view_as(parameters[n]) for n, x in zip(parameters, parts, strict=True)}
        total = 0.0
        for ids, n in zip(sequences.ids, sequences.lengths.tolist(), strict=True):
            inputs = {"input_ids": ids[None, :n], "use_cache": False}
            z = functional_call(model, weights, kwargs=inputs).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(z, ids[1:n], reduction="sum")
        return total / sequences.n_predicted

    vector = torch.cat([p.flatten() for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, vector)


def in_order(model, diagonal):
    return torch.cat([diagonal[name].flatten() for name, _ in model.named_parameters()])


def judge_unbiased(draws, truth):
    """z-test over all parameters at once, and over each tensor's sum."""
    merged = moments(draws)
    mean, error = flat(merged.mean), flat(merged.standard_error())
    expected = flat(truth)
    noisy = error > 1e-12 * expected.abs().max()
    assert noisy.float().mean() > 0.5
    # Nothing varies where the loss has no curvature at all (keys' biases, absent tokens).
    torch.testing.assert_close(mean[~noisy], expected[~noisy], rtol=1e-9, atol=1e-12)
    z = ((mean - expected) / error)[noisy]
    # Entries share noise, so limits are loose; a factor of two in one term gives z of tens.
    assert 0.7 < float(z.std()) < 1.3
    assert abs(float(z.mean())) < 0.5
    assert float(z.abs().quantile(0.99)) < 4.5
    for name in truth:
        each = torch.stack([draw[name].sum() for draw in draws])
        difference = float(each.mean() - truth[name].sum())
        assert abs(difference) <= 4.5 * float(each.std()) / len(draws) ** 0.5 + 1e-9, name


def test_exact_is_the_full_hessians_diagonal(small, few):
    (got,) = exact_diagonal(small, few, range(4), batch_size=2)
    expected = full_hessian(small, few).diagonal()
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(in_order(small, got), expected, rtol=1e-9, atol=1e-12)


def test_exact_is_the_products_on_unit_vectors(tiny, sequences):
    """The batch sizes differ, and so does the order of the sums: 1e-9."""
    (got,) = exact_diagonal(tiny, sequences, range(1), seed=7, batch_size=4)
    diagonal = in_order(tiny, got)
    product = HessianProduct(tiny, sequences, batch_size=6)
    assert len(diagonal) == product.size
    for i in torch.linspace(0, product.size - 1, 40).long().tolist():
        unit = torch.zeros(product.size, dtype=f64)
        unit[i] = 1
        assert float(diagonal[i]) == pytest.approx(float(product(unit)[i]), rel=1e-9, abs=1e-12)


def test_finite_differences_agree_with_exact(small, few):
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    (got,) = finite_difference_diagonal(small, few, range(1), batch_size=2)
    assert all(torch.equal(p, before[name]) for name, p in small.named_parameters())
    (expected,) = exact_diagonal(small, few, range(1), batch_size=3)
    a, b = flat(got), flat(expected)
    some = b.abs() > 1e-9 * b.abs().max()
    error = (a[some] / b[some] - 1).abs()
    assert float(error.median()) < 1e-8  # 1e-10 seen
    assert float(error.max()) < 1e-4  # h² and rounding tell in the smallest entries
    assert float(a[~some].abs().max()) < 1e-8 * float(b.abs().max())


def test_finite_differences_put_the_weight_back_when_stopped(few, monkeypatch):
    model = micro("opt")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return loss(*arguments)

    loss = differences_module.mean_loss
    monkeypatch.setattr(differences_module, "mean_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        finite_difference_diagonal(model, few, range(1), batch_size=3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_finite_differences_need_float64(few):
    with pytest.raises(RequestError, match="--dtype float64"):
        finite_difference_diagonal(micro("opt").float(), few, range(1), batch_size=3)


@pytest.mark.parametrize("name", ["exact", "finite_difference"])
def test_entry_by_entry_is_refused_on_a_large_model(name, few, monkeypatch):
    model = micro("opt")
    size = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(exact_module, "LIMIT", 100)
    with pytest.raises(RequestError, match=rf"about {2 * size:,} gradients.*ggn or hutchinson"):
        METHODS[name].draw(model, few, range(1), seed=0, batch_size=3)


def test_hutchinson_is_unbiased(tiny_opt, sequences):
    (truth,) = exact_diagonal(tiny_opt, sequences, range(1), batch_size=6)
    judge_unbiased(hutchinson_draws(tiny_opt, sequences, range(200), seed=0, batch_size=1), truth)


def test_hutchinson_is_unbiased_on_every_shape(small, few, small_draws):
    (truth,) = exact_diagonal(small, few, range(1), batch_size=3)
    judge_unbiased(small_draws, truth)


def test_hutchinsons_noise_is_that_of_a_fresh_probe_a_sequence(small, few, small_draws):
    """Var = Σ_s Σ_{j≠i} (H_s)_ij²: one probe for all sequences would have (Σ_s H_s)_ij²."""
    shares = []
    for i in range(len(few)):
        one = Sequences(few.ids[i : i + 1], few.lengths[i : i + 1], few.names[i : i + 1])
        shares.append(full_hessian(small, one) * one.n_predicted / few.n_predicted)
    expected = sum(h.square().sum(1) - h.diagonal().square() for h in shares)
    stacked = torch.stack([in_order(small, draw) for draw in small_draws])
    # The spread of a sample variance over 400 draws is √(2/400) = 7% an entry, less in the sum.
    assert float(stacked.var(0).sum()) == pytest.approx(float(expected.sum()), rel=0.1)
    large = expected > 0.1 * expected.max()
    ratio = stacked.var(0)[large] / expected[large]
    assert 0.9 < float(ratio.median()) < 1.1


def test_a_hutchinson_draw_hangs_on_its_identity_alone(tiny, sequences):
    together = hutchinson_draws(tiny, sequences, range(3), seed=5, batch_size=6)
    assert len(together) == 3
    for k in range(3):
        (alone,) = hutchinson_draws(tiny, sequences, range(k, k + 1), seed=5, batch_size=2)
        assert torch.equal(flat(alone), flat(together[k]))
    turned = Sequences(sequences.ids.flip(0), sequences.lengths.flip(0), sequences.names[::-1])
    (same,) = hutchinson_draws(tiny, turned, range(1), seed=5, batch_size=6)
    torch.testing.assert_close(flat(same), flat(together[0]), rtol=1e-9, atol=1e-13)
    (other,) = hutchinson_draws(tiny, sequences, range(1), seed=6, batch_size=6)
    assert not torch.allclose(flat(other), flat(together[0]), rtol=1e-3)
    assert not torch.allclose(flat(together[1]), flat(together[0]), rtol=1e-3)


def test_key_biases_have_no_curvature(tiny_opt, sequences):
    """A shift common to all keys cancels in the softmax, so here even each draw is zero."""
    draws = hutchinson_draws(tiny_opt, sequences, range(4), seed=0, batch_size=1)
    mean = moments(draws).mean
    keys = torch.cat([v.flatten() for n, v in mean.items() if n.endswith("k_proj.bias")])
    others = torch.cat([v.flatten() for n, v in mean.items() if n.endswith("q_proj.bias")])
    assert keys.abs().max() < 1e-12 * others.abs().max()


def test_bfloat16_weights_have_float32_sums(sequences):
    """The same signs on both, so what differs is rounding: 2⁻⁸ a step, some tens of steps."""
    (precise,) = hutchinson_draws(make_tiny(), sequences, range(1), seed=0, batch_size=1)
    (coarse,) = hutchinson_draws(make_tiny().bfloat16(), sequences, range(1), seed=0, batch_size=1)
    assert {value.dtype for value in coarse.values()} == {torch.float32}
    a, b = flat(coarse).double(), flat(precise)
    assert float((a - b).norm() / b.norm()) < 0.15


def test_signs_are_fair_and_independent():
    signs = rademacher(100_003, seed=4)
    assert len(signs) == 100_003
    assert set(signs.tolist()) == {-1, 1}
    x = signs.double()
    for lag in range(1, 17):  # and bits of a byte don't hang together: 5 standard errors
        assert abs(float((x[lag:] * x[:-lag]).mean())) < 5 / len(x) ** 0.5
    assert abs(float(x.mean())) < 5 / len(x) ** 0.5


def left_out_in_turn(a, signs):
    """XDiag as it is defined: a basis without each probe, Hutchinson on the rest with it."""
    total = torch.zeros(len(a), dtype=f64)
    for i in range(len(signs)):
        others = (signs[torch.arange(len(signs)) != i].double() @ a).T
        u, scale, _ = torch.linalg.svd(others, full_matrices=False)
        u = u[:, scale > 1e-10 * a.norm()]
        projector = u @ u.T
        omega = signs[i].double()
        rest = (torch.eye(len(a), dtype=f64) - projector) @ a
        total += (projector @ a).diagonal() + omega * (rest @ omega)
    return total / len(signs)


def symmetric(size, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank, generator=generator, dtype=f64)
    signs = torch.randn(rank, generator=generator, dtype=f64).sign()
    return factor @ torch.diag(signs) @ factor.T


@pytest.mark.parametrize("m", [1, 2, 4, 6])
@pytest.mark.parametrize("rank", [12, 4, 3])
def test_xdiag_is_its_definition(m, rank):
    a = symmetric(12, rank, seed=m)
    signs = rademacher(12 * m, seed=m).view(m, 12)
    got = xdiag(lambda v: a @ v, signs, f64)
    torch.testing.assert_close(got, left_out_in_turn(a, signs), rtol=1e-8, atol=1e-10)


def test_xdiag_is_its_definition_where_two_probes_are_the_same():
    a = symmetric(12, 12, seed=0)
    signs = rademacher(48, seed=0).view(4, 12)
    signs[2] = -signs[0]
    got = xdiag(lambda v: a @ v, signs, f64)
    torch.testing.assert_close(got, left_out_in_turn(a, signs), rtol=1e-8, atol=1e-10)


def test_xdiag_is_exact_where_the_rank_is_below_half_the_probes():
    a = symmetric(30, 5, seed=2)
    got = xdiag(lambda v: a @ v, rademacher(180, seed=2).view(6, 30), f64)
    torch.testing.assert_close(got, a.diagonal(), rtol=1e-9, atol=1e-10)
    assert not torch.any(xdiag(torch.zeros_like, rademacher(60, seed=0).view(2, 30), f64))


def test_xdiag_is_unbiased_over_all_signs():
    """Its mean over all 2¹⁰ pairs of sign vectors is the diagonal: no limits of chance."""
    a = symmetric(5, 5, seed=1)
    pairs = itertools.product((-1, 1), repeat=10)
    every = [xdiag(lambda v: a @ v, torch.tensor(p).view(2, 5), f64) for p in pairs]
    torch.testing.assert_close(torch.stack(every).mean(0), a.diagonal(), rtol=1e-9, atol=1e-9)


def test_xdiag_draws_are_unbiased_and_hang_on_their_identity(tiny_opt, sequences):
    (truth,) = exact_diagonal(tiny_opt, sequences, range(1), batch_size=6)
    draws = xdiag_draws(tiny_opt, sequences, range(24), seed=0, batch_size=6, probes=8)
    judge_unbiased(draws, truth)
    (alone,) = xdiag_draws(tiny_opt, sequences, range(3, 4), seed=0, batch_size=2, probes=8)
    # Sums in another order, seen through a basis of condition some 1e2.
    torch.testing.assert_close(flat(alone), flat(draws[3]), rtol=1e-6, atol=1e-10)
    assert not torch.allclose(flat(draws[4]), flat(draws[3]), rtol=1e-3)
    # A basis of 100 vectors takes most of H; 0.18 seen, and 1.9 with 16 probes.
    (close,) = xdiag_draws(tiny_opt, sequences, range(1), seed=0, batch_size=6, probes=200)
    expected = flat(truth)
    assert float((flat(close) - expected).norm() / expected.norm()) < 0.3


def test_xdiag_refuses_probes_that_it_cannot_take(few):
    model = micro("opt")
    size = sum(p.numel() for p in model.parameters())
    for probes in (7, 0, -2):
        with pytest.raises(RequestError, match="even number of probes"):
            xdiag_draws(model, few, range(1), seed=0, batch_size=3, probes=probes)
    with pytest.raises(RequestError, match=f"the model has {size}"):
        xdiag_draws(model, few, range(1), seed=0, batch_size=3, probes=size + size % 2 + 2)


def test_xdiag_states_the_size_of_its_vectors():
    """8 signs of a byte, and twice 8 numbers of four, for each of 1,000 parameters."""
    assert vector_bytes(1000, 16, torch.float32) == 1000 * (8 + 2 * 8 * 4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_one_interface(name, few):
    model = micro("opt")
    shapes = {n: p.shape for n, p in model.named_parameters()}
    known = method(name)
    got = known.draw(model, few, range(2, 4), seed=0, batch_size=2)
    assert len(got) == (2 if known.random else 1)
    for diagonal in got:
        assert {n: x.shape for n, x in diagonal.items()} == shapes
        assert float(flat(diagonal).abs().max()) > 1e-3
    assert known.of == ("ggn" if name == "ggn" else "hessian")


def test_an_unknown_method_is_an_error_that_lists_the_known():
    with pytest.raises(RequestError, match=r"'fisher'.*ggn, hutchinson, xdiag, exact, finite_d"):
        method("fisher")


def whole_and_states(product, start, **options):
    states = []

    def keep(state):
        states.append(LanczosState(state.alphas, state.betas, state.basis.clone()))

    return lanczos(product, start, k=3, steps=14, checkpoint=keep, **options), states


def same(a, b):
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(a.residuals, b.residuals)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_resumed_lanczos_is_the_same_to_the_bit(sequences, dtype):
    model = make_tiny().to(dtype)
    product = HessianProduct(model, sequences, batch_size=4)
    start = torch.randn(product.size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    whole, states = whole_and_states(product, start)
    assert [len(state.alphas) for state in states] == list(range(1, 14))
    assert float(whole.values.abs().min()) > 0.1
    same(whole, lanczos(product, start, k=3, steps=14, basis_device=torch.device("cpu")))
    for n in (1, 6, 13):
        calls = []

        def counted(vector, calls=calls):
            calls.append(1)
            return product(vector)

        same(whole, lanczos(counted, start, k=3, steps=14, resume=states[n - 1]))
        assert len(calls) == 14 - n


def test_lanczos_resumes_nothing_that_is_not_its_own():
    a = symmetric(20, 20, seed=0)
    start = torch.ones(20, dtype=f64)
    _, states = whole_and_states(lambda v: a @ v, start)
    for match, options in (
        ("another start", {"start": start + torch.arange(20)}),
        ("can't be resumed for 6 steps", {"start": start, "steps": 6}),
        ("another size", {"start": torch.ones(30, dtype=f64)}),
    ):
        with pytest.raises(RequestError, match=match):
            lanczos(lambda v: a @ v, k=2, resume=states[7], **{"steps": 14} | options)


@pytest.fixture
def run(tiny_opt, sequences, tmp_path, monkeypatch):
    """The stage's function on the tiny model, with products counted and stopped on demand."""
    from paramscope.cli import inputs

    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "calibration.parquet").write_bytes(b"text")
    cpu = torch.device("cpu")
    monkeypatch.setattr(inputs, "model_and_text", lambda *_, **__: (tiny_opt, sequences, cpu))
    product = HessianProduct.__call__

    def run(output, stop_after=None, **options):
        calls = []

        def counted(self, vector):
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            calls.append(1)
            return product(self, vector)

        monkeypatch.setattr(HessianProduct, "__call__", counted)
        files = (folder, tmp_path / "calibration.parquet", tmp_path / output)
        settings = {"k": 3, "batch": 4, "device": "cpu", "dtype": "float64", "threads": 1}
        if stop_after is None:
            stage.eigenspace(*files, **settings | options)
        else:
            with pytest.raises(KeyboardInterrupt):
                stage.eigenspace(*files, **settings | options)
        return len(calls)

    return run


def test_a_killed_eigenspace_goes_on_to_the_same_bytes(run, tmp_path):
    assert run("whole.pt") == 16
    assert run("cut.pt", stop_after=13) == 13
    assert (tmp_path / "cut.partial.pt").is_file()
    assert not (tmp_path / "cut.pt").exists()
    assert run("cut.pt", stop_after=3) == 3  # killed again, 13 products on
    assert run("cut.pt") == 6  # 10 of 16 were saved
    assert (tmp_path / "cut.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert float(read_tensors(tmp_path / "cut.pt")["values"].abs().min()) > 0.1
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["cut.pt", "whole.pt"]


def test_a_basis_of_other_work_is_not_taken_up(run, tmp_path, capsys):
    partial = tmp_path / "x.partial.pt"
    run("x.pt", stop_after=11)
    saved = partial.read_bytes()
    assert run("x.pt", k=4) == 18  # other arguments
    assert "other parameters" in capsys.readouterr().out
    partial.write_bytes(saved)
    (tmp_path / "calibration.parquet").write_bytes(b"other text")
    assert run("x.pt") == 16  # other inputs
    assert "other inputs" in capsys.readouterr().out
    partial.write_bytes(saved[:-100])
    assert run("x.pt") == 16  # damaged
    assert "starting anew" in capsys.readouterr().out
    assert not partial.exists()
    stored = torch.load(tmp_path / "x.pt", weights_only=True)["__provenance__"]
    assert json.loads(stored)["parameters"]["k"] == 3
