"""The kinds of model that a configuration can name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from paramscope.config.section import Section, inconsistent

FEWEST_TOKENS = 260  # of a byte-level vocabulary: 256 bytes and OPT's 4 special tokens
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Scratch(Section):
    """An OPT architecture (Zhang et al. 2022, arXiv:2205.01068) at random weights.

    Tokenizer and base are trained on the public split.
    """

    kind: Literal["scratch"] = Field(description="Trained from scratch.")
    hidden: int = Field(ge=1, le=2**16, examples=[128], description="Width of the residual stream.")
    layers: int = Field(ge=1, examples=[4], description="Decoder layers.")
    heads: int = Field(ge=1, examples=[4], description="Attention heads; divides hidden.")
    ffn: int = Field(ge=1, examples=[512], description="Neurons of a layer's MLP.")
    vocab: int = Field(
        ge=FEWEST_TOKENS,
        examples=[2048],
        description="Tokens of the byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909), "
        "its 256 bytes and 4 special tokens included.",
    )
    positions: int = Field(ge=2, examples=[128], description="Tokens that a sequence can have.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            divisors = [n for n in range(1, self.hidden + 1) if not self.hidden % n]
            nearest = min(divisors, key=lambda n: abs(n - self.heads))
            raise inconsistent(
                "heads",
                self.heads,
                f"and does not divide hidden, {self.hidden}",
                f"give a divisor, such as {nearest}",
            )
        return self


class Planted(Section):
    """Synthetic units with known classes, and no model behind them.

    For trying embedding, partition and figures in seconds; every output says so.
    """

    kind: Literal["planted"] = Field(description="Synthetic.")
    units: int = Field(
        ge=144, le=27648, examples=[900], description="Units in all, over 36 tensors of 4 to 768."
    )


class Checkpoint(Section):
    """A causal language model of transformers as the base; the target is finetuned from it."""

    kind: Literal["checkpoint"] = Field(description="Weights and tokenizer as published.")
    source: str = Field(
        min_length=1,
        examples=["facebook/opt-125m"],
        description="A local folder, or an id on the Hugging Face hub.",
    )


Model = Annotated[Scratch | Planted | Checkpoint, Field(discriminator="kind")]
