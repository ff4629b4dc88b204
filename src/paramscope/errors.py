"""Errors that a user can act on: one or two lines, and the exit code they end in."""

from collections.abc import Iterator
from contextlib import contextmanager


class ParamscopeError(Exception):
    """A failure whose message names the cause and the mend."""

    exit_code = 1


class RequestError(ParamscopeError):
    """What was asked for can't be done as asked."""

    exit_code = 2


class UnsupportedModelError(RequestError):
    """A model that can't be gone through as asked; what could be done, the one who asks knows."""

    advised = False


@contextmanager
def otherwise(remedy: str) -> Iterator[None]:
    """A block out of which an UnsupportedModelError comes with `remedy`, unless it has one."""
    try:
        yield
    except UnsupportedModelError as error:
        if not error.advised:
            error.args, error.advised = (f"{error}; {remedy}",), True
        raise


class ConfigError(RequestError):
    """The configuration is wrong."""


class ArtifactError(ParamscopeError):
    """A file is missing, damaged, or not what it was declared to be."""


class DeviceError(RequestError):
    """The device asked for is not there or can't do the work."""
