"""Specifications of codecs, classifiers and detectors on the command line: ``NAME[=PATH][:key=value ...]``.

``avif:speed=6``, ``resnet101``, ``resnet101=weights/resnet101.pth``,
``timm/vit_small_patch16_224=w.safetensors``, ``squeezenet1_1=w.pth:normalize=none:classifier.1.padding=1``,
``networks/mine.py:build:label=mine``.
A key with dots sets an attribute of a module inside the network, for weights that were trained with a small
change to it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ugicm.errors import CheckpointError, ConfigError, first_line

_OPTION = re.compile(r":(?=[A-Za-z_][\w.]*=)")  # does not split C:\path and URLs
_FUNCTION = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Spec:
    """A parsed specification. Values of ``options`` are Python literals where possible, else strings.

    For ``FILE.py:function``, ``name`` is that of the file without extension, ``where`` the file.
    """

    name: str
    where: str | None = None
    options: dict = field(default_factory=dict)
    text: str = ""
    function: str | None = None

    def take(self, attributes: bool = False, **defaults):
        """Return options by name, with defaults. Options with a dot are allowed if ``attributes``; they are not part
        of the result but of :attr:`attributes`.

        Raises ConfigError for an option that is not among ``defaults``.
        """
        known = {"label", *defaults, *(self.attributes if attributes else ())}
        unknown = [key for key in self.options if key not in known]
        if unknown:
            available = ", ".join([*defaults, "label"])
            raise ConfigError(f"{self.text}: unknown option '{unknown[0]}'; available: {available}")
        return {key: self.options.get(key, default) for key, default in defaults.items()}

    @property
    def label(self) -> str:
        """The name in tables and legends."""
        return str(self.options.get("label", self.name.split("/", 1)[-1]))

    @property
    def attributes(self) -> dict:
        """Options that set attributes of inner modules, by dotted name."""
        return {key: value for key, value in self.options.items() if "." in key}

    @property
    def changes(self) -> str:
        """The attributes as part of a network's identity, each after a space; empty if there are none."""
        return "".join(f" {key}={value}" for key, value in self.attributes.items())


def parse_spec(text: str) -> Spec:
    """Parse ``NAME[=PATH][:key=value ...]`` or ``FILE.py:function[:key=value ...]``.

    Raises ConfigError if there is no valid name.
    """
    head, *rest = _OPTION.split(text.strip())
    if function := _FUNCTION.fullmatch(head):
        name, where = Path(function[1]).stem, function[1]
    else:
        name, _, where = head.partition("=")
        if not re.fullmatch(r"[\w./@ -]+", name) or name.endswith(".py"):
            raise ConfigError(f"{text!r}: expected NAME, NAME=PATH or FILE.py:function, then :key=value")
    options = {}
    for part in rest:
        key, _, value = part.partition("=")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return Spec(name, where or None, options, text, function and function[2])


def set_attributes(root, attributes: dict, text: str) -> None:
    """Set attributes of modules inside ``root``, given by dotted names.

    A scalar replaces every entry of a tuple: ``1`` for a padding of ``(0, 0)`` becomes ``(1, 1)``.
    Raises ConfigError for a module or attribute that does not exist, or that cannot have such a value.
    """
    for dotted, value in attributes.items():
        path, _, attribute = dotted.rpartition(".")
        try:
            module = root.get_submodule(path)
            old = getattr(module, attribute)
        except AttributeError:
            raise ConfigError(f"{text}: the network has no '{dotted}' to set") from None
        if isinstance(old, tuple) and not isinstance(value, tuple):
            value = (value,) * len(old)
        try:
            setattr(module, attribute, value)
        except (AttributeError, TypeError) as error:  # weights, modules and properties do not accept plain values
            raise ConfigError(f"{text}: '{dotted}' cannot be set: {first_line(error)}") from None


def download(build: Callable[[], Any], spec: Spec, weights: str) -> Any:
    """Return ``build()``, which downloads weights. Raises CheckpointError with instructions if that fails."""
    try:
        return build()
    except Exception as error:  # hubs, HTTP libraries and file systems each raise their own
        cause = getattr(error, "reason", error)  # urllib wraps errors of the network
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise CheckpointError(
            f"{spec.name}: {weights} could not be downloaded ({reason}); download the file elsewhere and "
            f"pass it as {spec.name}=PATH"
        ) from error


def natural_order(name: str) -> list[str | float]:
    """Return a key that sorts names by the numbers in them: q2 before q10, 0.0018 before 0.013."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]
