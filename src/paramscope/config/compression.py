"""The compression study's part of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paramscope.config.section import Section, a_list, inconsistent, unique

Method = Literal["magnitude", "wanda", "sparsegpt", "gradual", "admm"]
STAGES = {"gradual"}  # methods that go down by stages, so have no fixed pattern


class Finetune(Section):
    """Finetuning of what a pruned model kept, on the public split; the best epoch is kept."""

    documents: int = Field(
        default=480, ge=0, description="Of the public split, the first so many; 0: all of them."
    )
    epochs: int = Field(default=3, ge=1, description="Passes over the text at most.")
    batch: int = Field(default=16, ge=1, description="Documents a step.")
    base_samples: int = Field(
        default=10_000, ge=1, description="Documents in all: base_samples / batch steps."
    )
    base_learning_rate: float = Field(
        default=5e-6, gt=0, description="Peak learning rate at a batch of 1; grows with its root."
    )
    max_steps: int = Field(
        default=0, ge=0, description="Steps in all, in place of base_samples; 0: by that."
    )
    learning_rate: float = Field(
        default=1e-3, ge=0, description="Peak, in place of base_learning_rate; 0: by that."
    )
    warmup_share: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps over which the rate rises."
    )
    accumulation: int = Field(default=1, ge=1, description="Forwards a step.")
    clip: float = Field(
        default=1.0, ge=0, description="Greatest norm of the masked gradient; 0: any."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Of AdamW.")
    patience: int = Field(
        default=0, ge=0, description="Epochs without a better one after which to stop; 0: never."
    )
    checkpoint_activations: bool = Field(
        default=False, description="Keep blocks' inputs alone in a backward: less memory, slower."
    )
    distillation: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the distance to the dense model's hidden states (SquareHead: "
        "Kurtic et al. 2023, arXiv:2310.06927).",
    )
    save_every: int = Field(
        default=50, ge=1, description="Steps between two saves that a killed run goes on from."
    )
    tensorboard: bool = Field(
        default=False,
        description="Show steps in TensorBoard, from logs/MODEL/finetune/*.tensorboard. Needs: "
        "pip install 'paramscope[tracking]'.",
    )
    wandb: bool = Field(
        default=False,
        description="Show steps in Weights & Biases, project paramscope. Needs the same.",
    )

    @model_validator(mode="after")
    def _batch_can_be_split(self) -> Self:
        if self.accumulation > self.batch:
            raise inconsistent(
                "accumulation", self.accumulation, f"and batch is {self.batch}", "give at most that"
            )
        return self


class EvaluationText(Section):
    """More text that perplexity is measured on."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="What results call it.")
    path: str = Field(description="A file of .txt, .raw, .jsonl or .parquet; of the dataset's.")
    dataset: str = Field(
        default="", description="Dataset on the Hugging Face hub, or a folder; empty: a local file."
    )


class Generation(Section):
    """BLEU and ROUGE of greedy continuations of evaluation documents."""

    enabled: bool = Field(default=False, description="Needs: pip install 'paramscope[generation]'.")
    prompt_tokens: int = Field(default=16, ge=1, description="Tokens of a document given.")
    new_tokens: int = Field(default=16, ge=1, description="Tokens to go on for.")


class Compression(Section):
    """Pruning to a density and finetuning what is left; made by: snakemake compression."""

    methods: Annotated[
        tuple[Method, ...],
        a_list(),
        AfterValidator(unique),
    ] = Field(
        default=("magnitude", "wanda", "sparsegpt", "gradual"),
        description="magnitude; wanda (Sun et al. 2023, arXiv:2306.11695); sparsegpt (Frantar and "
        "Alistarh 2023, arXiv:2301.00774); gradual: sparsegpt down the densities .5, .3, .2, .1, "
        ".05 to the one asked for, with recovery_steps of finetuning between; admm (cf. Boža 2024, "
        "arXiv:2401.02938).",
    )
    densities: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        a_list(),
        AfterValidator(unique),
    ] = Field(
        default=(0.5, 0.3, 0.2, 0.1, 0.05),
        description="Shares of the weights kept in every linear layer inside the blocks.",
    )
    pattern: Literal["unstructured", "2:4"] = Field(
        default="unstructured",
        description='"2:4": two of every four inputs, at density .5; not for gradual.',
    )
    blocksize: int = Field(default=128, ge=1, description="Columns a threshold of sparsegpt.")
    damping: float = Field(
        default=0.01, gt=0, description="Of sparsegpt and admm, as a share of the mean diagonal."
    )
    samples: int = Field(
        default=0, ge=0, description="Calibration documents, drawn anew each stage; 0: all."
    )
    recovery_steps: int = Field(
        default=0,
        ge=0,
        description="Steps of finetuning between two stages of gradual; taken off finetune's.",
    )
    control: bool = Field(
        default=True,
        description="Finetune the dense model alike, as magnitude at density 1: what finetuning "
        "does without pruning.",
    )
    batch: int = Field(default=4, ge=1, description="Sequences a forward: speed and memory alone.")
    memory_gb: float = Field(
        default=0.0, ge=0, description="Memory a job keeps to, in 10^9 bytes; 0: no limit."
    )
    finetune: Finetune = Finetune()
    texts: tuple[EvaluationText, ...] = Field(
        default=(),
        strict=False,
        examples=[[{"name": "news", "path": "news.txt"}]],
        description="More text that perplexity is measured on.",
    )
    generation: Generation = Generation()

    @model_validator(mode="after")
    def _pattern_fits(self) -> Self:
        if self.pattern == "2:4":
            by_stages = sorted(STAGES & set(self.methods))
            if tuple(self.densities) != (0.5,):
                raise inconsistent("densities", self.densities, "and 2:4 keeps half", "give [0.5]")
            if by_stages:
                raise inconsistent(
                    "methods", self.methods, "and 2:4 has no stages", f"take out {by_stages[0]}"
                )
        return self
