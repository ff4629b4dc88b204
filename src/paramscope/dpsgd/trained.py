"""Which layers of a model are trained, and whether their samples' gradients can be known."""

from collections import defaultdict
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.heads import linear_head
from paramscope.persample.layers import is_linear, is_norm


@dataclass(frozen=True)
class Trained:
    """The trained layers of a model but for its head, and the head.

    Attributes:
        layers: names of the trained parameters of each layer, by the layer's name.
        head: the head.
        head_name: its name.
        head_wanted: names of its trained parameters.
        tied: name of the embedding whose weight the head's is; None where it has its own.
    """

    layers: dict[str, tuple[str, ...]]
    head: nn.Linear
    head_name: str
    head_wanted: tuple[str, ...]
    tied: str | None


def check_private(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a model whose samples do not mix.

    Raises:
        RequestError: a layer normalises over the batch, so that a sample's gradient hangs on the
            others; or nothing is trained.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise RequestError(
                f"{name}: a {type(module).__name__} mixes the samples of a batch, so no sample's "
                "part can be bounded; put a LayerNorm or GroupNorm in its place"
            )
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise RequestError("no parameter of the model is trained; let some require a gradient")
    return trained


def trained_layers(model: PreTrainedModel) -> Trained:
    """The trained layers, all of kinds whose per-sample gradients `persample` knows.

    Raises:
        RequestError: of another kind; or layers other than a tied head share a parameter.
    """
    check_private(model)
    head = linear_head(model)
    by_owner: dict[str, tuple[str, ...]] = {}
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        wanted = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
        if not wanted:
            continue
        if not (is_linear(module) or isinstance(module, nn.Embedding) or is_norm(module)):
            raise RequestError(
                f"{name}: no per-sample gradient is known for a {type(module).__name__}; known are "
                "Linear, Conv1D, Embedding, LayerNorm and RMSNorm; method micro would do"
            )
        by_owner[name] = tuple(wanted)
        for suffix in wanted:
            owners[id(module.get_parameter(suffix))].append(name)
    head_name = next(name for name, module in model.named_modules() if module is head)
    tied = None
    for names in owners.values():
        if len(names) == 1:
            continue
        others = [n for n in names if n != head_name]
        if len(others) > 1 or not isinstance(model.get_submodule(others[0]), nn.Embedding):
            raise RequestError(
                f"{' and '.join(names)} share a parameter, and only a head may share an "
                "embedding's; method micro would do"
            )
        tied = others[0]
    head_wanted = by_owner.pop(head_name, ())
    return Trained(by_owner, head, head_name, head_wanted, tied)
