"""Checkpoints on the Hugging Face Hub: ``hf://user/repository[@revision]/path/model.safetensors``."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from ugicm.checkpoints.native import check_readable
from ugicm.errors import CheckpointError, first_line
from ugicm.extras import require_packages

_ADDRESS = re.compile(r"hf://(?P<repo_id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<filename>.+)")


def local_path(checkpoint: str | os.PathLike) -> str | os.PathLike:
    """Return the path of a checkpoint on this machine, after downloading one of the Hub into its cache.

    Raises:
        CheckpointError: there is no such file, or it can neither be downloaded nor found in the cache.
        MissingPackageError: for an address of the Hub, if huggingface_hub is not installed.
    """
    if isinstance(checkpoint, str) and checkpoint.startswith("hf://"):
        checkpoint = _download(checkpoint)
    check_readable(checkpoint)
    return checkpoint


def _download(address: str) -> str:
    parts = _ADDRESS.fullmatch(address)
    if not parts:
        raise CheckpointError(f"{address}: not an address of a file; expected hf://user/repository[@revision]/file")
    require_packages("integrations", address, "huggingface_hub")
    from huggingface_hub import errors, hf_hub_download

    revision = parts["revision"] and unquote(parts["revision"])
    try:
        return hf_hub_download(parts["repo_id"], parts["filename"], revision=revision, library_name="ugicm")
    except errors.LocalEntryNotFoundError:  # offline, or no connection
        reason = "not in the cache, and the Hub cannot be reached; check HF_HUB_OFFLINE, HF_HOME and the connection"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or it is private or gated; log in with hf auth login"
    except errors.RevisionNotFoundError:
        reason = f"the repository has no revision {revision!r}"
    except errors.EntryNotFoundError:
        reason = "the repository has no such file"
    except (OSError, ValueError) as error:  # of the connection, of the disk, or an invalid name
        reason = first_line(error)
    raise CheckpointError(f"{address}: cannot be loaded: {reason}")
