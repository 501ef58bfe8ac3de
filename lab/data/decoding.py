"""From an image file to RGB with 8 bits a channel: the one rule by which every loader decodes.

A picture comes out as a viewer shows it on a white page: turned as its EXIF orientation says, and what is transparent,
wholly or in part, composed on `BACKGROUND`. Of 16 bits a channel the higher 8 are kept, of grey as of colour.
Floating-point samples are between 0 (black) and 1 (white). Integers of 32 bits are refused where their range is not
known, which it is in PNG and PPM files: 16 bits. Of an animation the first frame is taken.
"""

import os

import numpy
from PIL import Image, UnidentifiedImageError

from ..cli import UserError

RULE = 2
"""Number of the rule above. What was decoded by another one is decoded again."""

BACKGROUND = (255, 255, 255)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

# What brings a picture upright, by the value of EXIF's orientation.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: str | os.PathLike, *, draft: bool = False) -> Image.Image:
    """Return the image in a file, in mode RGB.

    Args:
        draft: a JPEG may come out grey and small. All of its data is read, which takes a fraction of the time and shows
            whether the file is damaged.

    Raises:
        UserError: if there is no whole image in the file, or one whose range of values is not known.
    """
    try:
        with Image.open(file) as image:
            if draft:
                image.draft("L", (1, 1))
            image.load()  # first, as what a file says about an image may come after the pixels
            picture, turn = _opaque(_eight_bit(image)), _turn(image)
            return picture if turn is None else picture.transpose(turn)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        reason = "it holds no image format that is known" if os.path.getsize(file) else "it is empty"
    except OSError as error:  # of the system, or the decoders' for a truncated file, which has no number
        if error.errno:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        reason = str(error)
    except Exception as error:  # the decoders raise many types for a damaged file
        reason = str(error) or type(error).__name__
    raise UserError(f"{file} is not a readable image: {reason}")


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        samples = numpy.asarray(image)
        grey = Image.fromarray((samples >> 8).astype(numpy.uint8))
        transparent = image.info.get("transparency")
        if transparent is not None:
            grey.putalpha(Image.fromarray(numpy.where(samples == transparent, 0, 255).astype(numpy.uint8)))
        return grey
    if image.mode == "F":
        samples = numpy.asarray(image)
        if not (samples.min() >= 0 and samples.max() <= 1):  # false for nan
            raise ValueError("its floating-point samples are not all between 0 and 1; convert it to 8 or 16 bits")
        return Image.fromarray((samples * 255).round().astype(numpy.uint8))
    if image.mode == "I":
        raise ValueError("it has integers of 32 bits, whose range is not known; convert it to 8 or 16 bits")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data is no damage of the picture
        return None


def _opaque(image: Image.Image) -> Image.Image:
    if image.getbands()[-1] != "A" and "transparency" not in image.info:
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
