"""One set of rules for stills and frames: formats, transparency, orientation, depth, truncation, size."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transfusion.data import clips, images

WHITE = 255


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour, rows, *more):
    """A PNG of raw rows of bytes: colour 0 is grey, 2 RGB, 3 a palette, 4 grey and alpha, 6 RGBA."""
    width = len(rows[0]) * 8 // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def row(data):
    """The one row of a picture, which a clip of one frame must equal."""
    image = images.decode(data)
    frame = clips.decode(data)[0]
    np.testing.assert_array_equal(frame, np.broadcast_to(image, frame.shape))
    return image[0].squeeze().tolist()


def test_transparent_parts_are_white_in_every_mode():
    def key(*values):
        return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))

    assert row(png(8, 0, [[7, 90]], key(7))) == [WHITE, 90]
    assert row(png(8, 0, [[7, 90]])) == [7, 90]
    assert row(png(4, 0, [[0x3F]], key(3))) == [WHITE, 255] and row(png(4, 0, [[0x3F]], key(15))) == [51, WHITE]
    assert row(png(2, 0, [[0b00011011]], key(1))) == [0, WHITE, 170, 255]
    assert row(png(1, 0, [[0b01000000]], key(0)))[:3] == [WHITE, 255, WHITE]
    assert row(png(1, 0, [[0b01000000]]))[:3] == [0, 255, 0]
    assert row(png(8, 2, [[1, 2, 3, 4, 5, 6]], key(1, 2, 3))) == [[WHITE] * 3, [4, 5, 6]]
    assert row(png(16, 0, [[0x12, 0x34, 0x12, 0x35]], key(0x1234))) == [WHITE, 0x12]
    assert row(png(8, 4, [[7, 0, 90, 255]])) == [WHITE, 90]
    assert row(png(8, 6, [[1, 2, 3, 0, 4, 5, 6, 255]])) == [[WHITE] * 3, [4, 5, 6]]
    palette = chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6]))
    assert row(png(8, 3, [[0, 1]], palette, chunk(b"tRNS", b"\0"))) == [[WHITE] * 3, [4, 5, 6]]
    assert row(png(8, 3, [[0, 1]], palette, chunk(b"tRNS", b"\xff\0"))) == [[1, 2, 3], [WHITE] * 3]
    assert row(png(8, 3, [[0, 1]], palette)) == [[1, 2, 3], [4, 5, 6]]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert row(saved(half, kind, **options)) == [127] * 3


def test_other_colours_become_rgb():
    red = np.array([255, 0, 0])
    for mode, kind in (("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("LAB", "TIFF")):
        image = Image.new("RGB", (8, 8), "red")
        if mode == "LAB":
            from PIL import ImageCms

            lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
            image = ImageCms.applyTransform(image, lab)
        else:
            image = image.convert(mode)
        pixel = images.decode(saved(image, kind))[4, 4].astype(int)
        assert np.abs(pixel - red).max() <= 8, (mode, pixel)  # LAB and JPEG round
    assert row(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP")) == [1, 2, 3]


def test_bit_depths():
    assert row(png(16, 0, [[0, 0, 0x80, 0, 0xFF, 0xFF]])) == [0, 128, 255]
    assert row(png(16, 2, [[0, 0, 0x80, 0, 0xFF, 0xFF]])) == [0, 128, 255]
    assert row(png(16, 6, [[0, 0, 0x80, 0, 0xFF, 0xFF, 0xFF, 0xFF]])) == [0, 128, 255]
    deep = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    assert row(saved(deep, "TIFF")) == [0, 128, 255]
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"{mode} pixels of 32 bits"):
            images.decode(saved(Image.new(mode, (2, 2)), "TIFF"))
    with pytest.raises(ValueError, match="one transparent colour"):
        images.decode(png(16, 2, [[0, 0, 1, 0, 2, 0]], chunk(b"tRNS", struct.pack(">3H", 0, 256, 512))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_of_stills_and_frames(kind):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8] = 250  # the upper left corner
    corners = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for orientation, corner in corners.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(Image.fromarray(picture), kind, exif=exif)
        image = images.decode(data)
        assert image.shape == ((32, 16, 3) if orientation > 4 else (16, 32, 3))
        bright = image[:: image.shape[0] - 1, :: image.shape[1] - 1, 0] > 128
        assert np.argwhere(bright).tolist() == [list(corner)], orientation
        np.testing.assert_array_equal(clips.decode(data)[0], image)


def animation(kind, frames=3, **options):
    rest = [Image.fromarray(np.full((6, 8, 3), 40 * i, np.uint8)) for i in range(frames)]
    return saved(rest[0], kind, save_all=True, append_images=rest[1:], duration=100, **options)


def test_frames_follow_the_same_rules():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "WEBP"):
        turned = clips.decode(animation(kind, exif=exif))
        assert turned.shape == (3, 8, 6, 3)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    dot = clear.copy()
    dot.putpixel((1, 1), (9, 9, 9, 255))
    moved = clear.copy()
    moved.putpixel((2, 2), (9, 9, 9, 255))
    for kind, options in (("GIF", {"disposal": 2}), ("PNG", {"disposal": 1, "blend": 0}), ("WEBP", {"lossless": True})):
        clip = clips.decode(saved(dot, kind, save_all=True, append_images=[moved], duration=100, **options))
        assert [np.argwhere(frame[..., 0] < 128).tolist() for frame in clip] == [[[1, 1]], [[2, 2]]], kind
        assert (images.decode(saved(dot, kind, save_all=True, append_images=[moved]))[..., 0] < 128).sum() == 1
    # The picture that programs show which know no animated PNG is none of the frames.
    apng = animation("PNG", default_image=True)
    assert len(clips.decode(apng)) == 2


def test_pages_and_second_pictures_are_no_frames():
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for kind in ("TIFF", "MPO"):
        data = saved(first, kind, save_all=True, append_images=[second])
        assert not clips.is_animated(data)
        assert clips.decode(data).shape == (1, 8, 8, 3)
        assert np.abs(images.decode(data)[0, 0].astype(int) - (255, 0, 0)).max() < 3


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\nshowpage\n%%EOF\n"
PPM = b"P6 1 1 255\n\0\0\0"


@pytest.mark.parametrize("data", [EPS, b"\xc5\xd0\xd3\xc6" + EPS, PPM, b"%PDF-1.4", b"", b"GIF89a"])
def test_formats_that_are_not_listed_are_refused_by_their_bytes(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("another program was started"))
    for decode in (images.decode, clips.decode):
        with pytest.raises(ValueError, match="not a readable image") as caught:
            decode(data)
        assert "\n" not in str(caught.value)
    assert not clips.is_animated(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_files_that_break_off(kind):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    for length in (len(data) // 4, len(data) // 2, len(data) - 40):
        for decode in (images.decode, clips.decode):
            with pytest.raises(ValueError, match="not a readable image"):
                decode(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_animations_that_break_off(kind):
    noise = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    data = clips.encode_clip(noise, f".{kind.lower()}")
    for length in range(len(data) // 3, len(data) - 12, 97):
        with pytest.raises(ValueError):
            clips.decode(data[:length])


def test_sizes_are_checked_before_memory_is_taken():
    wide = struct.pack("<I", 16382)[:3]
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + wide + wide + b"ANIM\x06\0\0\0" + bytes(6)
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + animation("GIF")[10:]
    for data in (webp, gif, png(8, 0, [[1, 2, 3]] * 40)):
        for decode in (images.decode, clips.decode):
            with pytest.raises(ValueError, match="over the limit"):
                decode(data, 100)
    with pytest.raises(ValueError, match="3 frames of 8x6 are over the limit of 100 pixels"):
        clips.decode(animation("WEBP"), 100)
    # A frame may be larger than the canvas that the header of a GIF promises.
    grown = bytearray(animation("GIF"))
    frame = bytes(grown).index(b"\x2c\0\0\0\0")
    grown[frame + 5 : frame + 9] = struct.pack("<HH", 9000, 9000)
    for decode in (images.decode, clips.decode):
        with pytest.raises(ValueError):
            decode(bytes(grown), 1000)


BASES = [
    saved(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)), kind)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
]
BASES += [animation(kind) for kind in ("GIF", "PNG", "WEBP")]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    base=st.integers(0, len(BASES) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=5),
    end=st.floats(0, 1) | st.just(1.0),
)
def test_any_bytes_are_a_picture_or_one_line(base, changes, end):
    data = bytearray(BASES[base])
    for place, piece in changes:
        at = int(place * len(data))
        data[at : at + len(piece)] = piece
    data = bytes(data[: int(end * len(data))])
    for decode, axes in ((images.decode, 3), (clips.decode, 4)):
        try:
            array = decode(data, 100_000)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        assert array.dtype == np.uint8 and array.ndim == axes and array.size <= 300_000
    clips.is_animated(data)
