"""What must not change the numbers: how the graph is held, checkpoints, batches, formats."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paramscope.curvature.block import block_bytes, ggn_blocks, rows_of
from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.moments import moments
from paramscope.errors import RequestError
from paramscope.models.blocks import blocks, checkpointed
from paramscope.models.heads import last_hidden, without_head
from paramscope.models.load import logits
from paramscope.persample.capture import CaptureError, capture
from tests.unit.conftest import make_tiny
from tests.unit.test_ggn import exact_ggn_diagonal, flat


@pytest.mark.parametrize("graph", ["checkpointed", "layerwise"])
def test_every_way_to_hold_the_graph_gives_the_same_bits(tiny, sequences, graph):
    """The same operations in the same order, so not even rounding differs."""
    whole = ggn_draws(tiny, sequences, range(3), seed=0, batch_size=4)
    other = ggn_draws(tiny, sequences, range(3), seed=0, batch_size=4, graph=graph)
    assert flat(whole[0]).abs().sum() > 0
    for a, b in zip(whole, other, strict=True):
        assert torch.equal(flat(a), flat(b))
    assert "forward" not in vars(blocks(tiny)[0][1])  # the model is as it was
    assert tiny.get_output_embeddings() is not None


def test_what_is_kept_shrinks_from_whole_to_checkpointed(tiny_opt, sequences):
    """Bytes that autograd keeps between forward and backward, counted by its own hooks."""

    def kept(context):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with (
            without_head(tiny_opt),
            capture(tiny_opt, sequences.ids.shape),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            context,
        ):
            last_hidden(tiny_opt, sequences.ids)
        return sum(sizes.values())

    from contextlib import nullcontext

    # Inner hooks win, so inside checkpointed blocks `pack` is not asked: only borders are seen.
    assert kept(checkpointed(tiny_opt)) < 0.5 * kept(nullcontext())


class Stack(nn.Module):
    """Checkpointed layers, one of them called twice within its checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.again = partial(checkpoint, self.middle, use_reentrant=reentrant)

    def middle(self, x):
        return self.shared(torch.tanh(self.shared(x)))

    def forward(self, x):
        return self.last(self.again(torch.tanh(self.first(x))))


def test_a_checkpoint_counts_each_call_once():
    """Recomputed calls are the same calls: pairs must equal those of the plain model."""
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Stack(reentrant=False).double()
    seen = {}
    for name, again in (("checkpointed", model.again), ("plain", model.middle)):
        model.again = again
        pairs = seen[name] = {}

        def receive(name, module, a, g, pairs=pairs):
            pairs[name] = a, g

        with capture(model, (3, 5)) as captured:
            output = model(x)
            for _ in range(2):
                captured.backward(output, torch.ones_like(output), receive, retain_graph=True)
    assert seen["plain"].keys() == {"first", "shared", "last"}
    assert seen["plain"]["shared"][0].shape == (3, 10, 4)
    for name, pair in seen["plain"].items():
        for a, b in zip(pair, seen["checkpointed"][name], strict=True):
            assert torch.equal(a, b)


def test_reentrant_checkpoints_are_refused():
    model = Stack(reentrant=True)
    with (
        pytest.raises(CaptureError, match=r"shared.*use_reentrant=False"),
        capture(model, (3, 5)),
    ):
        model(torch.randn(3, 5, 4))


