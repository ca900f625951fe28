"""The parts of CompressAI that the codec stands on, loaded without the rest of it.

``import compressai`` runs all of CompressAI and, for its point clouds, torch_geometric, pandas and torch's compiler,
and scipy.stats: more than half of the time that a command took. So these packages are registered without being run, and
only the modules named below are run. Whoever asks for anything else in the same process gets the whole after all.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import Any

__all__ = ["GDN", "BufferedRansEncoder", "EntropyBottleneck", "GaussianConditional", "RansDecoder", "conv1x1"]


def register_unrun(name: str, **attributes: Any) -> None:
    """Let ``name.part`` be imported without running the package ``name`` itself.

    Its ``__init__`` runs when somebody asks the package for what it does not have yet. ``attributes`` are what its
    modules ask it for, as it would answer. Nothing is done where the package has been imported already, or is missing.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return
    package = importlib.util.module_from_spec(spec)
    lock, has_run = threading.RLock(), False

    def run(attribute: str) -> Any:
        nonlocal has_run
        with lock:
            if not has_run:  # once: while it runs, its own imports come through here, too
                has_run = True
                spec.loader.exec_module(package)
        try:
            return vars(package)[attribute]
        except KeyError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None

    vars(package).update(attributes, __getattr__=run)
    sys.modules[name] = package


register_unrun("scipy.stats")  # CompressAI imports it for one number, which tables that are built already do without
register_unrun("compressai", get_entropy_coder=lambda: "ans", available_entropy_coders=lambda: ["ans"])

from compressai.ans import BufferedRansEncoder, RansDecoder  # noqa: E402
from compressai.entropy_models import EntropyBottleneck, GaussianConditional  # noqa: E402
from compressai.layers import GDN, conv1x1  # noqa: E402
