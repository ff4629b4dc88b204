"""Where plans are kept between runs; torch is not loaded."""

import os
from collections.abc import Mapping
from pathlib import Path


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$PARAMSCOPE_CACHE, else the folder paramscope in the user's cache folder."""
    if own := environ.get("PARAMSCOPE_CACHE"):
        return Path(own)
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "paramscope"
