"""What is stored compactly comes back bit by bit, and takes what the format promises."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paramscope.compression.compact import (
    FILE,
    FORMAT,
    compact_sizes,
    expand,
    is_compact,
    load_compact,
    save_compact,
)
from paramscope.compression.signed_zeros import apply_masks
from paramscope.errors import ArtifactError, RequestError
from paramscope.models.tokenizer import save_tokenizer, train_tokenizer
from tests.unit.conftest import make_tiny
from tests.unit.test_compression_masked_adamw import random_masks

CPU = torch.device("cpu")


def pruned(kind="opt", tied=True, dtype=torch.float64, density=0.3):
    """A model whose kept weights hold zeros, too."""
    model = make_tiny(kind, tied=tied and kind != "llama").to(dtype)
    masks = random_masks(model, density)
    with torch.no_grad():
        for i, name in enumerate(masks):
            weight = model.get_parameter(name).view(-1)
            weight[masks[name].view(-1).nonzero()[: i + 1]] = 0
    apply_masks(model, masks)
    return model, masks


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "compact"
    made.mkdir()
    return made


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", ["opt", "opt-untied", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_comes_back_bit_by_bit(kind, dtype, folder, tmp_path, sequences):
    kind, _, untied = kind.partition("-")
    model, masks = pruned(kind, tied=not untied, dtype=dtype)
    save_compact(model, masks, folder)
    again, found = load_compact(folder, CPU)
    assert is_compact(folder)
    assert not again.training
    assert again.dtype == dtype
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(bits(state[name]), bits(other[name])) for name in state)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    head, embedding = again.get_output_embeddings(), again.get_input_embeddings()
    assert (head.weight is embedding.weight) == bool(model.config.tie_word_embeddings)
    if kind != "llama":  # whose norms the tiny model exchanges
        with torch.no_grad():
            assert torch.equal(model(sequences.ids).logits, again(sequences.ids).logits)

    with safe_open(folder / FILE, "pt") as file:
        names = file.keys()
        zeros = sum(
            int((file.get_tensor(name) == 0).sum()) for name in names if not name.endswith(".mask")
        )
        set_bits = sum(
            bin(int(byte)).count("1") for name in masks for byte in file.get_tensor(f"{name}.mask")
        )
    n_masked = sum(mask.numel() for mask in masks.values())
    n_zero = sum(int((p == 0).sum()) for p in model.parameters())
    assert set_bits == sum(int(mask.sum()) for mask in masks.values())
    assert zeros + n_masked - set_bits == n_zero
    assert zeros >= len(masks)  # kept zeros are stored

    expand(folder, tmp_path / "plain")
    model.save_pretrained(tmp_path / "direct")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    direct = load_file(tmp_path / "direct" / "model.safetensors")
    assert plain.keys() == direct.keys()
    assert all(torch.equal(bits(plain[name]), bits(direct[name])) for name in direct)
    hub = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert all(torch.equal(bits(hub.state_dict()[name]), bits(state[name])) for name in state)


def test_a_mask_is_packed_from_its_lowest_bit(folder):
    """The format is what the docs say of it: read here by nothing of ours."""
    model, masks = pruned("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"  # a Conv1D, [8, 16+16]
    save_compact(model, masks, folder)
    stored = load_file(folder / FILE)
    packed = stored[f"{name}.mask"].tolist()
    mask = [bool(packed[i // 8] >> (i % 8) & 1) for i in range(masks[name].numel())]
    assert mask == masks[name].flatten().tolist()
    kept = [v for v, k in zip(model.get_parameter(name).flatten().tolist(), mask, strict=True) if k]
    assert stored[f"{name}.values"].tolist() == kept


def test_a_tenth_in_16_bit_takes_less_than_a_sixth(folder):
    model = make_tiny().to(torch.bfloat16)
    masks = random_masks(model)
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(0))
        masks[name] = (order < mask.numel() // 10).view(mask.shape)
    apply_masks(model, masks)
    sizes = compact_sizes(model, masks)
    assert sizes["masked_compact_bytes"] <= 0.1625 * sizes["masked_dense_bytes"]
    save_compact(model, masks, folder)
    stored = load_file(folder / FILE)
    assert sizes["compact_bytes"] == sum(tensor.nbytes for tensor in stored.values())
    inside = [stored[f"{name}.{part}"] for name in masks for part in ("mask", "values")]
    assert sizes["masked_compact_bytes"] == sum(tensor.nbytes for tensor in inside)
    model.save_pretrained(folder)
    dense = load_file(folder / "model.safetensors")
    assert sizes["dense_bytes"] == sum(tensor.nbytes for tensor in dense.values())


def test_another_format_may_be_asked_for(folder):
    model, masks = pruned(dtype=torch.float32)
    save_compact(model, masks, folder)
    low, _ = load_compact(folder, CPU, torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in low.state_dict().items())


def test_the_tokenizer_goes_along(folder, tmp_path):
    save_compact(*pruned(), folder)
    save_tokenizer(train_tokenizer(["the red cat sat on the mat"], 262), folder)
    expand(folder, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (folder / name).read_bytes()


def test_wrong_masks_are_refused(folder):
    model, masks = pruned()
    name = next(iter(masks))
    flipped = masks[name].clone()
    flipped[masks[name] & (model.get_parameter(name) != 0)] = False
    for wrong in (flipped, masks[name][:1], masks[name].int()):
        with pytest.raises(RequestError, match="give the masks it was pruned by"):
            save_compact(model, masks | {name: wrong}, folder)
    with pytest.raises(RequestError, match="no such parameter"):
        save_compact(model, masks | {"nothing": flipped}, folder)


def test_damaged_checkpoints_are_refused(folder, tmp_path):
    model, masks = pruned()
    save_compact(model, masks, folder)
    path = folder / FILE
    name = next(iter(masks))
    whole = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()

    def refused(match, tensors=whole, metadata=about):
        save_file(tensors, path, metadata)
        with pytest.raises(ArtifactError, match=match):
            load_compact(folder, CPU)

    flipped = whole[f"{name}.mask"].clone()
    flipped[0] ^= 1
    refused("values, but a mask of", whole | {f"{name}.mask": flipped})
    refused("values, but a mask of", whole | {f"{name}.mask": flipped[:-1]})
    refused("values, but a mask of", whole | {f"{name}.values": whole[f"{name}.values"][:-1]})
    refused("not a readable", {n: t for n, t in whole.items() if n != f"{name}.mask"})
    bias = name.removesuffix("weight") + "bias"
    refused(f"{bias} is None", {n: t for n, t in whole.items() if n != bias})
    refused(r"extra is \(2,\)", whole | {"extra": torch.zeros(2)})
    refused("is not of the format", metadata={})
    shapes = json.loads(about[FORMAT])
    shapes[name] = shapes[name][::-1] if shapes[name][0] != shapes[name][1] else [1, 64]
    refused("but the config's model has", metadata={FORMAT: json.dumps(shapes)})
    save_file(whole, path, about)
    load_compact(folder, CPU)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="not a readable compact checkpoint"):
        load_compact(folder, CPU)
    with pytest.raises(ArtifactError, match="no compact checkpoint"):
        load_compact(tmp_path, CPU)
    save_file(whole, path, about)
    shutil.move(folder / "config.json", tmp_path)
    with pytest.raises(ArtifactError, match="its config gives no model"):
        load_compact(folder, CPU)
