"""Strategies: on fake tensors each takes what its real run takes, byte for byte."""

import pytest
from transformers import GPT2Config, LlamaConfig, MixtralConfig, OPTConfig, Qwen2Config

from paramscope.errors import RequestError
from paramscope.planner.estimate import estimate, measure
from paramscope.planner.models import SMALL, parameters
from paramscope.planner.options import Options
from paramscope.planner.strategies import NAMES, STRATEGIES, check

SHAPE = {"batch": 3, "length": 12}


def config(kind="opt", layers=2, **settings):
    if kind == "opt":
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24}
        return OPTConfig(
            vocab_size=40, num_hidden_layers=layers, num_attention_heads=2,
            max_position_embeddings=32, **(sizes | settings),
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2Config(vocab_size=40, n_embd=16, n_layer=layers, n_head=2, n_positions=32)
    return LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip


CASES = [
    *((name, {}) for name in STRATEGIES if name != "prune-magnitude"),
    ("prune-magnitude", {"dtype": "bfloat16"}),  # where scores are tied
    ("inference", {"dtype": "bfloat16"}),
    ("gradient", {"checkpointing": True}),
    ("training", {"checkpointing": True, "dtype": "bfloat16"}),
    ("training", {"optimizer": "foreach"}),
    ("training", {"optimizer": "fused"}),
    ("masked_finetune", {"density": 0.1, "dtype": "bfloat16"}),
    ("masked_finetune", {"checkpointing": True}),
    ("dpsgd-bk", {"chunk_tokens": 5, "checkpointing": True}),
    ("dpsgd-flash", {"checkpointing": True, "optimizer": "foreach"}),
    ("ggn", {"graph": "checkpointed"}),
    ("ggn", {"graph": "layerwise", "draws": 2, "dtype": "bfloat16"}),
    ("hutchinson", {"draws": 2}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_takes_less_than_its_copies_of_the_weights(name, dtype):
    """The advice passes over what could not fit by them, without an estimate."""
    found = estimate(config(), name, Options(batch=1, length=2, dtype=dtype, draws=1))
    assert found.peak_bytes >= STRATEGIES[name].copies * found.breakdown["parameters"] > 0


def same(kind_of_config, name, options):
    fake, real = estimate(kind_of_config, name, options), measure(kind_of_config, name, options)
    assert fake.peak_bytes == real.peak_bytes > 0
    assert fake.breakdown == real.breakdown
    assert fake.phase == real.phase


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fake_tensors_take_what_real_ones_do(name, options):
    same(config(), name, Options(**SHAPE, **options))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["training", "masked_finetune", "ggn", "prune-wanda"])
def test_other_families_do_so_too(kind, name):
    same(config(kind), name, Options(**SHAPE))


def test_projections_and_late_norms_do_so_too():
    late = config(word_embed_proj_dim=8, do_layer_norm_before=False)
    for name in ("training", "ggn"):
        same(late, name, Options(**SHAPE))


def test_what_is_summed_up_is_no_saved_activation():
    N = parameters(config())
    for name, sums in (("ggn", 3), ("hutchinson", 3), ("xdiag", 1)):
        parts = estimate(config(), name, Options(**SHAPE, draws=sums)).breakdown
        assert parts["other"] >= 4 * sums * N, name
        assert parts["saved activations"] > 0, name
    pruned = estimate(config(), "prune-sparsegpt", Options(**SHAPE)).breakdown
    assert pruned["saved activations"] == 0
    assert pruned["other"] > 0


def test_ties_are_the_dearer_case():
    options = Options(**SHAPE)  # random float32 weights of a few hundred have no ties
    fake, real = (f(config(), "prune-magnitude", options) for f in (estimate, measure))
    largest = 16 * 24  # scores of a layer, of which ties take four bytes each
    assert 0 < fake.peak_bytes - real.peak_bytes <= 4 * largest


@pytest.mark.parametrize("name", ["training", "ggn", "dpsgd-bk", "kfac", "prune-sparsegpt"])
def test_families_that_nothing_here_knows_do_so_too(name):
    unknown = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert unknown.model_type not in SMALL
    asked = Options(batch=2, length=24)
    found = estimate(unknown, name, asked)
    assert found.how == "extrapolated"
    assert found.peak_bytes == measure(unknown, name, asked).peak_bytes


def test_what_does_not_run_without_values_is_refused():
    """A mixture of experts asks which expert a token goes to."""
    experts = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    told = "gradient can't be planned for models of type 'mixtral', whose code does not run on"
    with pytest.raises(RequestError, match=told):
        estimate(experts, "gradient", Options(length=8))
    with pytest.raises(RequestError, match="no per-sample gradient is known for a Mixtral"):
        estimate(experts, "dpsgd-bk", Options(length=8))


def test_options_that_can_not_be_are_refused():
    refused = [
        ("inferens", {}, "strategy 'inferens' is not known; known are inference"),
        ("inference", {"checkpointing": True}, "inference has no option checkpointing.*gradient"),
        ("dpsgd-ghost", {"chunk_tokens": 4}, "no option chunk_tokens.*dpsgd-vanilla"),
        ("gradient", {"optimizer": "fused"}, "no option optimizer.*training"),
        ("full_hessian", {"draws": 3}, "no option draws.*ggn"),
        ("training", {"dtype": "int8"}, "dtype 'int8'.*bfloat16"),
        ("training", {"optimizer": "lion"}, "optimizer 'lion': give default, plain"),
        ("training", {"batch": 0}, "batch is 0; give 1"),
        ("training", {"length": 1}, "length is 1; give 2"),
        ("masked_finetune", {"density": 0.0}, r"density 0.*\(0, 1\]"),
    ]
    for name, options, told in refused:
        with pytest.raises(RequestError, match=told):
            check(name, Options(**options))
    for name in NAMES:
        check(name, Options())
    with pytest.raises(RequestError, match="33 tokens, but the model has 32 positions"):
        estimate(config(), "inference", Options(length=33))
