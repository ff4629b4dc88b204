"""Methods with options, as results and configurations name them: bk+chunk+checkpoint."""

from dataclasses import dataclass

from paramscope.dpsgd.methods import Options
from paramscope.errors import RequestError
from paramscope.names import DPSGD_METHODS, DPSGD_OPTIONS


@dataclass(frozen=True)
class Variant:
    """A method, its options, and whether weights are in bfloat16."""

    method: str
    options: Options
    bf16: bool


def variant_of(name: str, chunk_tokens: int) -> Variant:
    """What a name means; `chunk_tokens` are a chunk's where it asks for chunks.

    Raises:
        RequestError: an unknown method or option, or an option given twice.
    """
    method, *options = name.split("+")
    if method not in DPSGD_METHODS:
        raise RequestError(f"method '{method}' is not known; give {', '.join(DPSGD_METHODS)}")
    unknown = [option for option in options if option not in DPSGD_OPTIONS]
    if unknown or len(set(options)) < len(options):
        told = f"option '{unknown[0]}' is not known" if unknown else "an option comes twice"
        raise RequestError(f"method '{name}': {told}; options are {', '.join(DPSGD_OPTIONS)}")
    if "chunk" in options and chunk_tokens < 1:
        raise RequestError(f"chunk_tokens is {chunk_tokens}; give 1 or more for +chunk")
    chunk = chunk_tokens if "chunk" in options else 0
    return Variant(method, Options(chunk, "checkpoint" in options), "bf16" in options)
