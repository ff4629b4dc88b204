"""Making, loading and saving causal language models of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from paramscope.errors import ArtifactError, RequestError

disable_progress_bar()  # transformers' own bars flash by a file


@dataclass(frozen=True)
class Architecture:
    """Sizes of an OPT model (Zhang et al. 2022, arXiv:2205.01068)."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int


def opt_config(architecture: Architecture, vocabulary: int, **settings: Any) -> PretrainedConfig:
    """The configuration of an OPT model of these sizes; `settings` are more of it, or instead.

    What is not given is as published: dropout 0.1, the head tied to the token embedding.
    """
    from transformers import OPTConfig

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": architecture.hidden,
        "word_embed_proj_dim": architecture.hidden,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "ffn_dim": architecture.ffn,
        "max_position_embeddings": architecture.positions,
    }
    return OPTConfig(**(sizes | settings))


def random_model(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A causal language model of `config` at its architecture's random weights, on `device`."""
    with device:  # made there: fake parameters can't be moved
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    return model


def new_opt(architecture: Architecture, vocabulary: int, seed: int) -> PreTrainedModel:
    """An OPT model at random weights: the published initialisation, no dropout, head tied."""
    config = opt_config(architecture, vocabulary, dropout=0.0, attention_dropout=0.0)
    torch.manual_seed(seed)
    return random_model(config, torch.float32, torch.device("cpu"))


def load_model(
    source: Path | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model folder or a hub id, in eval mode on `device`.

    Raises:
        ArtifactError: no such folder, not a model, or weights that are not finite.
        RequestError: a hub id that this machine can't reach.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(source, Path):
            raise ArtifactError(f"{source}: not a model folder that loads: {line}") from error
        raise RequestError(
            f"checkpoint '{source}': {line}; give a local folder or a hub id that is in reach"
        ) from error
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ArtifactError(f"{source}: tensor {name} holds NaN or infinity")
    return model.eval().to(device)


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Next-token logits, [B, T, V], for right-padded ids [B, T].

    Positions are handed over for every sequence, so that a position embedding's output has
    a row a sequence and its gradient is not summed over the batch.

    Raises:
        RequestError: sequences longer than the model's positions.
    """
    B, T = ids.shape
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < T:
        raise RequestError(f"sequences of {T} tokens, but the model has {limit} positions")
    positions = torch.arange(T, device=ids.device).repeat(B, 1)
    output: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return output
