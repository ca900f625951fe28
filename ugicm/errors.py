"""The exceptions that users of the package meet. All are ``ValueError``: the input was not usable."""

from __future__ import annotations


class UgicmError(ValueError):
    """Base of every error this package raises on purpose."""


class StreamError(UgicmError):
    """A compressed stream is damaged, truncated, foreign, or belongs to another model."""


class CheckpointError(UgicmError):
    """A checkpoint cannot be used: not a checkpoint, wrong shapes, missing keys, or values that are not finite."""


class ConfigError(UgicmError):
    """A configuration has an unknown key, a value of the wrong type, or values that do not fit together."""


class PictureError(UgicmError):
    """A picture file cannot be read. The message names the file."""
