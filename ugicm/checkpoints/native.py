"""The checkpoint format: a safetensors file whose metadata holds the whole configuration.

Metadata keys: ``format`` ("ugicm"), ``config`` (the model's configuration, json), and whatever the writer adds
(step, git revision, versions ...). Tensors are stored under the module names of
:class:`ugicm.models.ugicm.UGICM`, in float32 or float16, with the entropy coder's integer CDF tables among them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.utils.deterministic
from torch.overrides import TorchFunctionMode

from ugicm import atomic
from ugicm.config import LARGEST_SCALE, ModelConfig, from_dict, to_dict
from ugicm.entropy.model import TABLES
from ugicm.errors import CheckpointError, first_line, first_of
from ugicm.models.ugicm import UGICM

FORMAT = "ugicm"
_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_OFFSET = 2**16  # of a table: its symbols, less this, stay below what the rANS encoder can escape
LARGEST_QUANTILE = 2**12  # the tables of the factorized prior reach from the lowest to the highest
# Buffers that follow from the configuration or from CompressAI's constants: not stored.
_DERIVED = ("likelihood_lower_bound.bound", "lower_bound_scale.bound", "scale_bound", "bottleneck.target",
            "pedestal", "lower_bound.bound", "relative_position_index")  # fmt: skip


def model_state(model: UGICM) -> dict[str, torch.Tensor]:
    """What a checkpoint stores: parameters and CDF tables."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith(_DERIVED) and v.numel()}


def save_model(path: str | os.PathLike, model: UGICM, metadata: dict[str, str] | None = None, half: bool = False):
    """Write ``model`` (not prepared for coding: see below) to a safetensors file, atomically.

    ``half`` stores floating point tensors as float16, except the factorized prior and the tabulated scales;
    the model is rounded accordingly when it is loaded, by writer and reader alike. CDF tables are stored where
    they have been built (``model.parser.build_tables()``); a checkpoint of an unfinished training has none.

    Raises ValueError for a model after ``prepare_for_coding``: its weights are rounded already; CheckpointError for
    values that are not finite, which no reader would take; ugicm.commands.batch.WriteError where the file cannot be written.
    """
    if model.fingerprint:
        raise ValueError("save the model before prepare_for_coding(): its parsing weights have been rounded")
    state = {}
    for name, tensor in model_state(model).items():
        tensor = tensor.detach().cpu().contiguous()
        narrow = half and tensor.is_floating_point() and "bottleneck" not in name and "scale_table" not in name
        state[name] = tensor.half() if narrow else tensor
    _refuse(str(path), "values that are not finite", [k for k, v in state.items() if not bool(torch.isfinite(v).all())])
    described = {**(metadata or {}), "format": FORMAT, "config": json.dumps(to_dict(model.config))}
    with atomic.replacing(path) as temporary:
        try:
            safetensors.torch.save_file(state, temporary, metadata=described)
        except safetensors.SafetensorError as error:  # how it reports that the file cannot be written
            raise OSError(errno.EIO, first_line(error)) from None
        os.chmod(temporary, 0o644)  # safetensors makes it private


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a checkpoint is taken for one of ours, by its suffix; what is not is taken for a released one."""
    return Path(path).suffix.lower() == ".safetensors"


def check_readable(path: str | os.PathLike) -> None:
    """Raises CheckpointError where there is no file to read, in the words that every reader of weights uses."""
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder: name the file in it")
        if not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: no such file")
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of one of our checkpoints. Raises CheckpointError where ``path`` is not one."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors checkpoint: {error}") from None
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not a ugicm checkpoint (no config in its metadata)")
    return metadata


def load_model(path: str | os.PathLike) -> UGICM:
    """Build the model a checkpoint describes and load it: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: not one of our checkpoints, or tensors missing, unexpected, mis-shaped or not finite.
    """
    metadata = read_metadata(path)
    try:
        config = from_dict(ModelConfig, json.loads(metadata["config"]), f"{path}: config")
    except (ValueError, RecursionError) as error:  # json and int() raise plain ones
        raise CheckpointError(f"{path}: {error}") from None
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors checkpoint: {error}") from None
    model = blank_model(config, str(path), os.path.getsize(path))
    load_state(model, state, str(path))
    return model.eval()


def blank_model(config: ModelConfig, where: str, size: int) -> UGICM:
    """A model whose parameters have yet to be loaded, from ``size`` bytes: they hold whatever the memory held.

    Drawing random values that are overwritten at once takes seconds for the large forms; and memory that nobody has
    written to costs nothing, so that a checkpoint of a few bytes whose configuration asks for more than the machine
    has is found out by its shapes before it does harm. (Not all can wait: GDN computes with its N x N first values.)

    Raises CheckpointError, with ``where`` in its message, for a configuration that describes no model, or one that
    cannot come from so few bytes.
    """
    if 2 * config.N**2 > size:  # every form has layers of N x N, of two bytes a weight at the least
        raise CheckpointError(f"{where}: {size} bytes cannot hold a model of its configuration: N is {config.N}")
    try:
        with _WithoutInitialValues(), _memory_as_it_is():
            return UGICM(config)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise CheckpointError(
            f"{where}: a model of its configuration cannot be built here: {first_line(error)}"
        ) from None


@contextlib.contextmanager
def _memory_as_it_is() -> Iterator[None]:
    """In its deterministic mode PyTorch writes to all memory that it hands out."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill


