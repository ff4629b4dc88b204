"""Models to plan for: an architecture and its size, without a weight.

Presets are OPT's (Zhang et al. 2022, arXiv:2205.01068, table 1), with the settings that its
published configurations have on the hub (facebook/opt-*): a vocabulary of 50,272, 2,048
positions, and for OPT-350M embeddings of 512 and normalisation after the residual.
"""

from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from paramscope.errors import RequestError
from paramscope.models.faking import faked
from paramscope.models.load import Architecture, opt_config, random_model

Source: TypeAlias = str | Path | PretrainedConfig

VOCABULARY = 50_272
POSITIONS = 2_048
PRESETS: Mapping[str, Architecture] = MappingProxyType(
    {
        "opt-125m": Architecture(768, 12, 12, 3_072, POSITIONS),
        "opt-350m": Architecture(1_024, 24, 16, 4_096, POSITIONS),
        "opt-1.3b": Architecture(2_048, 24, 32, 8_192, POSITIONS),
        "opt-2.7b": Architecture(2_560, 32, 32, 10_240, POSITIONS),
        "opt-6.7b": Architecture(4_096, 32, 32, 16_384, POSITIONS),
        "opt-13b": Architecture(5_120, 40, 40, 20_480, POSITIONS),
        "opt-30b": Architecture(7_168, 48, 56, 28_672, POSITIONS),
    }
)
DIFFERENT: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"opt-350m": {"word_embed_proj_dim": 512, "do_layer_norm_before": False}}
)
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
SMALL: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {  # sizes that leave a family's layers as they are and cost nothing to run
        "opt": {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_attention_heads": 2,
                "vocab_size": 16},
        "gpt2": {"n_embd": 8, "n_inner": 8, "n_head": 2, "vocab_size": 16},
        "llama": {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2,
                  "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 16},
    }
)  # fmt: skip


def configuration(source: Source) -> PretrainedConfig:
    """The configuration of a preset, a folder with config.json, a hub id, or itself: a copy.

    A string that names a preset is one; else a folder if it is there; else a hub id.

    Raises:
        RequestError: none of these, or an architecture that transformers has no causal language
            model of.
    """
    if isinstance(source, PretrainedConfig):
        found = deepcopy(source)
    elif isinstance(source, str) and source in PRESETS:
        return opt_config(PRESETS[source], VOCABULARY, **DIFFERENT.get(source, {}))
    else:
        found = _read(source)
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RequestError(
            f"model {_called(source)}: transformers has no causal language model of type "
            f"'{found.model_type}'; give one of a type such as opt, gpt2 or llama, "
            f"or a preset: {', '.join(PRESETS)}"
        )
    return found


def _read(source: str | Path) -> PretrainedConfig:
    folder = Path(source)
    local = isinstance(source, Path) or folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise RequestError(f"{source}: no config.json there; give a model folder, or a preset")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    close = get_close_matches(str(source).lower().rpartition("/")[2], PRESETS, 1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise RequestError(
        f"model '{source}'{meant}: {line}\n"
        f"Give a preset ({', '.join(PRESETS)}), a folder with config.json, or a hub id in reach."
    )


def _called(source: Source) -> str:
    return type(source).__name__ if isinstance(source, PretrainedConfig) else f"'{source}'"


def layer_key(config: PretrainedConfig) -> str | None:
    """What the configuration calls its number of layers; None where it is not known."""
    return next((key for key in LAYERS if isinstance(getattr(config, key, None), int)), None)


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same model with another number of layers.

    Raises:
        RequestError: it is not known how the configuration counts them.
    """
    key = layer_key(config)
    if key is None:
        raise RequestError(
            f"{type(config).__name__} tells no number of layers ({', '.join(LAYERS)})"
        )
    changed = deepcopy(config)
    setattr(changed, key, layers)
    kinds = getattr(changed, "layer_types", None)
    if kinds and len(kinds) != layers:  # where it does not follow by itself
        changed.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    return changed


def alike(config: PretrainedConfig) -> bool:
    """Whether the model's layers are all of one kind, as far as the configuration tells."""
    return len(set(getattr(config, "layer_types", None) or ("same",))) == 1


def shrunk(config: PretrainedConfig) -> PretrainedConfig | None:
    """A model of the same layers at a size that runs at once; None for families not known."""
    sizes = SMALL.get(config.model_type)
    if sizes is None:
        return None
    small = deepcopy(config)
    for key, value in sizes.items():
        if getattr(small, key, None) is not None:
            setattr(small, key, value)
    width = getattr(config, "word_embed_proj_dim", None)
    if width is not None and width != config.hidden_size:
        small.word_embed_proj_dim = 4  # keeps the projections
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, key, None)
    return small


def new_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model at random weights on the CPU, in eval mode; fake inside `models.faking.faked`.

    Raises:
        RequestError: transformers can't build it with torch's own attention.
    """
    try:
        model = random_model(config, dtype, torch.device("cpu"))
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RequestError(
            f"a model of type '{config.model_type}' can't be built: {line}; mend its config.json"
        ) from error
    return model.eval()


def parameters(source: Source) -> int:
    """N, counted from the architecture; a tied head counts once.

    Raises:
        RequestError: as `configuration`.
    """
    config = configuration(source)
    text = config.to_json_string(use_diff=False)
    if text not in _counted:
        with faked():
            model = new_model(config, torch.float32)
        _counted[text] = sum(parameter.numel() for parameter in model.parameters())
    return _counted[text]


_counted: dict[str, int] = {}  # N by configuration
