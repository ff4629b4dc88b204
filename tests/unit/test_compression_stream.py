"""The oracles are hooks on the whole model's own forward, at the tokens that are no padding."""

import pytest
import torch

from paramscope.compression.layers import prunable
from paramscope.compression.statistics import SecondMoments, Squares
from paramscope.compression.stream import Stream
from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences, padded
from tests.unit.conftest import make_tiny

KINDS = ["opt", "gpt2", "llama"]
CPU = torch.device("cpu")
SUMS = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums in another order


@torch.no_grad()
def inputs_of(model, modules, sequences, batch_size):
    """The inputs of each module in a forward of the model, [tokens, d], padding left out."""
    seen = {name: [] for name in modules}
    for batch in sequences.batches(batch_size):
        text = (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]).flatten()

        def keep(name, text=text):
            return lambda m, args: seen[name].append(args[0].flatten(0, -2)[text].clone())

        handles = [m.register_forward_pre_hook(keep(name)) for name, m in modules.items()]
        logits(model, batch.ids)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def of_block(model, number):
    name, block = blocks(model)[number]
    layers = prunable(model)
    return block, {n: m for n, m in layers.items() if n.startswith(f"{name}.")}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_statistics_are_those_of_the_models_own_forward(kind, sequences):
    model = make_tiny(kind)
    stream = Stream(model, sequences, 4)
    for number in range(2):
        block, own = of_block(model, number)
        expected = inputs_of(model, own, sequences, 3)
        for name, module in own.items():
            rows = expected[name]
            assert len(rows) == int(sequences.lengths.sum())
            moments = SecondMoments(rows.shape[1], CPU, torch.float64)
            squares = Squares(rows.shape[1], CPU, torch.float64)
            stream.count(block, name, module, moments)
            stream.count(block, name, module, squares)
            torch.testing.assert_close(moments.full(), rows.T @ rows, **SUMS)
            torch.testing.assert_close(squares.squares, rows.square().sum(0), **SUMS)
            assert moments.rows == len(rows)
        stream.advance(block)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_behind_changed_blocks_the_states_are_the_changed_models(kind, sequences):
    model = make_tiny(kind)
    stream = Stream(model, sequences, 4)
    inside = blocks(model)
    for _, block in inside:
        for parameter in block.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.5)
        stream.advance(block)
    norm = next(m for n, m in model.named_modules() if n.endswith(("final_layer_norm", "ln_f"))
                or n == "model.norm")  # fmt: skip
    seen = []
    handle = norm.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    for batch in sequences.batches(4):
        logits(model, batch.ids)
    handle.remove()
    for call, hidden in zip(stream.calls, seen, strict=True):
        assert torch.equal(call.hidden, hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_grouped_by_the_input_they_share_in_the_order_of_the_forward(kind, sequences):
    model = make_tiny(kind)
    block, own = of_block(model, 1)
    with torch.no_grad():
        groups = Stream(model, sequences, 4).groups(block, own)
    assert [[name.rpartition(".")[2] for name in group] for group in groups] == {
        "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
        "gpt2": [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]],
        "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"],
                  ["down_proj"]],
    }[kind]  # fmt: skip


@torch.no_grad()
def test_what_stands_in_the_padding_counts_for_nothing(sequences):
    model = make_tiny("llama")
    other = sequences.ids.clone()
    for row, length in zip(other, sequences.lengths.tolist(), strict=True):
        row[length:] = 11
    found = []
    for ids in (sequences.ids, other):
        stream = Stream(model, Sequences(ids, sequences.lengths, sequences.names), 6)
        block, own = of_block(model, 0)
        name = next(n for n in own if n.endswith("down_proj"))
        squares = Squares(12, CPU, torch.float64)
        stream.count(block, name, own[name], squares)
        found.append(squares.squares)
    assert torch.equal(*found)
    assert found[0].min() > 0


@torch.no_grad()
def test_hidden_states_and_equal_arguments_are_held_once(sequences):
    model = make_tiny("llama")
    whole = padded(5 * [sequences.ids[0].tolist()], "abcde")
    stream = Stream(model, whole, 2)
    assert len(stream.calls) == 3
    assert len({call.hidden.untyped_storage().data_ptr() for call in stream.calls}) == 1
    assert stream.calls[0].hidden.untyped_storage().nbytes() == 8 * 5 * 9 * 8
    first, second, last = (call.kwargs["position_embeddings"][0] for call in stream.calls)
    assert first is second
    assert last.shape[0] == 1


def test_infinite_inputs_are_named(sequences):
    model = make_tiny("opt")
    block, own = of_block(model, 0)
    with torch.no_grad():
        model.model.decoder.layers[0].self_attn_layer_norm.bias[2] = float("nan")
        stream = Stream(model, sequences, 4)
        name = next(iter(own))
        with pytest.raises(RequestError, match=f"{name} gets inputs that are NaN"):
            stream.count(block, name, own[name], Squares(8, CPU, torch.float64))


def test_what_cant_be_streamed_is_refused(sequences):
    model = make_tiny("opt")
    long = Sequences(torch.ones(1, 40, dtype=torch.int64), torch.tensor([40]), ("long",))
    with pytest.raises(RequestError, match="40 tokens, but the model has 16 positions"):
        Stream(model, long, 1)
    _, own = of_block(model, 0)
    with torch.no_grad():
        stream = Stream(model, sequences, 4)
        other, _ = of_block(model, 1)
        with pytest.raises(RequestError, match="called 0 times"):
            stream.groups(other, own)
        model.config.layer_types = ["full_attention", "sliding_attention"]
        with pytest.raises(RequestError, match="blocks of several types"):
            Stream(model, sequences, 4)
