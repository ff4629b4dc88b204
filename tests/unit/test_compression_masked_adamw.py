"""The oracle is torch's own AdamW on dense weights, masked around each step: bit by bit."""

import copy

import pytest
import torch

from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.signed_zeros import apply_masks, kept_state, masks_of, restore_kept
from paramscope.errors import RequestError
from paramscope.models.losses import mean_loss
from tests.unit.conftest import make_tiny

SETTINGS = {"lr": 3e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def random_masks(model, density=0.3, seed=0):
    """Masks of all linear layers inside the blocks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in model.named_parameters()
        if p.ndim == 2 and any(part.isdecimal() for part in name.split("."))
    }


def backward(model, sequences, masks):
    """Gradients, masked as a dense masked AdamW needs them."""
    model.zero_grad()
    mean_loss(model, sequences).backward()
    for name, mask in masks.items():
        model.get_parameter(name).grad.mul_(mask)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twenty_steps_are_torchs_on_masked_dense_weights(kind, dtype, sequences):
    dense = make_tiny(kind).to(dtype)
    masks = random_masks(dense)
    assert len(masks) >= 8
    apply_masks(dense, masks)
    model = copy.deepcopy(dense)
    reference = torch.optim.AdamW(dense.parameters(), foreach=False, **SETTINGS)
    optimizer = MaskedAdamW(model.named_parameters(), masks, **SETTINGS)
    start = kept_state(model, masks)
    for _ in range(20):
        backward(dense, sequences, masks)
        reference.step()
        with torch.no_grad():
            for name, mask in masks.items():
                dense.get_parameter(name).mul_(mask)
        model.zero_grad()
        mean_loss(model, sequences).backward()  # unmasked: the gather must leave them out
        optimizer.step()
        for (name, expected), got in zip(dense.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(expected, got), name
    for name, mask in masks_of(model, masks).items():
        assert torch.equal(mask, masks[name])
    assert all(
        not torch.equal(value, start[name]) for name, value in kept_state(model, masks).items()
    )
    n_kept = sum(int(mask.sum()) for mask in masks.values())
    kept = [optimizer.state[model.get_parameter(name)] for name in masks]
    assert sum(s["exp_avg"].numel() for s in kept) == n_kept
    assert sum(s["exp_avg_sq"].numel() for s in kept) == n_kept
    assert all(set(s) == {"step", "exp_avg", "exp_avg_sq"} for s in kept)


def test_the_state_of_a_tenth_is_a_tenth(sequences):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 100, bias=False))
    masks = {"0.weight": torch.arange(20_000).reshape(100, 200) % 10 == 3}
    apply_masks(model, masks)
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1e-3)
    model(torch.randn(4, 200)).square().sum().backward()
    optimizer.step()
    assert optimizer.state_bytes == 2 * 4 * 20_000 // 10  # no index, and the step is no tensor


def test_a_kept_value_that_is_zero_stays_kept_and_is_trained():
    layer = torch.nn.Linear(3, 2, bias=False)
    masks = {"weight": torch.tensor([[True, True, False], [False, True, True]])}

    def steps(values, n):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(values))
        apply_masks(layer, masks)
        optimizer = MaskedAdamW(layer.named_parameters(), masks, lr=0.5)
        for _ in range(n):
            layer.weight.grad = torch.ones(2, 3)
            optimizer.step()
        assert torch.equal(masks_of(layer, masks)["weight"], masks["weight"])
        return layer.weight.detach().clone()

    once = steps([[1.0, 0.0, -2.0], [0.0, 3.0, -0.0]], n=1)
    length = -once[0, 1]  # the same wherever a step begins
    assert length == pytest.approx(0.5, rel=1e-6)
    assert torch.equal(once == 0, ~masks["weight"])
    landed = steps([[float(length), 0.0, 0.0], [0.0, 3.0, 0.0]], n=1)
    assert landed[0, 0] == 0
    beyond = steps([[float(length), 0.0, 0.0], [0.0, 3.0, 0.0]], n=2)
    assert beyond[0, 0] == pytest.approx(-0.5, rel=1e-5)


def test_masked_gradients_are_zero_even_where_they_were_not_finite():
    layer = torch.nn.Linear(4, 4)
    masks = {"weight": torch.eye(4, dtype=torch.bool)}
    apply_masks(layer, masks)
    optimizer = MaskedAdamW(layer.named_parameters(), masks, lr=0.1)
    layer.weight.grad = torch.where(masks["weight"], 2.0, torch.nan)
    layer.bias.grad = torch.ones(4)
    optimizer.mask_gradients()
    assert torch.equal(layer.weight.grad, 2 * torch.eye(4))
    assert torch.equal(layer.bias.grad, torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_comes_back_exactly(dtype, sequences):
    model = make_tiny().to(dtype)
    masks = random_masks(model)
    apply_masks(model, masks)
    optimizer = MaskedAdamW(model.named_parameters(), masks, **SETTINGS)

    def step(model, optimizer):
        optimizer.zero_grad()
        mean_loss(model, sequences).backward()
        optimizer.step()

    for _ in range(3):
        step(model, optimizer)
    other = copy.deepcopy(model)
    again = MaskedAdamW(other.named_parameters(), masks, lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        step(model, optimizer)
        step(other, again)
    for expected, got in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got)
        for key, value in optimizer.state[expected].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.state[got][key]))


def test_bf16_weights_follow_float32_ones():
    """Steps far below bf16's spacing add up in the master copy, and would all be lost without."""
    layer = torch.nn.Linear(64, 64, bias=False)
    masks = {"weight": torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.2}
    apply_masks(layer, masks)
    low = copy.deepcopy(layer).bfloat16()
    with torch.no_grad():
        layer.weight.copy_(low.weight)
    before = low.weight.detach().clone()
    pairs = [(m, MaskedAdamW(m.named_parameters(), masks, lr=1e-5)) for m in (layer, low)]
    for _ in range(200):
        for module, optimizer in pairs:
            module.weight.grad = torch.ones_like(module.weight)
            optimizer.step()
    assert torch.equal(low.weight, layer.weight.bfloat16())
    moved = (before - low.weight)[masks["weight"]].float()
    # 200 steps of 1e-5; bf16 rounds weights of up to .125 to within 2.5e-4, either way
    assert moved.mean().item() == pytest.approx(2e-3, rel=0.05)
    assert torch.equal(masks_of(low, masks)["weight"], masks["weight"])


def test_kept_values_come_back(sequences):
    model = make_tiny("gpt2")
    masks = random_masks(model)
    apply_masks(model, masks)
    state = kept_state(model, masks)
    assert all(len(state[name]) == mask.sum() for name, mask in masks.items())
    before = copy.deepcopy(model)
    optimizer = MaskedAdamW(model.named_parameters(), masks, **SETTINGS)
    mean_loss(model, sequences).backward()
    optimizer.step()
    restore_kept(model, masks, state)
    for expected, got in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_wrong_masks_and_written_weights_are_refused():
    layer = torch.nn.Linear(4, 3)
    with pytest.raises(RequestError, match="no such parameter"):
        apply_masks(layer, {"other": torch.ones(3, 4, dtype=torch.bool)})
    for mask in (torch.ones(4, 3, dtype=torch.bool), torch.ones(3, 4)):
        with pytest.raises(RequestError, match="is no mask of a contiguous weight"):
            apply_masks(layer, {"weight": mask})
    masks = {"weight": torch.ones(3, 4, dtype=torch.bool).triu()}
    apply_masks(layer, masks)
    optimizer = MaskedAdamW(layer.named_parameters(), masks, lr=0.1)
    with torch.no_grad():
        layer.weight.fill_(1)
    layer.weight.grad = torch.ones(3, 4)
    with pytest.raises(RequestError, match="apply its mask again"):
        optimizer.step()
