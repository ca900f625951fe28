"""Conversion of Pillow images of any mode, depth and color space to 8-bit sRGB.

Colors are converted where a file says that they are not sRGB: by an ICC profile, by chunks of PNG (cICP, gAMA, cHRM),
by the color box of AVIF, or by EXIF or TIFF tags. Whether a profile is sRGB is decided by what it does, not by its
name.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_SAME = 2  # levels by which a profile may differ from sRGB and count as sRGB
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # by color space of a profile
_CURVE = np.linspace(0, 1, 4096)  # where transfer functions are sampled
_SRGB_CURVE = np.where(_CURVE <= 0.04045, _CURVE / 12.92, ((_CURVE + 0.055) / 1.055) ** 2.4)
_SRGB_GAMMA = 1 / 2.2  # PNG's approximation of sRGB

# White point and primaries as x, y, in the order of PNG's cHRM.
_D65 = (0.3127, 0.3290)
_BT709 = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE_RGB = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_CICP_PRIMARIES = {  # by code of ITU-T H.273. 1 and 2 (unspecified) are those of sRGB.
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_CICP_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}  # transfer functions that are powers. Video's are shown as sRGB.
_PQ, _HLG = 16, 18
_BT2100_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of red, green and blue
_WHITE = 203  # cd/m2 of diffuse white in high dynamic range (ITU-R BT.2408)
_D50 = np.array([0.9642, 1, 0.8249])  # white of ICC profiles, XYZ
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_EXIF_IFD, _INTEROP_IFD, _COLOR_SPACE, _INTEROP_INDEX = 0x8769, 0xA005, 0xA001, 1
_TIFF_WHITE, _TIFF_PRIMARIES = 318, 319
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_FORMAT = 258, 262, 339


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a loaded image as RGB in sRGB, and its alpha (mode L), None if all of it is opaque.

    Mode I is taken as 16 bits, unless its values or the tags of a TIFF file are of another range. Mode F is taken as
    [0, 1], or as [0, 255] if finite values exceed [0, 1].
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        gray, alpha = _scaled_gray(image)
        return _to_srgb(gray, image), alpha
    alpha = None
    if image.mode in _ALPHA or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # Pillow converts premultiplied alpha only to straight alpha
            image = _with_info(image.convert(image.mode.upper()), image)
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
        image = _with_info(image.convert("L") if image.mode == "LA" else rgba.convert("RGB"), image)
        image.info.pop("transparency", None)
    return _to_srgb(image, image), alpha


def composite(rgb: Image.Image, alpha: Image.Image, background: str) -> Image.Image:
    """Return an image on a background, given by name or as #RRGGBB."""
    flat = Image.new("RGB", rgb.size, background)
    flat.paste(rgb, mask=alpha)
    return flat


def _with_info(image: Image.Image, source: Image.Image) -> Image.Image:
    image.info = dict(source.info)
    return image


def _scaled_gray(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert modes I, I;16* and F to L, and return the alpha. Pillow's own conversion clips instead of scaling."""
    raw = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        values = raw.astype(np.float64)
        finite = np.isfinite(values)
        unit = 0 <= values.min(where=finite, initial=0) and values.max(where=finite, initial=0) <= 1
        levels = np.nan_to_num(values * 255 if unit else values)
    else:
        levels = _integer_levels(raw, image.mode, tags)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero. Pillow inverts 8-bit images only.
        levels = 255 - levels
    transparent = image.info.get("transparency")
    alpha = None
    if isinstance(transparent, int) and (raw == transparent).any():
        alpha = Image.fromarray(np.where(raw == transparent, 0, 255).astype(np.uint8))
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8)), alpha


def _integer_levels(raw: np.ndarray, mode: str, tags: dict) -> np.ndarray:
    """Return integers of more than 8 bits as levels 0 … 255. The range is what a TIFF file declares, else 16 bits."""
    (bits, *_), (kind, *_) = tags.get(_TIFF_BITS, (16,)), tags.get(_TIFF_FORMAT, (1,))
    if bits == 32 and kind == 1:
        raw = raw.view(np.uint32)  # Pillow has no unsigned mode
    top = 2.0 ** (bits - (kind == 2)) - 1
    if mode == "I" and bits != 16:
        top = max(top, 2.0**31 - 1) if raw.max() > 65535 else 65535  # many files of 32 bits hold 16
    if top > 65535 or raw.min() < 0:
        warnings.warn("integers of 32 bits are scaled to 8 bits, negative ones to 0", stacklevel=1)
    return raw * (255 / top)


# Color spaces


def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, always the same bytes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]  # without the time of its creation


