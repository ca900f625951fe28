"""Configuration: frozen dataclasses and a strict yaml loader.

Every key of a yaml file is a field of a dataclass. An unknown key, a value of the wrong type and values that
do not fit together are :class:`~ugicm.errors.ConfigError` with the file, the key and what would have worked.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ugicm.config.training import Draw, Source, TrainConfig
from ugicm.errors import ConfigError


def from_dict(cls: type, values: Any, where: str, key: str = "") -> Any:
    """Build the dataclass ``cls`` from plain yaml values.

    ``where`` names the source for messages (a file), ``key`` the place in it (``optim.lr``). Nested dataclasses,
    tuples, mappings, optional fields and unions are converted by field type; PyYAML reads ``1e-4`` as a string,
    so numbers are accepted in string form. Raises :class:`ConfigError`.
    """
    _check_keys(cls, values, where, key)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_at(where, key)}: missing key {name!r}")
    converted = {
        name: _convert(hints[name], value, where, f"{key}.{name}" if key else name) for name, value in values.items()
    }
    try:
        return cls(**converted)
    except ConfigError as error:
        section = "" if not key or str(error).startswith(f"{key.partition('.')[0]}: ") else f"{key}: "
        raise ConfigError(f"{where}: {section}{error}") from None


def _shown(value: Any) -> str:
    """As ``repr``, but short whatever it is: a few lines of yaml can stand for millions of values."""
    return reprlib.repr(value) if not isinstance(value, str) else repr(value if len(value) < 200 else value[:200] + "…")


def _at(where: str, key: str) -> str:
    return f"{where}: {key}" if key else where


def _check_keys(cls: type, values: Any, where: str, key: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{_at(where, key)}: expected a mapping of keys, got {_shown(values)}")
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{_at(where, key)}: unknown key {name!r}; {hint}")


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not types.NoneType), value, where, key)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{_at(where, key)}: expected a list, got {_shown(value)}")
        return tuple(_convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{_at(where, key)}: expected a mapping, got {_shown(value)}")
        return {str(k): _convert(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{_at(where, key)}: expected true or false, got {_shown(value)}")
    if hint is int and type(value) is int and abs(value) < 2**63:  # as a float it might be another
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float and math.isfinite(number):
                return number
            if hint is int and number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{_at(where, key)}: expected {getattr(hint, '__name__', hint)}, got {_shown(value)}")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values that yaml and json can hold (tuples become lists)."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    A yaml file may name another as its ``base``; its own keys are laid over the base's, mapping by mapping. Of mappings
    whose keys are free (``terms``, ``layers``, ``lr_scale``), null takes out a key and ``{}`` all of them.
    Paths are relative to the yaml they stand in. ``overrides`` are ``a.b=value`` with yaml values; their paths
    are relative to the current directory. Raises :class:`ConfigError`.
    """
    values = _read_layers(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {override}: expected KEY=VALUE, for example optim.lr=1e-5")
        try:
            layer: Any = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: not a yaml value: {_one_line(error)}") from None
        for part in reversed(key.split(".")):
            layer = {part: layer}
        values = _overlay(TrainConfig, values, _check_layer(TrainConfig, layer, f"--set {override}", "", Path.cwd()))
    return from_dict(TrainConfig, values, str(path))


class _Loader(yaml.SafeLoader):
    """Takes no key twice: plain yaml drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for i, key in enumerate(keys) if isinstance(key, str) and key in keys[:i]), None):
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands here twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_layers(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.absolute()
    if path in seen:
        raise ConfigError(f"{path}: is its own base")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not yaml: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {_shown(values)}")
    base = values.pop("base", None)
    values = _check_layer(TrainConfig, values, str(path), "", path.parent)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the name of a yaml file, got {_shown(base)}")
    return _overlay(TrainConfig, _read_layers(path.parent / base, (*seen, path)), values)


def _names_file(value: str) -> bool:
    """Whether a value that may be a file or a name is a file."""
    return "/" in value or value.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _overlay(hint: Any, lower: Any, upper: Any) -> Any:
    """Values of type ``hint``: ``upper`` laid over ``lower``, mapping by mapping."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)), hint)  # of X | None
    # A Draw's three forms exclude each other: the upper one replaces the lower one.
    if hint is Draw and {"fixed", "choices", "range"} & set(upper):
        return upper
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return {**lower, **{key: _overlay(hints[key], lower.get(key), value) for key, value in upper.items()}}
    # Keys are the user's own: an empty mapping empties the lower one, null takes out a key.
    of = typing.get_args(hint)[1]
    merged = {**lower, **{key: _overlay(of, lower.get(key), value) for key, value in upper.items()}}
    return {key: value for key, value in merged.items() if value is not None} if upper else {}


def _check_layer(hint: Any, values: Any, where: str, key: str, folder: Path) -> Any:
    """Check the keys of one file before it is merged, so that messages name it, and make its paths absolute."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if dataclasses.is_dataclass(a) or typing.get_origin(a)]
        return _check_layer(options[0], values, where, key, folder) if options and values is not None else values
    if dataclasses.is_dataclass(hint):
        if hint is Source and isinstance(values, str):
            values = {"path": values}
        _check_keys(hint, values, where, key)
        hints = typing.get_type_hints(hint)
        paths = {f.name: f.metadata["path"] for f in dataclasses.fields(hint) if f.metadata.get("path")}
        checked = {}
        for name, value in values.items():
            if name in paths and isinstance(value, str) and (paths[name] is True or _names_file(value)):
                checked[name] = os.path.normpath(folder / Path(value).expanduser())
            else:
                checked[name] = _check_layer(hints[name], value, where, f"{key}.{name}" if key else name, folder)
        return checked
    if origin is tuple and isinstance(values, (list, tuple)):
        return [_check_layer(arguments[0], v, where, f"{key}[{i}]", folder) for i, v in enumerate(values)]
    if origin is dict and isinstance(values, dict):
        return {k: _check_layer(arguments[1], v, where, f"{key}.{k}", folder) for k, v in values.items()}
    return values
