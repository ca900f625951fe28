"""Configuration classes whose field types state the allowed values.

A configuration class is a frozen dataclass derived from :class:`Section`, with fields such as
``name: Literal["adam", "adamw"]`` or ``crop: Annotated[int, Range(64, multiple_of=64)]``. :func:`check` converts and
checks all values. It runs whenever an object is made, from a file or in Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import os
import reprlib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from ugicm.errors import ConfigError

T = TypeVar("T", bound="Section")


@dataclass(frozen=True)
class Range:
    """Allowed range of a number, or of the length of a list. Only ``above`` and ``below`` are exclusive."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    multiple_of: int = 0

    def __call__(self, value: Any, key: str) -> Any:
        """Return ``value``. Raises ConfigError if it is not in the range."""
        number, what = (len(value), "length ") if isinstance(value, tuple) else (value, "")
        rules = {
            f"at least {self.low}": number >= self.low,
            f"at most {self.high}": number <= self.high,
            f"above {self.above}": number > self.above,
            f"below {self.below}": number < self.below,
            f"a multiple of {self.multiple_of}": not self.multiple_of or number % self.multiple_of == 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        require(not broken, f"{key}: {what}must be {' and '.join(broken)}, got {number}")
        return value


class FileText(str):
    """Text from a file in ``folder``; a path in it is relative to that folder."""

    folder: Path | None = None


def absolute_path(value: FileText, key: str) -> str:
    """Return the absolute path for text from a file, and other text unchanged."""
    folder = getattr(value, "folder", None)
    return str(value) if folder is None else os.path.normpath(folder / Path(value).expanduser())


def path_or_url(value: FileText, key: str) -> str:
    """Return text with a protocol (``s3://``) unchanged, and the absolute path for other text from a file."""
    return str(value) if "://" in value else absolute_path(value, key)


def path_or_name(value: FileText, key: str) -> str:
    """Return the absolute path if ``value`` looks like a file of weights, else ``value``."""
    is_file = "/" in value or value.endswith((".pt", ".pth", ".bin", ".safetensors"))
    return absolute_path(value, key) if is_file else str(value)


def function_or_name(value: FileText, key: str) -> str:
    """Return ``FILE.py:function`` with the absolute path of the file, and other text unchanged."""
    return absolute_path(value, key) if ".py:" in value else str(value)


class Section:
    """Base of all configuration classes. Raises ConfigError for a value that the type of its field does not allow."""

    shorthand: ClassVar[str] = ""  # field that is meant if text is given in place of a mapping

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            object.__setattr__(self, name, check(hint, getattr(self, name), f"{type(self).__name__}.{name}"))
        self.validate()

    def validate(self) -> None:
        """Check relations between fields. Raises ConfigError."""

    @classmethod
    def variant(cls, values: dict, key: str) -> type[Section]:
        """Return the class that describes ``values``: ``cls`` or one derived from it."""
        return cls


def from_dict(cls: type[T], values: Any, where: str) -> T:
    """Build an object of ``cls``, or of a class derived from it, from plain values as YAML and JSON hold them.

    ``where`` names their source in error messages, usually a file. Raises ConfigError if a key is unknown or missing,
    or a value is not allowed. The message names the path of the key and what is allowed.
    """
    try:
        return check(cls, values, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).lstrip('.: ')}") from None


def to_dict(config: Section) -> dict[str, Any]:
    """Return a configuration as plain values that YAML and JSON can hold. Tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


@functools.cache
def field_types(cls: type[Section]) -> dict[str, Any]:
    """Return the types of a configuration class's fields by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check(hint: Any, value: Any, key: str) -> Any:
    """Return ``value`` converted to the type ``hint``. Raises ConfigError if it is not allowed.

    ``key`` is the path of the key for error messages. Numbers may be given as text, as which PyYAML reads ``1e-4``. In
    mappings None stands for a key that is not given.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, constraint = arguments
        return constraint(check(kind, value, key), key)
    if origin in (typing.Union, types.UnionType):  # X | None
        return None if value is None else check(arguments[0], value, key)
    if origin is Literal:
        require(value in arguments, f"{key}: {shown(value)} not found; {_available(value, arguments)}")
        return arguments[arguments.index(value)]
    if origin is tuple:
        fixed = arguments[-1] is not ...
        good = isinstance(value, (list, tuple)) and (not fixed or len(value) == len(arguments))
        require(good, f"{key}: expected a list{f' of {len(arguments)} values' if fixed else ''}, got {shown(value)}")
        kinds = arguments if fixed else arguments[:1] * len(value)
        return tuple(check(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if origin is dict:
        require(isinstance(value, dict), f"{key}: expected a mapping, got {shown(value)}")
        given = {k: v for k, v in value.items() if v is not None}
        return {check(arguments[0], k, f"{key}.{k}"): check(arguments[1], v, f"{key}.{k}") for k, v in given.items()}
    if issubclass(hint, Section):
        return value if isinstance(value, hint) else _build(hint, value, key)
    return _scalar(hint, value, key)


def _scalar(kind: type, value: Any, key: str) -> Any:
    if kind is FileText and isinstance(value, str) or type(value) is kind and kind is not float:
        return value
    if kind is str and isinstance(value, str):
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number) and (kind is float or number == int(number)):
                return kind(number)
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", FileText: "a path"}
    raise ConfigError(f"{key}: expected {names[kind]}, got {shown(value)}")


def _build(cls: type[T], values: Any, key: str) -> T:
    if isinstance(values, str) and cls.shorthand:
        values = {cls.shorthand: values}
    require(isinstance(values, dict), f"{key}: expected a mapping of keys, got {shown(values)}")
    cls = cls.variant(values, key)
    hints = field_types(cls)
    for name in values:
        require(name in hints, f"{key}.{name}: unknown key; {_available(name, hints)}")
    values = {name: value for name, value in values.items() if value is not None}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        require(field.name in values or not required, f"{key}.{field.name}: missing key")
    converted = {name: check(hints[name], value, f"{key}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _available(name: Any, known: Any) -> str:
    """Return "available: …" with all known names and the nearest one."""
    near = difflib.get_close_matches(name[:100], known, n=1) if isinstance(name, str) else ()
    return f"available: {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")


def shown(value: Any) -> str:
    """Return a short representation of any value. A few lines of YAML can stand for millions of values."""
    if isinstance(value, str):
        return repr(value[:200])
    return reprlib.repr(list(value) if isinstance(value, tuple) else value)
