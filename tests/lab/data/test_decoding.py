"""Decoding of image files of every kind, against what the pixels were made of."""

import numpy
import pytest
from PIL import Image

from lab.cli import UserError
from lab.data.decoding import BACKGROUND, decode

GREY16 = numpy.linspace(0, 65535, 64).reshape(8, 8).astype(numpy.uint16)
CORNERS = numpy.arange(24, dtype=numpy.uint8).reshape(2, 4, 3) * 10  # all pixels differ


@pytest.fixture
def file(tmp_path):
    return lambda name: tmp_path / name


def pixels(path) -> numpy.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return numpy.asarray(image)


def netpbm(kind: str, samples: numpy.ndarray, most: int) -> bytes:
    height, width = samples.shape[:2]
    return f"{kind} {width} {height} {most}\n".encode() + samples.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", ["a.png", "a.tif", "big-endian.tif", "a.pgm"])
def test_grey_of_16_bits_keeps_its_range(file, kind):
    path = file(kind)
    if kind == "a.pgm":
        path.write_bytes(netpbm("P5", GREY16, 65535))
    else:
        Image.fromarray(GREY16.astype(">u2") if "big" in kind else GREY16).save(path)
    assert numpy.array_equal(pixels(path), numpy.repeat(GREY16[..., None] // 256, 3, 2))


def test_colour_of_16_bits_is_scaled_like_grey(file):
    colour = numpy.stack([GREY16, GREY16[::-1], GREY16.T], 2)
    file("a.ppm").write_bytes(netpbm("P6", colour, 65535))
    assert abs(pixels(file("a.ppm")).astype(int) - colour // 256).max() <= 1


def test_grey_of_10_bits_is_stretched(file):
    file("a.pgm").write_bytes(netpbm("P5", GREY16 >> 6, 1023))
    found = pixels(file("a.pgm")).astype(int)
    assert abs(found[..., 0] - (GREY16 >> 6) * (255 / 1023)).max() <= 1


def test_floats_are_black_at_0_and_white_at_1(file):
    Image.fromarray(numpy.array([[0, 0.25, 1]], numpy.float32)).save(file("a.tif"))
    assert pixels(file("a.tif"))[0, :, 1].tolist() == [0, 64, 255]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (numpy.array([[0, 255]], numpy.float32), "not all between 0 and 1"),
        (numpy.array([[0, numpy.nan]], numpy.float32), "not all between 0 and 1"),
        (numpy.array([[0, 255]], numpy.int32), "integers of 32 bits"),
    ],
)
def test_a_range_that_is_not_known_is_refused(file, samples, message):
    Image.fromarray(samples).save(file("a.tif"))
    with pytest.raises(UserError, match=f"a.tif is not a readable image: .*{message}.*convert it to 8 or 16 bits"):
        decode(file("a.tif"))


def test_black_and_white(file):
    Image.fromarray(numpy.array([[True, False]])).save(file("a.png"))
    assert pixels(file("a.png"))[0].tolist() == [[255] * 3, [0] * 3]


def test_ink_on_paper(file):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file("a.jpg"), quality=100)
    assert abs(pixels(file("a.jpg"))[0, 0].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("alpha", [0, 51, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_transparency_is_composed_on_the_background(file, alpha, mode, kind):
    colour = (200, 200, 200) if mode == "LA" else (200, 10, 60)
    Image.new("RGBA", (2, 2), (*colour, alpha)).convert(mode).save(
        file(f"a.{kind}"), **{"lossless": True, "exact": True} if kind == "webp" else {}
    )
    expected = (numpy.array(colour) * alpha + numpy.array(BACKGROUND) * (255 - alpha)) / 255
    assert abs(pixels(file(f"a.{kind}"))[0, 0] - expected).max() <= 1


@pytest.mark.parametrize("kind", ["palette.png", "palette.gif", "colour.png", "grey.png", "deep.png", "bits.png"])
def test_one_colour_that_stands_for_transparency(file, kind):
    """In these a pixel is transparent or it is not."""
    image, transparent = {
        "palette.png": (Image.fromarray(numpy.array([[0, 1]], numpy.uint8)).convert("P"), 0),
        "palette.gif": (Image.fromarray(numpy.array([[0, 1]], numpy.uint8)).convert("P"), 0),
        "colour.png": (Image.fromarray(numpy.array([[[1, 2, 3], [3, 2, 1]]], numpy.uint8)), (1, 2, 3)),
        "grey.png": (Image.fromarray(numpy.array([[7, 1]], numpy.uint8)), 7),
        "deep.png": (Image.fromarray(numpy.array([[770, 256]], numpy.uint16)), 770),
        "bits.png": (Image.fromarray(numpy.array([[True, False]])), 255),
    }[kind]
    image.save(file(kind), transparency=transparent)
    found = pixels(file(kind))
    assert tuple(found[0, 0]) == BACKGROUND and tuple(found[0, 1]) != BACKGROUND


# The position (row, column) in the picture as it is stored of its upper left and its upper right pixel as it is shown.
SHOWN = {
    1: ((0, 0), (0, 3)), 2: ((0, 3), (0, 0)), 3: ((1, 3), (1, 0)), 4: ((1, 0), (1, 3)),
    5: ((0, 0), (1, 0)), 6: ((1, 0), (0, 0)), 7: ((1, 3), (0, 3)), 8: ((0, 3), (1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_pictures_are_turned_as_they_say(file, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(file(f"a.{kind}"), exif=exif, **{"lossless": True} if kind == "webp" else {})
    found = pixels(file(f"a.{kind}"))
    assert found.shape == ((2, 4, 3) if orientation < 5 else (4, 2, 3))
    assert [tuple(found[0, column]) for column in (0, -1)] == [tuple(CORNERS[place]) for place in SHOWN[orientation]]


def test_turned_grey_of_16_bits(file):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(GREY16[:4]).save(file("a.png"), exif=exif)
    assert numpy.array_equal(pixels(file("a.png"))[..., 0], numpy.rot90(GREY16[:4] // 256))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_data_is_no_damage_of_the_picture(file, exif):
    Image.fromarray(CORNERS).save(file("a.jpg"), exif=exif)
    assert decode(file("a.jpg")).size == (4, 2)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(file, kind):
    frames = [Image.new("RGB", (4, 4), (value,) * 3) for value in (10, 200)]
    frames[0].save(file(f"a.{kind}"), save_all=True, append_images=frames[1:])
    assert abs(pixels(file(f"a.{kind}")).astype(int) - 10).max() <= 2


@pytest.mark.parametrize("draft", [False, True])
def test_damaged_files(file, draft):
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    for name in ("a.jpg", "a.png", "a.bmp", "a.webp"):
        path = file(name)
        Image.fromarray(noise).save(path)
        assert decode(path, draft=draft).mode == "RGB"
        whole = path.read_bytes()
        for content, reason in (
            (b"", "it is empty"),
            (b"some text", "no image format"),
            (whole[: len(whole) // 2], ""),
        ):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"{name} is not a readable image: .*{reason}"):
                decode(path, draft=draft)
    with pytest.raises(UserError, match="cannot read .*nowhere.png: No such file"):
        decode(file("nowhere.png"), draft=draft)


def test_memory_that_cannot_be_had_is_no_fault_of_the_file(file, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    Image.fromarray(CORNERS).save(file("a.png"))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        decode(file("a.png"))
