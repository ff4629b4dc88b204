"""Errors that a user can act on: one or two lines, and the exit code they end in."""


class ParamscopeError(Exception):
    """A failure whose message names the cause and the mend."""

    exit_code = 1


class RequestError(ParamscopeError):
    """What was asked for can't be done as asked."""

    exit_code = 2


class ConfigError(RequestError):
    """The configuration is wrong."""


class ArtifactError(ParamscopeError):
    """A file is missing, damaged, or not what it was declared to be."""


class DeviceError(RequestError):
    """The device asked for is not there or can't do the work."""
