"""What methods are profiled on: a model at random weights, and a batch of random tokens."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.load import Architecture, opt_config, random_model
from paramscope.models.sequences import Sequences

FAMILIES = ("llama", "opt", "gpt2")


@dataclass(frozen=True)
class Workload:
    """Sizes of a model and of a physical batch.

    Attributes:
        name: what results call it.
        family: transformers' architecture.
        hidden: width of the residual stream.
        layers: decoder layers.
        heads: attention heads.
        ffn: neurons of a layer's MLP.
        vocabulary: tokens.
        length: T, tokens a sample; all have that many.
        batch: B, samples a step.
        tied: the head's weight is the token embedding's.

    Raises:
        RequestError: a size under 1, a family that is not known, or heads that don't divide the
            width.
    """

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    length: int
    batch: int
    tied: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise RequestError(f"family '{self.family}' is not known; give {', '.join(FAMILIES)}")
        for key, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise RequestError(f"workload {self.name}: {key} is {value}; give 1 or more")
        if self.length < 2:
            raise RequestError(f"workload {self.name}: length is 1; a token to predict takes 2")
        if self.hidden % self.heads:
            raise RequestError(
                f"workload {self.name}: {self.heads} heads don't divide a width of {self.hidden}"
            )


def architecture(workload: Workload) -> PretrainedConfig:
    """The configuration of the workload's model; without dropout."""
    w = workload
    if w.family == "opt":
        return opt_config(
            Architecture(w.hidden, w.layers, w.heads, w.ffn, positions=w.length),
            w.vocabulary,
            dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=w.tied,
        )
    if w.family == "gpt2":
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=w.vocabulary, n_embd=w.hidden, n_layer=w.layers, n_head=w.heads,
            n_inner=w.ffn, n_positions=w.length, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            tie_word_embeddings=w.tied,
        )  # fmt: skip
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=w.vocabulary, hidden_size=w.hidden, num_hidden_layers=w.layers,
        num_attention_heads=w.heads, num_key_value_heads=w.heads, intermediate_size=w.ffn,
        max_position_embeddings=w.length, tie_word_embeddings=w.tied,
    )  # fmt: skip


def new_model(
    workload: Workload, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> PreTrainedModel:
    """The workload's model at random weights, ready to be trained."""
    torch.manual_seed(seed)
    return random_model(architecture(workload), dtype, device).train()


def new_batch(workload: Workload, device: torch.device, seed: int = 0) -> Sequences:
    """Random tokens, all samples of full length."""
    generator = torch.Generator().manual_seed(seed)
    shape = workload.batch, workload.length
    ids = torch.randint(workload.vocabulary, shape, generator=generator)
    lengths = torch.full((workload.batch,), workload.length)
    names = tuple(f"sample-{i}" for i in range(workload.batch))
    return Sequences(ids, lengths, names).to(device)


def described(workload: Workload, model: PreTrainedModel) -> dict[str, Any]:
    """The workload for a record, with the model's number of parameters."""
    return asdict(workload) | {"parameters": sum(p.numel() for p in model.parameters())}
