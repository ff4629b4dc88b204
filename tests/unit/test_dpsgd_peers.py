"""Other libraries' sums, layers clipped apart, few trained parameters, and models without a way."""

import math

import pytest
import torch
from torch import nn

from paramscope.dpsgd.methods import Options, make_method, make_step
from paramscope.dpsgd.privacy import Privacy
from paramscope.errors import RequestError
from tests.unit.conftest import make_tiny
from tests.unit.dpsgd_oracles import EXACT, clipped_oracle, median_norm, own_gradients, run


@pytest.fixture(autouse=True)
def one_format(monkeypatch):
    """Opacus makes some of its tensors in the default format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def opacus_sum(kind, name, sequences, max_norm):
    """The clipped sum that Opacus leaves: B times its mean."""
    model = make_tiny(kind, tied=False)
    size = len(sequences)
    privacy = Privacy(max_norm, 0.0, size)
    method = make_method(name, model, privacy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = make_step(method, model, optimizer, privacy, 0)
    method.forward(sequences)
    method.backward()
    step.step()
    return [size * p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", ["opacus_hooks", "opacus_ghost"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_opacus_finds_the_same_sum(kind, name, sequences):
    model = make_tiny(kind, tied=False)
    C = median_norm(model, sequences)
    ours, _ = run(model, "bk", sequences, C)
    theirs = opacus_sum(kind, name, sequences, C)
    # Opacus divides by a norm that is 1e-6 larger
    scale = torch.cat([g.flatten() for g in ours]).norm()
    apart = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]).norm()
    assert apart < 2e-6 * scale
    assert scale > 0


def test_opacus_can_not_do_opt_as_it_is(sequences):
    model = make_tiny("opt", tied=True)
    with pytest.raises(RequestError, match="Opacus can't do this model"):
        method = make_method("opacus_ghost", model, Privacy(1.0, 0.0, 6))
        step = make_step(method, model, torch.optim.SGD(model.parameters()), method.privacy, 0)
        method.forward(sequences)
        method.backward()
        step.step()


@pytest.mark.parametrize("options", [Options(), Options(chunk_tokens=4, checkpoint=True)])
def test_layers_are_clipped_apart(tiny, sequences, options):
    """Each layer's part, its bias with its weight and a tied head with its embedding, to C/√L."""
    C = median_norm(tiny, sequences)
    found, (told,) = run(tiny, "per_layer", sequences, C, options)
    gradients, _ = own_gradients(tiny, sequences)
    names = [name for name, p in tiny.named_parameters() if p.requires_grad]
    layers = [name.rpartition(".")[0] for name in names]
    bound = C / math.sqrt(len(set(layers)))
    whole = torch.zeros(len(sequences))
    for layer in set(layers):
        own = [i for i, name in enumerate(layers) if name == layer]
        squared = sum(gradients[i].flatten(1).square().sum(1) for i in own)
        factors = (bound / squared.sqrt()).clamp(max=1)
        whole += (factors * squared.sqrt()).square()
        for i in own:
            torch.testing.assert_close(found[i], torch.tensordot(factors, gradients[i], 1), **EXACT)
    assert bool((whole.sqrt() <= C * (1 + 1e-12)).all())
    norms = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    torch.testing.assert_close(told.norms.to(norms), norms, **EXACT)
    assert told.factors is None


@pytest.mark.parametrize("name", ["ghost", "flash", "bk", "micro"])
@pytest.mark.parametrize(
    "pattern", ["bias", "attn", "norm|ln_", "lm_head|wte|embed_tokens", "mlp.c_fc|fc1|gate_proj"]
)
@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_few_trained_parameters(kind, pattern, name, sequences):
    import re

    model = make_tiny(kind, tied=kind != "llama")
    for parameter, p in model.named_parameters():
        p.requires_grad_(bool(re.search(pattern, parameter)))
    if not any(p.requires_grad for p in model.parameters()):
        with pytest.raises(RequestError, match="no parameter of the model is trained"):
            make_method(name, model, Privacy(1.0, 0.0, 1.0))
        return
    C = median_norm(model, sequences)
    expected, norms, _ = clipped_oracle(model, sequences, C)
    found, (told,) = run(model, name, sequences, C)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)
    torch.testing.assert_close(told.norms.to(norms), norms, **EXACT)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


