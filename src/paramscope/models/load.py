"""Making, loading and saving causal language models of transformers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
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


def new_opt(architecture: Architecture, vocabulary: int, seed: int) -> PreTrainedModel:
    """An OPT model at random weights: the published initialisation, no dropout, head tied."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocabulary,
            hidden_size=architecture.hidden,
            word_embed_proj_dim=architecture.hidden,
            num_hidden_layers=architecture.layers,
            num_attention_heads=architecture.heads,
            ffn_dim=architecture.ffn,
            max_position_embeddings=architecture.positions,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )


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
