"""Models to plan for: their sizes against closed forms, and what can't be one."""

import pytest
import torch
from transformers import GPT2Config, MambaConfig, OPTConfig, Qwen2Config, T5Config

from paramscope.errors import RequestError
from paramscope.planner.models import (
    DIFFERENT,
    POSITIONS,
    PRESETS,
    VOCABULARY,
    configuration,
    new_model,
    parameters,
    shrunk,
    with_layers,
)

# What the weights on the hub hold, as given by the counts of facebook/opt-*.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
}


def closed_form(name):
    """OPT's parameters from its sizes (Zhang et al. 2022), written out."""
    sizes = PRESETS[name]
    d, f = sizes.hidden, sizes.ffn
    width = DIFFERENT.get(name, {}).get("word_embed_proj_dim", d)
    attention = 4 * (d * d + d)
    mlp = d * f + f + f * d + d
    norms = 2 * 2 * d
    embeddings = VOCABULARY * width + (POSITIONS + 2) * d  # the head is tied; 2 positions for pads
    projections = 2 * width * d if width != d else 0  # in and out, without a bias
    final = 2 * d if name not in DIFFERENT else 0  # none where norms come after the residual
    return sizes.layers * (attention + mlp + norms) + embeddings + projections + final


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name):
    assert closed_form(name) == PUBLISHED[name]
    assert parameters(name) == PUBLISHED[name]


def test_a_folder_is_read_and_counts_like_its_model(tmp_path):
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=3, n_head=2, n_positions=16)
    config.save_pretrained(tmp_path)
    real = sum(p.numel() for p in new_model(config, torch.float32).parameters())
    assert parameters(tmp_path) == parameters(str(tmp_path)) == parameters(config) == real


def test_more_layers_add_the_same_each():
    config = configuration("opt-125m")
    sizes = [parameters(with_layers(config, n)) for n in (2, 3, 12)]
    assert sizes[2] == PUBLISHED["opt-125m"] == sizes[0] + 10 * (sizes[1] - sizes[0])
    assert config.num_hidden_layers == 12  # the source stays as it is


def test_layers_whose_kinds_follow_from_their_number_are_left_to():
    few = with_layers(MambaConfig(num_hidden_layers=6), 2)
    assert len(few.layer_types) == few.num_hidden_layers == 2
    mixed = Qwen2Config(
        num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2
    )
    assert with_layers(mixed, 3).layer_types == mixed.layer_types[:3]


def test_shrunk_models_keep_their_layers():
    config = configuration("opt-350m")
    small = new_model(with_layers(shrunk(config), 1), torch.float32)
    names = {name for name, _ in small.named_modules()}
    assert {"model.decoder.project_in", "model.decoder.project_out"} <= names
    assert sum(p.numel() for p in small.parameters()) < 50_000
    config.model_type = "unheard-of"
    assert shrunk(config) is None


def test_what_is_no_model_is_told_with_the_mend(tmp_path):
    with pytest.raises(RequestError, match=r"did you mean opt-125m\?.*\n.*a preset \(opt-125m"):
        configuration("facebook/opt-125")
    with pytest.raises(RequestError, match=r"no config\.json there; give a model folder"):
        configuration(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "perceptron-9000"}')
    with pytest.raises(RequestError, match="perceptron-9000"):
        configuration(tmp_path)
    with pytest.raises(RequestError, match=r"no causal language model of type 't5'.*opt, gpt2"):
        configuration(T5Config())
    with pytest.raises(RequestError, match=r"can't be built.*mend its config\.json"):
        parameters(OPTConfig(hidden_size=10, num_attention_heads=3))