class Gated(nn.Module):
    """A linear layer with a gate, which no kind of layer knows."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.full((inner.out_features,), 0.7))

    def forward(self, x):
        return self.gate * self.inner(x)


def test_an_unknown_layer_is_for_micro_alone(sequences):
    model = make_tiny("opt", tied=True)
    layer = model.model.decoder.layers[0]
    layer.fc1 = Gated(layer.fc1)
    for name in ("bk", "flash", "ghost", "per_layer"):
        with pytest.raises(RequestError, match=r"layers.0.fc1: .* Gated.*method micro would do"):
            make_method(name, model, Privacy(1.0, 0.0, 1.0))
    C = median_norm(model, sequences)
    expected, *_ = clipped_oracle(model, sequences, C)
    found, _ = run(model, "micro", sequences, C)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)


def test_layers_that_share_a_weight_are_for_micro_alone(sequences):
    model = make_tiny("opt", tied=True)
    first, second = model.model.decoder.layers
    second.fc1.weight = first.fc1.weight
    with pytest.raises(RequestError, match=r"share a parameter.*method micro would do"):
        make_method("bk", model, Privacy(1.0, 0.0, 1.0))
    C = median_norm(model, sequences)
    expected, *_ = clipped_oracle(model, sequences, C)
    found, _ = run(model, "micro", sequences, C)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)


def test_bf16_norms_are_near_those_of_float32(sequences):
    """Weights and pairs in bfloat16; what adds up is in float32."""
    exact = make_tiny("opt", tied=True).float()
    rough = make_tiny("opt", tied=True).to(torch.bfloat16)
    _, (right,) = run(exact, "bk", sequences, 1.0)
    _, (told,) = run(rough, "bk", sequences, 1.0)
    assert told.norms.dtype == torch.float32
    # bfloat16 has 8 bits: some 2⁻⁸ a number, and a few layers' errors one after another
    torch.testing.assert_close(told.norms, right.norms, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("name", ["vanilla", "bk", "per_layer", "flash", "ghost", "micro"])
def test_a_forward_of_nothing_is_refused(name, sequences):
    method = make_method(name, make_tiny("opt", tied=True), Privacy(1.0, 0.0, 1.0))
    with pytest.raises(RequestError, match="a forward of 0 samples"):
        method.forward(sequences[:0])
    with pytest.raises(RequestError, match="backward came without a forward"):
        method.backward()


@pytest.mark.parametrize("options", [Options(), Options(checkpoint=True)])
@pytest.mark.parametrize("name", ["bk", "per_layer", "flash", "ghost", "micro"])
@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_step_that_was_not_finished_is_not_in_the_next(name, fails, options, sequences):
    model = make_tiny("opt", tied=True)
    C = median_norm(model, sequences)
    expected, _ = run(model, name, sequences, C, options)
    method = make_method(name, model, Privacy(C, 0.0, 1.0), options)

    def broken(*arguments):
        raise MemoryError

    def spoil(module, args, output):
        output.register_hook(broken)

    spoiled = model.model.decoder.layers[0].fc1.register_forward_hook(spoil)
    method.forward(sequences[:4])
    if fails == "backward":
        with pytest.raises(MemoryError):
            method.backward()
        model.zero_grad(set_to_none=True)
    spoiled.remove()
    method.forward(sequences)
    method.backward()
    found = [p.grad for p in model.parameters()]
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)


def test_logits_changed_after_the_head_are_for_micro_alone(sequences):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1, head_dim=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        final_logit_softcapping=5.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).double().train()
    with pytest.raises(RequestError, match=r"not its head's own output; method micro would do$"):
        run(model, "bk", sequences, 1.0)
    with pytest.raises(RequestError, match=r"own output; leave the chunks out$"):
        run(model, "micro", sequences, 1.0, Options(chunk_tokens=4))
    C = median_norm(model, sequences)
    expected, *_ = clipped_oracle(model, sequences, C)
    found, _ = run(model, "micro", sequences, C)
    for own, right in zip(found, expected, strict=True):  # Gemma's norms work in float32 inside
        torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-8)
