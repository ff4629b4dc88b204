"""Tiny models in float64, each made once a session."""

import os

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from paramscope.models.sequences import padded

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the network
torch.set_num_threads(1)  # at these sizes a second thread only waits


def tiny_config(kind, tied):
    if kind == "opt":
        from transformers import OPTConfig

        return OPTConfig(
            vocab_size=24, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=2,
            num_attention_heads=2, ffn_dim=16, max_position_embeddings=16, dropout=0.0,
            tie_word_embeddings=tied,
        )  # fmt: skip
    if kind == "gpt2":
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=24, n_embd=8, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied,
        )  # fmt: skip
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        tie_word_embeddings=tied,
    )  # fmt: skip


def make_tiny(kind="opt", tied=True, seed=0):
    """A float64 model of a few thousand parameters, all of them away from their trivial start."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = tiny_config(kind, tied)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":  # works in float32 inside: too coarse here
                setattr(module, name, torch.nn.RMSNorm(len(child.weight), child.variance_epsilon))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Estimates are kept in a folder of the session's, not in the user's."""
    os.environ["PARAMSCOPE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def exact_attention():
    """The math kernel works in the model's own format, with derivatives of any order."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(scope="session", params=["opt", "opt-untied", "gpt2", "llama"])
def tiny(request):
    kind, _, untied = request.param.partition("-")
    return make_tiny(kind, tied=not untied and kind != "llama")


@pytest.fixture(scope="session")
def tiny_opt():
    return make_tiny()


@pytest.fixture(scope="session")
def sequences():
    """Six sequences of 4 to 9 tokens, with repeats, so that padding and joins are at work."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 24, (n,), generator=generator).tolist() for n in (9, 4, 7, 9, 5, 8)]
    rows[0][3] = rows[0][1]
    rows[3] = [5, 5, 6, 5, 7, 7, 8, 5, 9]
    return padded(rows, [f"doc-{i}" for i in range(len(rows))])
