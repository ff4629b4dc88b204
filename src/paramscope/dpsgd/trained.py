"""Which layers of a model are trained, and whether their samples' gradients can be known."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.heads import linear_head
from paramscope.persample.layers import is_known, unknown
from paramscope.persample.sharing import tied_embedding

REMEDY = "method micro would do"  # for a model whose samples' gradients can't be told apart


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
        RequestError: as `check_private`.
        UnsupportedModelError: of another kind; or layers other than a tied head and its
            embedding share a parameter.
    """
    check_private(model)
    head = linear_head(model)
    layers: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        wanted = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
        if wanted and not is_known(module):
            raise unknown(name, module)
        if wanted:
            layers[name] = tuple(wanted)
    tied = tied_embedding(model, head, lambda parameter: parameter.requires_grad)
    head_name = next(name for name, module in model.named_modules() if module is head)
    head_wanted = layers.pop(head_name, ())
    return Trained(layers, head, head_name, head_wanted, tied)
