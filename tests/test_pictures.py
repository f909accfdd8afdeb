import numpy as np
import pytest
import tiny
from PIL import Image, ImageFont

from transfusion import pictures
from transfusion.errors import UsageError
from transfusion.sequence.masks import metadata, see
from transfusion.sequence.rows import assemble, expand


def packed(spec, seed=0):
    return assemble([[expand(document, spec) for document in tiny.documents(seed)[:2]]], spec)


def cell_colour(picture, query, key, cell):
    return picture.getpixel((pictures.MARGIN + key * cell + cell // 2, pictures.MARGIN + query * cell + cell // 2))


@pytest.mark.parametrize("name", ["transfusion", "bagel", "grid"])
def test_every_cell_of_the_mask_shows_the_attention_rule_in_reading_order(name):
    spec = tiny.SPECS[name]
    batch = packed(spec)
    picture = pictures.mask_picture(batch, spec, cell=5)
    meta = metadata(batch, spec)
    document, order = np.asarray(meta.document)[0], np.asarray(meta.order)[0]
    reading = [i for i in np.argsort(order, kind="stable") if document[i]]
    visible = np.asarray(see(meta, meta, spec.visibility))[0]
    hidden = {tuple(pictures.HIDDEN), tuple(pictures.OTHER)}
    for q, i in enumerate(reading):
        for k, j in enumerate(reading):
            assert (cell_colour(picture, q, k, 5) not in hidden) == visible[i, j], (q, k)
    assert picture.size[0] == pictures.MARGIN + 5 * len(reading) + 16


def test_blocks_and_documents_have_colours_of_their_own():
    spec = tiny.SPECS["transfusion"]
    picture = pictures.mask_picture(packed(spec), spec, cell=5)
    # BOS, three words, BOI, four patches: the first patch sees the last one, a word not the next word.
    image, text = list(spec.streams).index("image"), list(spec.streams).index("text")
    assert cell_colour(picture, 5, 8, 5) == tuple(pictures.shades(image)["block"])
    assert cell_colour(picture, 5, 1, 5) == tuple(pictures.shades(image)["earlier"])
    assert cell_colour(picture, 2, 1, 5) == tuple(pictures.shades(text)["earlier"])
    assert cell_colour(picture, 1, 2, 5) == pictures.HIDDEN
    assert cell_colour(picture, 12, 1, 5) == pictures.OTHER


def test_stored_order_shows_padding_and_the_picture_is_written(tmp_path):
    spec = tiny.SPECS["transfusion"]
    path = tmp_path / "mask.png"
    picture = pictures.mask_picture(packed(spec), spec, path=path, stored=True, cell=3)
    assert picture.size[0] == pictures.MARGIN + 3 * 40 + 16
    assert Image.open(path).size == picture.size


def test_a_long_row_is_reduced_to_a_picture_that_fits_a_page():
    spec = tiny.spec({"text": tiny.text_stream(budget=1500), "image": tiny.image_stream()})
    assert pictures.mask_picture(packed(spec), spec, stored=True).size[0] < 1300


def test_a_row_that_does_not_exist_or_is_empty_is_refused():
    spec = tiny.SPECS["transfusion"]
    with pytest.raises(UsageError, match="rows 0 to 0"):
        pictures.mask_picture(packed(spec), spec, row=1)
    with pytest.raises(UsageError, match="no document"):
        pictures.mask_picture(assemble([[]], spec), spec)


def test_grid_enlarges_without_smoothing_and_writes_captions_below():
    image = np.zeros((8, 8, 1), np.uint8)
    image[2, 3] = 200
    plain = np.asarray(pictures.grid([image] * 3, 3))
    assert set(np.unique(plain)) == {0, 200, 255}
    assert (plain[..., 0] == 200).sum() == 3 * 12 * 12
    captioned = np.asarray(pictures.grid([image] * 3, 3, ["a handwritten seven"] * 3))
    below = captioned[8 + 96 : -8]
    assert (below < 128).any(-1).sum() > 100, "no letters below the images"


def test_long_captions_wrap_and_are_cut():
    image = np.zeros((8, 8, 3), np.uint8)
    short = pictures.grid([image], 1, ["seven"])
    long = pictures.grid([image], 1, ["person in a steamy room, medium-light skin tone\n" * 9])
    assert long.size[0] == short.size[0]
    assert short.size[1] < long.size[1] <= short.size[1] + 4 * 15


def test_marked_images_are_framed():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    red = (np.asarray(pictures.grid(images, 2, marks=[False, True])) == (200, 30, 30)).all(-1)
    assert not red[:, : red.shape[1] // 2].any() and red[:, red.shape[1] // 2 :].any()


def test_a_strip_is_one_row():
    images = np.zeros((5, 8, 8, 1), np.uint8)
    assert pictures.strip(images).size == pictures.grid(images, 5).size
    steps = np.full((5, 8, 8, 1), -1, np.float32)  # black, as a trajectory records it
    np.testing.assert_array_equal(pictures.strip(steps), pictures.strip(images))


def test_wrong_grids_are_refused():
    with pytest.raises(UsageError, match="uint8"):
        pictures.grid([np.zeros((8, 8, 1), np.float32)], 1)
    with pytest.raises(UsageError, match="2 images needs as many captions, not 1"):
        pictures.grid([np.zeros((8, 8, 1), np.uint8)] * 2, 1, ["one"])
    with pytest.raises(UsageError, match="at least one image"):
        pictures.grid([], 4)


def test_without_system_fonts_the_font_inside_pillow_is_used(monkeypatch):
    real = ImageFont.truetype

    def none_installed(font, *arguments, **named):
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return real(font, *arguments, **named)

    monkeypatch.setattr(ImageFont, "truetype", none_installed)
    pictures.font.cache_clear()
    try:
        image = np.zeros((8, 8, 1), np.uint8)
        picture = np.asarray(pictures.grid([image], 1, ["a handwritten seven"]))
        assert (picture[8 + 96 : -8] < 128).any()
    finally:
        pictures.font.cache_clear()
