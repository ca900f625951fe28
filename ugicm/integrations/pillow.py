"""Plugin of Pillow: ``.ugic`` files open and save as other images do, in every library that uses Pillow.

Importing this module registers the format, and imports neither PyTorch nor a model:

>>> import ugicm.integrations.pillow
>>> image = Image.open("photo.ugic")            # reads the header, EXIF and XMP
>>> image.preference = "machine"                # before the image is loaded; "human" if it is not set
>>> array = numpy.asarray(image)                # decodes
>>> Image.open("photo.jpg").save("photo.ugic", quality=0.3, effort=30)

The codec is loaded once per process, when the first image is. Modes are RGB and L, with alpha RGBA and LA. Data sets of
torchvision take :func:`load` and :func:`is_bitstream`, which work in spawned workers, too:

>>> ImageFolder("photos/", loader=functools.partial(load, preference="machine"), is_valid_file=is_bitstream)
"""

from __future__ import annotations

import io
import os
from typing import IO, Any

from PIL import Image, ImageFile

from ugicm import bitstream
from ugicm.errors import StreamError
from ugicm.integrations.shared import shared_codec

FORMAT = "UGIC"
SUFFIX = ".ugic"
MIME_TYPE = "image/x-ugic"
_settings: dict[str, Any] = {"checkpoint": None, "device": "cpu"}


def register(
    checkpoint: str | os.PathLike | None = None, device: str = "cpu", preference: float | str = "human"
) -> None:
    """Register the format, and choose how images are decoded in this process.

    Args:
        checkpoint: of the model, as :func:`ugicm.load` takes it; None for the shipped model.
        device: where it runs.
        preference: of images that do not set their own.
    """
    _settings.update(checkpoint=checkpoint, device=device)
    UgicImageFile.preference = preference
    Image.register_open(FORMAT, UgicImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, MIME_TYPE)
    Image.register_decoder(FORMAT, _Decoder)


def load(path: str | os.PathLike, preference: float | str = "human") -> Image.Image:
    """Return the image of a ``.ugic`` file, loaded; images of other formats as RGB."""
    with Image.open(path) as image:
        if isinstance(image, UgicImageFile):
            image.preference = preference
        return image.convert("RGB")


def is_bitstream(path: str) -> bool:
    """Return whether a file has the extension of bitstreams."""
    return path.lower().endswith(SUFFIX)


class UgicImageFile(ImageFile.ImageFile):
    """A bitstream as an image of Pillow.

    Attributes:
        preference: from 0 (human) to 1 (machine), "human", "machine" or a map, as ``Codec.decompress`` takes it. It
            has an effect until the image is loaded.
    """

    format = FORMAT
    format_description = "ugicm learned image codec"
    preference: Any = "human"

    def _open(self) -> None:
        start = self.fp.tell()
        try:
            header, _ = bitstream.parse_header(self.fp.read(bitstream.HEADER_SIZE))
            boxes = self._read_boxes(header.box_bytes) if header.box_bytes else {}
        except StreamError as error:
            raise SyntaxError(str(error)) from None  # Pillow tries other formats
        self._size = header.width, header.height
        self._mode = ("L" if header.gray else "RGB") + ("A" if "alpha" in boxes else "")
        self.info.update(quality=header.quality, fingerprint=header.fingerprint.hex())
        if "exif" in boxes:
            self.info["exif"] = b"Exif\0\0" + boxes["exif"]
        if "xmp" in boxes:
            self.info["xmp"] = boxes["xmp"]
        self.tile = [ImageFile._Tile(FORMAT, (0, 0, *self._size), start)]

    def _read_boxes(self, size: int) -> dict[str, bytes]:
        """Return the boxes, which precede the checksum at the end of the file."""
        end = self.fp.seek(0, io.SEEK_END) - bitstream.CHECKSUM_SIZE
        self.fp.seek(max(0, end - size))
        return bitstream.parse_boxes(data := self.fp.read(size), 0, len(data))

    def load_prepare(self) -> None:
        self.tile = [tile._replace(args=(self.preference,)) for tile in self.tile]
        super().load_prepare()


class _Decoder(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        try:
            image = shared_codec(**_settings).decompress(self.fd.read(), self.args[0])
        except StreamError as error:
            raise OSError(str(error)) from error  # as for broken files of other formats
        self.set_as_raw(image.convert(self.mode).tobytes())
        return -1, 0


def _accept(prefix: bytes) -> bool | str:
    if not prefix.startswith(bitstream.MAGIC):
        return False
    version = prefix[len(bitstream.MAGIC)]
    known = (bitstream.VERSION, bitstream.EXTENDED_VERSION)
    return version in known or f"version {version} of ugicm bitstreams is not supported"


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    options = {name: image.encoderinfo[name] for name in ("quality", "tile", "effort") if name in image.encoderinfo}
    file.write(shared_codec(**_settings).compress(image, **options))


register()
