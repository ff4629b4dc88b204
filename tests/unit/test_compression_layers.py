"""Which layers are pruned, and what refuses to be."""

import pytest
import torch
from torch import nn

from paramscope.compression.layers import density_of, overall_zeros, prunable, weight_of
from paramscope.errors import RequestError
from paramscope.names import within_block
from tests.unit.conftest import make_tiny

OF_A_BLOCK = {
    "opt": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2",
    "gpt2": "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj",
    "llama": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
    "mlp.gate_proj mlp.up_proj mlp.down_proj",
}


@pytest.mark.parametrize("kind", OF_A_BLOCK)
def test_the_linear_layers_of_the_blocks_are_pruned_and_no_others(kind):
    layers = prunable(make_tiny(kind))
    tails = [within_block(name) for name in layers]
    assert sorted(tails) == sorted(2 * OF_A_BLOCK[kind].split())


def test_a_weight_is_seen_as_out_by_in_and_shared_with_its_layer():
    linear = weight_of(prunable(make_tiny("opt"))["model.decoder.layers.0.fc1"])
    stored = prunable(make_tiny("gpt2"))["transformer.h.0.mlp.c_fc"]
    assert linear.shape == (16, 8)
    assert weight_of(stored).shape == (32, 8)
    assert torch.equal(weight_of(stored), stored.weight.T)
    weight_of(stored)[3, 1] = 7
    assert stored.weight[1, 3] == 7


def test_shared_layers_are_refused():
    def shared_weight(model):
        model.model.decoder.layers[1].fc1.weight = model.model.decoder.layers[0].fc1.weight

    def shared_layer(model):
        model.model.decoder.layers[1].fc1 = model.model.decoder.layers[0].fc1

    def tied_to_the_head(model):
        layer = model.model.decoder.layers[0]
        layer.fc1 = nn.Linear(8, 24).double()
        model.lm_head.weight = layer.fc1.weight

    for share in (shared_weight, shared_layer, tied_to_the_head):
        model = make_tiny("opt")
        share(model)
        with pytest.raises(RequestError, match=r"fc1.weight is also .*shared weight"):
            prunable(model)


def test_a_model_with_nothing_to_prune_is_refused():
    with pytest.raises(RequestError, match="no linear layer"):
        prunable(nn.ModuleDict({"blocks": nn.ModuleList([nn.LayerNorm(4)])}))
    with pytest.raises(RequestError, match="no list of blocks"):
        prunable(nn.Linear(3, 3))


def test_shares_count_weights_and_tied_parameters_once():
    masks = {"a": torch.tensor([[True, False], [False, False]]), "b": torch.ones(4, dtype=bool)}
    assert density_of(masks) == 5 / 8
    model = make_tiny("opt", tied=True)
    layers = prunable(model)
    masks = {f"{n}.weight": torch.zeros_like(m.weight, dtype=bool) for n, m in layers.items()}
    zeroed = 2 * (4 * 64 + 2 * 128)
    total = sum(p.numel() for p in model.parameters())
    assert total < sum(p.numel() for p in make_tiny("opt", tied=False).parameters())
    assert overall_zeros(model, masks) == zeroed / total
