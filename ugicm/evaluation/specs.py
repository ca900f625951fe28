"""How codecs, judges and detectors are named on the command line: ``NAME[=WHERE][:key=value ...]``.

``avif:speed=6``, ``resnet101``, ``resnet101=weights/resnet101.pth``,
``timm/vit_small_patch16_224=w.safetensors``, ``squeezenet1_1=w.pth:normalize=none:classifier.1.padding=1``.
A key with dots sets an attribute of a module inside the network, for weights that were trained with a small
change to it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from ugicm.errors import ConfigError, first_line

_OPTION = re.compile(r":(?=[A-Za-z_][\w.]*=)")  # so that C:\path and URLs are left whole


@dataclass(frozen=True)
class Spec:
    """A parsed name. ``options`` values are Python literals where they read as such, else strings."""

    name: str
    where: str | None = None
    options: dict = field(default_factory=dict)
    text: str = ""

    def take(self, attributes: bool = False, **defaults):
        """Options by name, with defaults. Raises ConfigError for an option that is not among ``defaults``; with
        ``attributes`` those with a dot are left to :func:`set_attributes`."""
        known = {"label", *defaults, *(self.attributes if attributes else ())}
        unknown = [key for key in self.options if key not in known]
        if unknown:
            available = ", ".join([*defaults, "label"])
            raise ConfigError(f"{self.text}: unknown option '{unknown[0]}'; available: {available}")
        return {key: self.options.get(key, default) for key, default in defaults.items()}

    @property
    def label(self) -> str:
        """What tables and legends show."""
        return str(self.options.get("label", self.name.split("/", 1)[-1]))

    @property
    def attributes(self) -> dict:
        """Options that set attributes of inner modules, by dotted name."""
        return {key: value for key, value in self.options.items() if "." in key}

    @property
    def changes(self) -> str:
        """The attributes as the identity of a network has them, each after a space; empty where there are none."""
        return "".join(f" {key}={value}" for key, value in self.attributes.items())


def parse_spec(text: str) -> Spec:
    """Parse ``NAME[=WHERE][:key=value ...]``. Raises ConfigError where there is no name."""
    head, *rest = _OPTION.split(text.strip())
    name, _, where = head.partition("=")
    if not name or not re.fullmatch(r"[\w./@ -]+", name):
        raise ConfigError(f"{text!r}: expected NAME, NAME=PATH or NAME=PATH:key=value")
    options = {}
    for part in rest:
        key, _, value = part.partition("=")
        options[key] = _literal(value)
    return Spec(name, where or None, options, text)


def set_attributes(root, attributes: dict, text: str) -> None:
    """Set attributes of modules inside ``root``, given by dotted names that end in the attribute's.

    The new value takes the shape of the old one: ``1`` for a padding of ``(0, 0)`` becomes ``(1, 1)``.
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
        except (AttributeError, TypeError) as error:  # weights, modules and properties take no plain values
            raise ConfigError(f"{text}: '{dotted}' cannot be set: {first_line(error)}") from None


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
