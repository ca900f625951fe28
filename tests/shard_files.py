"""Writers of WebDataset shards."""

import io
import tarfile


def image_bytes(image, kind="PNG"):
    """Return a file of an image."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_shard(path, members):
    """Write a shard of (name, contents); the time of a member is its number."""
    with tarfile.open(path, "w") as shard:
        for number, (name, data) in enumerate(members):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), number
            shard.addfile(member, io.BytesIO(data))