def test_a_layer_that_is_never_called_is_named():
    """Attention that reads its output layer's weight without calling it, for one."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(self.called(x), self.read.weight)

    with (
        pytest.raises(CaptureError, match=r"^read was not called.*can't be seen$"),
        capture(model := Reader(), (3, 5)),
    ):
        model(torch.randn(3, 5, 4))


def test_a_call_that_leads_nowhere_is_left_out():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            self.linear(x + 1)
            return self.linear(x)

    model, x, pairs = Dead(), torch.randn(2, 3, 4), []
    with capture(model, (2, 3)) as captured:
        output = model(x)
        captured.backward(output, torch.ones_like(output), lambda n, m, a, g: pairs.append((a, g)))
    ((a, g),) = pairs
    assert torch.equal(a, x)
    assert torch.equal(g, torch.ones(2, 3, 4))


def test_pairs_that_nobody_takes_are_told():
    model, x = nn.Linear(4, 4), torch.randn(2, 3, 4)
    with (
        pytest.raises(CaptureError, match="go back by the `backward`"),
        capture(nn.Sequential(model), (2, 3)),
    ):
        model(x).sum().backward()


def test_no_activations_outlive_a_batch(tiny_opt, sequences):
    """The graph must be in no ring of references, which only the collector would undo."""
    import gc
    import weakref

    from paramscope.curvature.passes import Passes

    for graph in ("whole", "checkpointed", "layerwise"):
        gone = []
        gc.disable()
        try:
            for drawn in Passes(tiny_opt, sequences, 3, graph).batches(range(2), 0, "test"):
                drawn.backward(lambda *pair: None)
                gone.append(weakref.ref(drawn.forward.hidden))
            del drawn
            assert [one() for one in gone] == [None, None], graph
        finally:
            gc.enable()


def with_head_bias(model):
    head = model.lm_head
    generator = torch.Generator().manual_seed(3)
    head.bias = nn.Parameter(torch.randn(len(head.weight), generator=generator).to(head.weight))
    return model


def test_a_heads_bias_is_exact(sequences):
    model = with_head_bias(make_tiny())
    exact = exact_ggn_diagonal(model, sequences)
    (draw,) = ggn_draws(model, sequences, range(1), seed=0, batch_size=6)
    assert exact["lm_head.bias"].abs().sum() > 0
    torch.testing.assert_close(draw["lm_head.bias"], exact["lm_head.bias"], rtol=1e-9, atol=1e-14)
    mean = moments(ggn_draws(model, sequences, range(200), seed=0, batch_size=6)).mean
    # 200 draws of 6 sequences: about 1 / √600 relative noise in a tensor's sum, correlated.
    for name, value in exact.items():
        if not name.endswith("k_proj.bias"):
            assert float(mean[name].sum()) == pytest.approx(float(value.sum()), rel=0.25), name


def test_logits_changed_after_the_head_are_refused(sequences):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1, head_dim=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        final_logit_softcapping=5.0,
    )  # fmt: skip
    with pytest.raises(RequestError, match=r"not its head's own output.*hutchinson"):
        ggn_draws(Gemma2ForCausalLM(config).eval(), sequences, range(1), seed=0, batch_size=6)


def test_norms_on_each_head_are_handled(sequences):
    """Qwen3 normalises queries and keys head by head: several calls' worth a token."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1, head_dim=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    exact = exact_ggn_diagonal(model, sequences)
    mean = moments(ggn_draws(model, sequences, range(300), seed=0, batch_size=6)).mean
    names = [name for name in exact if name.endswith(("q_norm.weight", "k_norm.weight"))]
    assert len(names) == 2
    for name in names:  # about √(2 / 1800) of noise in an entry
        torch.testing.assert_close(mean[name], exact[name], rtol=0.25, atol=0)


def test_bfloat16_weights_give_float32_sums_near_float32s(sequences):
    model = make_tiny().float()
    (exact,) = ggn_draws(model, sequences, range(1), seed=0, batch_size=6)
    (rough,) = ggn_draws(model.bfloat16(), sequences, range(1), seed=0, batch_size=6)
    assert all(value.dtype == torch.float32 for value in rough.values())
    a, b = flat(exact), flat(rough)
    # bf16 keeps 8 bits; the labels are the same but for those that rounding moves over an edge.
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.98
    assert float(b.sum()) == pytest.approx(float(a.sum()), rel=0.1)


UNITS = (
    "model.decoder.layers.0.fc1.weight:3",
    "model.decoder.layers.0.self_attn.v_proj.weight:5",
    "model.decoder.layers.1.fc2.weight:0",
)