class _WithoutInitialValues(TorchFunctionMode):
    """While it is active, what would change a parameter in place leaves it as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if in_place and isinstance(target, torch.nn.Parameter):
            return target
        return func(*args, **kwargs)


def load_state(
    model: UGICM, state: dict[str, torch.Tensor], where: str, shown: Callable[[str], str] = lambda name: name
) -> None:
    """Load ``state`` strictly into ``model``, after checking it; CDF tables may have any length or be absent.

    ``shown``: a tensor's name as messages give it, for files with other names.

    Raises CheckpointError naming the first offending tensors.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith(_DERIVED)}
    expected = {k: v for k, v in own.items() if not k.endswith(TABLES)}
    _refuse(where, "missing tensors", [shown(k) for k in expected if k not in state])
    _refuse(where, "unexpected tensors", [shown(k) for k in state if k not in own])
    _refuse(where, "wrong shapes", [
        f"{shown(k)} is {list(state[k].shape)}, expected {list(v.shape)}"
        for k, v in expected.items() if state[k].shape != v.shape
    ])  # fmt: skip
    _refuse(where, "no plain floating point tensors", [shown(k) for k in expected if not plain(state[k])])
    infinite = [shown(k) for k in expected if not bool(torch.isfinite(state[k]).all())]
    _refuse(where, "values that are not finite", infinite)
    for prior in ("bottleneck", "gaussian"):
        _check_tables(state, f"parser.{prior}", model, where)
    with torch.no_grad():
        for name, tensor in state.items():
            module_name, _, leaf = name.rpartition(".")
            if leaf in TABLES:
                setattr(model.get_submodule(module_name), leaf, tensor.to(torch.int32))
            else:
                own[name].copy_(tensor)
    _check_priors(model, where)


def plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor can hold weights: floating point of 16 bits or more, and :func:`in_memory`."""
    return tensor.dtype in _WEIGHTS and in_memory(tensor)


def in_memory(tensor: torch.Tensor) -> bool:
    """Whether every value of a tensor is there, as a number: it is not sparse or quantized, not on the meta device, no
    view of fewer values."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def _check_priors(model: UGICM, where: str) -> None:
    """See that the numbers which the CDF tables are built from give tables of a sensible size.

    Raises CheckpointError.
    """
    scales, quantiles = model.parser.gaussian.scale_table, model.parser.bottleneck.quantiles
    if not bool((scales[0] > 0) & (scales.diff() > 0).all() & (scales[-1] <= LARGEST_SCALE)):
        raise CheckpointError(f"{where}: its tabulated scales do not rise from above 0 to {LARGEST_SCALE} at most")
    if not bool((quantiles.diff() >= 0).all() & (quantiles.abs() <= LARGEST_QUANTILE).all()):
        raise CheckpointError(
            f"{where}: quantiles of its factorized prior do not rise within +-{LARGEST_QUANTILE}: "
            f"{quantiles.min():.4g} ... {quantiles.max():.4g}"
        )


def _refuse(where: str, problem: str, found: list[str]) -> None:
    if found:
        raise CheckpointError(f"{where}: {problem}: {first_of(found)}")


def _check_tables(state: dict, prior: str, model: UGICM, where: str) -> None:
    """CDF tables are read by C++ code that does not check them, so they are checked here."""
    offset, cdf, length = (state.get(f"{prior}.{name}") for name in TABLES)
    if offset is None and cdf is None and length is None:
        return
    rows = model.config.N if prior.endswith("bottleneck") else model.config.scale_levels
    complaint = None
    if offset is None or cdf is None or length is None:
        complaint = "some of its CDF tables are missing"
    elif cdf.dim() != 2 or len(cdf) != rows or offset.shape != (rows,) or length.shape != (rows,):
        complaint = f"CDF tables of {list(cdf.shape)}, expected {rows} rows"
    elif any(table.dtype not in (torch.int32, torch.int64) for table in (cdf, offset, length)):
        complaint = "CDF tables must be integers"
    elif bool(((offset < -LARGEST_OFFSET) | (offset > LARGEST_OFFSET)).any()):
        complaint = f"CDF offsets beyond +-{LARGEST_OFFSET}"
    elif bool(((length < 3) | (length > cdf.shape[1])).any()):
        complaint = "CDF lengths out of range"
    else:
        inside = torch.arange(cdf.shape[1], device=cdf.device)[None, :] < length[:, None]
        steps = (cdf[:, 1:].long() - cdf[:, :-1].long())[inside[:, 1:]]
        last = cdf.gather(1, length.long()[:, None] - 1)
        if bool((cdf[:, 0] != 0).any()) or bool((last != 1 << 16).any()) or bool((steps <= 0).any()):
            complaint = "a CDF does not rise from 0 to 65536"
    if complaint:
        raise CheckpointError(f"{where}: {prior}: {complaint}")
