"""Members of shards by their position, for reading in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO

from ugicm.shards.convert import Member, ShardError
from ugicm.shards.files import file_system, open_file


@dataclass(frozen=True)
class ShardMember(os.PathLike):
    """A file in an uncompressed shard. Its path is that of the shard and its name in it."""

    shard: str
    member: str
    offset: int
    size: int

    def __fspath__(self) -> str:
        return f"{self.shard}/{self.member}"

    __str__ = __fspath__

    @property
    def name(self) -> str:
        """Name of the shard and of the member, which do not depend on the place of the shard."""
        return f"{self.shard.rpartition('/')[2]}/{self.member}"

    def open(self) -> BytesIO:
        """Read the file. Raises OSError."""
        fs, path = file_system(self.shard)
        file = BytesIO(fs.cat_file(path, start=self.offset, end=self.offset + self.size))
        file.name = str(self)  # for messages
        return file


def list_members(shard: str, suffixes: Collection[str]) -> list[ShardMember]:
    """Return the files with one of ``suffixes`` in a shard, in order, from the headers alone.

    Raises ShardError if the shard is compressed or not a complete tar file, OSError if it cannot be read.
    """
    try:
        with open_file(shard) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as members:
            return [
                ShardMember(shard, m.name, m.offset_data, m.size)
                for m in members
                if m.isfile() and os.path.splitext(m.name)[1].lower() in suffixes
            ]
    except tarfile.TarError as error:
        raise ShardError(f"{shard}: not a complete, uncompressed shard: {error}") from None