def exact_block(model, sequences, row):
    """One row's block of the exact G, by the full Jacobian of the logits."""
    parameters = dict(model.named_parameters())
    pair = [parameters[f"{row.layer}.weight"], parameters[f"{row.layer}.bias"]]
    total = torch.zeros(row.size, row.size, dtype=torch.float64)
    for i in range(len(sequences)):
        length = int(sequences.lengths[i])
        z = logits(model, sequences.ids[i : i + 1, :length])[0, :-1]
        p = z.detach().softmax(-1)
        eye = torch.eye(z.numel(), dtype=z.dtype).reshape(-1, *z.shape)
        weight, bias = torch.autograd.grad(z, pair, eye, is_grads_batched=True)
        J = torch.cat([weight[:, row.row], bias[:, row.row, None]], 1)
        J = J.reshape(*z.shape, row.size)
        mean = torch.einsum("tv,tvn->tn", p, J)
        total += torch.einsum("tv,tvn,tvm->nm", p, J, J) - mean.T @ mean
    return total / sequences.n_predicted


def test_blocks_are_unbiased_and_their_diagonals_are_the_draws(tiny_opt, sequences):
    rows = rows_of(tiny_opt, UNITS)
    assert [row.size for row in rows] == [9, 9, 17]
    assert block_bytes(rows, draws=2, element_bytes=8) == 2 * 8 * (81 + 81 + 289)
    drawn = ggn_blocks(tiny_opt, sequences, rows, range(400), seed=0, batch_size=4)
    (diagonal,) = ggn_draws(tiny_opt, sequences, range(1), seed=0, batch_size=4)
    for row in rows:
        own = torch.cat(
            [
                diagonal[f"{row.layer}.weight"][row.row],
                diagonal[f"{row.layer}.bias"][row.row, None],
            ]
        )
        torch.testing.assert_close(drawn[0][row.unit].diagonal(), own, rtol=1e-9, atol=1e-15)
        exact = exact_block(tiny_opt, sequences, row)
        stacked = torch.stack([draw[row.unit] for draw in drawn])
        noisy = stacked.std(0) > 0  # a ReLU that never fires has an exact zero
        assert torch.equal(stacked.mean(0)[~noisy], exact[~noisy])
        z = ((stacked.mean(0) - exact) / (stacked.std(0) / 400**0.5))[noisy]
        assert len(z) > 20
        assert 0.4 < float(z.std()) < 1.6  # entries of a block share their few sequences' noise
        assert float(z.abs().max()) < 5


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("model.decoder.layers.0.fc1.weight:99", "16 rows"),
        ("model.decoder.layers.0.fc1:1", "LAYER.weight:ROW"),
        ("model.decoder.final_layer_norm.weight:0", "no row of a linear layer"),
        ("lm_head.weight:0", "of the head"),
    ],
)
def test_units_that_have_no_block_are_refused(tiny_opt, unit, words):
    with pytest.raises(RequestError, match=words):
        rows_of(tiny_opt, [unit])


MEMORY = """
import sys, torch
from transformers import OPTConfig, OPTForCausalLM
from paramscope.curvature.ggn import ggn_draws
from paramscope.memory import Microbatch, limit_memory
from paramscope.models.sequences import padded
torch.set_num_threads(1)
torch.manual_seed(0)
model = OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=128, word_embed_proj_dim=128,
    num_hidden_layers=4, num_attention_heads=2, ffn_dim=512, max_position_embeddings=256,
    dropout=0.0)).eval()
text = padded([torch.randint(4, 64, (256,)).tolist() for _ in range(96)],
    [f"d{i}" for i in range(96)])
run = lambda size: ggn_draws(model, text, range(1), seed=0, batch_size=size)[0]
free = run(1)
held = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line) / 1e6
limit_memory(held + 0.3, torch.device("cpu"))
kept = Microbatch(96).fit(run)
error = max(float((free[n] - kept[n]).abs().max() / free[n].abs().max()) for n in free
    if not n.endswith("k_proj.bias"))
print("error", error)
"""


def test_a_limit_of_memory_halves_the_batch_and_changes_nothing():
    """768 MB of activations in a batch of 96, 8 a sequence; the system refuses more than 300.

    However large the process is that starts it: its own peak is not held against the child.
    """
    ballast = torch.ones(2**28)  # 1 GB
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=120
    )
    assert ballast[-1] == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "out of memory: going on with 48 sequences a forward"
    assert float(lines[-1].split()[1]) < 1e-4  # float32 sums in another order
