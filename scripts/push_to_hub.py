#!/usr/bin/env python3
"""Publish a checkpoint on the Hugging Face Hub: weights, configuration and a model card.

    python scripts/push_to_hub.py model.safetensors user/repository --private
    python scripts/push_to_hub.py model.safetensors user/repository --folder out/    # write files, upload nothing

The repository is created if there is none. Log in before with: hf auth login
Then: ugicm.load("hf://user/repository/model.safetensors")

Exit status: 0 published, 1 the upload failed, 2 invalid input.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from ugicm.arguments import ArgumentParser, run_command

WEIGHTS = "model.safetensors"
CARD = """\
---
library_name: ugicm
license: {license}
pipeline_tag: image-to-image
tags: [image-compression, learned-compression, machine-vision]
---

# {name}

A checkpoint of `ugicm`, a learned image codec: one bitstream is decoded for human or machine preference.

```python
import ugicm

codec = ugicm.load("hf://{repository}/{weights}")      # pip install "ugicm[integrations]"
data = codec.compress("photo.jpg", quality=0.5)
human, machine = codec.decompress(data, ["human", "machine"])
```

| | |
|---|---|
{rows}

Only this checkpoint decodes the bitstreams that it writes: their header holds its fingerprint, `{fingerprint}`.
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a .safetensors checkpoint of this project")
    parser.add_argument("repository", metavar="USER/REPOSITORY", help="name on the Hub")
    parser.add_argument("--license", default="mit", help="of the weights, for the model card (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="if the repository is created, make it private")
    parser.add_argument("--folder", type=Path, help="write the files into a folder instead of uploading them")
    args = parser.parse_args()
    if args.folder:
        write_files(args.checkpoint, args.repository, args.license, args.folder)
        print(f"{args.folder}: " + " ".join(sorted(path.name for path in args.folder.iterdir())))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_files(args.checkpoint, args.repository, args.license, Path(folder))
        upload(Path(folder), args.repository, args.private)
    print(f"hf://{args.repository}/{WEIGHTS}")
    return 0


def write_files(checkpoint: Path, repository: str, license_name: str, folder: Path) -> None:
    """Write weights, config.json and README.md into a folder. Raises CheckpointError for another kind of file."""
    import ugicm
    from ugicm import atomic
    from ugicm.checkpoints.native import read_metadata
    from ugicm.config import to_dict

    metadata, codec = read_metadata(checkpoint), ugicm.load(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(folder / WEIGHTS) as temporary:
        shutil.copyfile(checkpoint, temporary)
    atomic.write(folder / "config.json", (json.dumps(to_dict(codec.config), indent=2) + "\n").encode())
    facts = {**codec.describe(), **{key: metadata[key] for key in ("step", "revision") if key in metadata}}
    del facts["device"], facts["transform precision"]
    card = CARD.format(
        license=license_name, name=repository.rpartition("/")[2], repository=repository, weights=WEIGHTS,
        rows="\n".join(f"| {key} | {value} |" for key, value in facts.items()), fingerprint=codec.fingerprint,
    )  # fmt: skip
    atomic.write(folder / "README.md", card.encode())


def upload(folder: Path, repository: str, private: bool) -> None:
    """Create the repository if there is none, and upload the files of a folder. Raises UgicmError."""
    from ugicm.errors import UgicmError, first_line
    from ugicm.extras import require_packages

    require_packages("integrations", "scripts/push_to_hub.py", "huggingface_hub")
    from huggingface_hub import HfApi

    api = HfApi(library_name="ugicm")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload checkpoint")
    except (OSError, ValueError) as error:  # of the connection, of permissions, or an invalid name
        raise UgicmError(f"{repository}: cannot be uploaded: {first_line(error)}") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