def _to_srgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Convert colors to sRGB as ``source.info`` and the tags of ``source`` describe them. Returns mode RGB."""
    if image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = None
    try:
        profile = _profile_of(source) or (_lab_profile() if image.mode == "LAB" else None)
        transform = profile and _transform_from(profile)
        if transform and transform.input_mode != image.mode and (transform.input_mode, image.mode) != ("RGB", "L"):
            raise ValueError("the profile is of another kind of image")
    except (OSError, TypeError, ValueError, LookupError, ArithmeticError, struct.error, ImageCms.PyCMSError):
        transform = None
        warnings.warn("color profiles that are invalid are ignored: colors are taken as sRGB", stacklevel=1)
    if not transform:
        return image.convert("RGB")
    if _cicp_of(source)[1:2] == (_HLG,):
        image = _displayed_hlg(image.convert("RGB"))
    if image.mode != "LAB":
        warnings.warn("colors of other color spaces are converted to sRGB", stacklevel=1)
    return transform.apply(image.convert(transform.input_mode))


def _cicp_of(image: Image.Image) -> tuple[int, ...]:
    """Return the codes of ITU-T H.273 for primaries and transfer function, if they describe the colors; else ()."""
    known = "cicp" in image.info and (image.format == "PNG" or not image.info.get("icc_profile"))
    return tuple(image.info["cicp"][:2]) if known else ()


def _profile_of(image: Image.Image) -> bytes | None:
    """Return an ICC profile of the colors of an image. None if nothing says that they are not sRGB."""
    info, tags = image.info, getattr(image, "tag_v2", {})
    if cicp := _cicp_of(image):
        return _matrix_profile(_CICP_PRIMARIES.get(cicp[0], _BT709), _cicp_curve(cicp[1]))
    if info.get("icc_profile"):
        return info["icc_profile"]
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        gamma = info.get("gamma", _SRGB_GAMMA)
        is_srgb = abs(gamma / _SRGB_GAMMA - 1) < 0.05
        return _matrix_profile(info.get("chromaticity", _BT709), _SRGB_CURVE if is_srgb else _CURVE ** (1 / gamma))
    if _TIFF_PRIMARIES in tags:
        return _matrix_profile((*tags.get(_TIFF_WHITE, _D65), *tags[_TIFF_PRIMARIES]), _SRGB_CURVE)
    return _matrix_profile(_ADOBE_RGB, _CURVE ** (563 / 256)) if _is_adobe_rgb(image) else None


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether EXIF says so, as cameras do (DCF): by color space 2, or by the interoperability index R03."""
    if "exif" not in image.info:
        return False
    try:
        exif = image.getexif()
        return exif.get_ifd(_EXIF_IFD).get(_COLOR_SPACE) == 2 or exif.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX) == "R03"
    except Exception:  # EXIF of odd types
        return False


def _cicp_curve(transfer: int) -> np.ndarray:
    """Return the transfer function of a code of ITU-T H.273: light in units of diffuse white, at most 1."""
    if transfer not in (_PQ, _HLG):
        return _CURVE ** _CICP_GAMMAS[transfer] if transfer in _CICP_GAMMAS else _SRGB_CURVE
    warnings.warn("high dynamic range is clipped to diffuse white", stacklevel=1)
    if transfer == _HLG:  # after _displayed_hlg
        return _SRGB_CURVE
    power = _CURVE ** (32 / 2523)
    light = 10000 * (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
    return np.minimum(light / _WHITE, 1)


def _displayed_hlg(image: Image.Image) -> Image.Image:
    """Return an RGB image in HLG as a display of 1000 cd/m2 shows it, clipped to diffuse white, with sRGB's curve.

    That is the inverse OETF, a table, and the OOTF of ITU-R BT.2100: a gain of each color by its luminance.
    """
    signal, a = np.arange(256) / 255, 0.17883277
    upper = (np.exp((signal - 0.5) / a + np.log(4 * a)) + 1 - 4 * a) / 12
    scene = np.where(signal <= 0.5, signal**2 / 3, upper).astype(np.float32)
    shown = np.array(image)
    for rows in shown:  # one row at a time bounds memory
        light = scene[rows]
        light *= (light @ _BT2100_LUMINANCE)[:, None] ** 0.2 * 1000 / _WHITE
        rows[:] = np.rint(255 * np.interp(light, _SRGB_CURVE, _CURVE))
    return Image.fromarray(shown)


def _matrix_profile(chromaticity: Sequence[float], curve: np.ndarray) -> bytes:
    """Return the ICC profile of an RGB color space.

    Args:
        chromaticity: x and y of white, red, green and blue.
        curve: transfer function sampled at ``_CURVE``, in [0, 1].

    Raises ValueError or ArithmeticError for a color space that does not exist.
    """
    with np.errstate(all="raise", under="ignore"):
        xy = np.array([float(value) for value in chromaticity]).reshape(4, 2)
        white, *primaries = np.column_stack([xy, 1 - xy.sum(1)]) / xy[:, 1:]
        primaries = np.transpose(primaries)
        matrix = primaries * np.linalg.solve(primaries, white)
        cones = _BRADFORD @ np.column_stack([white, _D50])
        colorants = np.linalg.inv(_BRADFORD) @ np.diag(cones[:, 1] / cones[:, 0]) @ _BRADFORD @ matrix
        samples = np.rint(curve * 65535).astype(">u2").tobytes()

    def xyz(values: np.ndarray) -> bytes:
        return np.rint(values * 65536).astype(">i4").tobytes()

    tags = {b"wtpt": b"XYZ \0\0\0\0" + xyz(_D50)}
    tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + xyz(column) for name, column in zip((b"r", b"g", b"b"), colorants.T)}
    tags |= {name + b"TRC": struct.pack(">4sII", b"curv", 0, len(curve)) + samples for name in (b"r", b"g", b"b")}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    header = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (header + xyz(_D50)).ljust(128, b"\0") + table + body


@functools.cache
def _lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@functools.lru_cache(maxsize=16)
def _transform_from(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB, None if it changes nothing. Raises for an invalid profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _PROFILE_MODES[source.profile.xcolor_space]
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if mode not in ("RGB", "L"):
        return transform
    steps = np.linspace(0, 255, 17 if mode == "RGB" else 256).astype(np.uint8)
    colors = np.stack(np.meshgrid(*[steps] * len(mode)), axis=-1).reshape(1, -1, len(mode))
    probe = Image.fromarray(colors if mode == "RGB" else colors[..., 0])
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > _SAME else None
