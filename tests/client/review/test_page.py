"""The page: one private file, nothing from a network, text as text, and the very pictures it names."""

from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from client.review import page as index_page
from client.review.page import contact_sheets, render_page, write_page
from client.review.summary import summarise
from common.errors import DataError
from common.findings import FINDINGS
from tests.html_page import Page

EVIL = "</code><script>alert('x')</script><img src=x onerror=alert(1)>"
WRITTEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture
def pictures():
    """Thumbnails in which each row can be told from the others; black where nothing could be read."""

    def draw(index):
        tiles = np.zeros((len(index), 96, 96), dtype=np.uint8)
        tiles[:, 8:-8, 8:-8] = 100
        tiles[:, :8, :8] = (np.arange(len(index)) % 64 * 4)[:, None, None]
        tiles[:, -8:, -8:] = (np.arange(len(index)) // 64 * 4)[:, None, None]
        tiles[(index["code"] == "truncated").to_numpy()] = 0
        return tiles

    return draw


@pytest.fixture
def index(make_index):
    return make_index()


@pytest.fixture
def html(index, pictures):
    return render_page(index, pictures(index), "north", WRITTEN)


def rows_of(sheet):
    """Which rows of the index a sheet shows, read back from its pixels."""
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.sprite)))).astype(float)
    tiles = [strip[:, i * 96 : (i + 1) * 96] for i in range(strip.shape[1] // 96)]
    assert strip.shape[1] == 96 * len(sheet.captions)
    return [round(t[4, 4] * 63 / 255) + 64 * round(t[-4, -4] * 63 / 255) for t in tiles]


def test_the_page_asks_nothing_of_any_network(html):
    page = Page(html)
    assert "://" not in html and "@import" not in html
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in {"src", "href"}]
    targets = re.findall(r"url\(([^)]*)\)", html)
    assert targets and all(target.startswith("data:image/png;base64,") for target in targets)


def test_the_page_is_private_and_says_that_it_stays(index, pictures, tmp_path):
    path = write_page(index, pictures(index), "north", tmp_path / "index")
    assert path.name == "index.html" and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    text = Page(path.read_text()).text
    assert text.index("Stays at the site.") < text.index("what the index holds")
    assert "Do not mail it" in text


def test_what_needs_attention_comes_first(html, index):
    text = Page(html).text
    order = ["40 of 600 images are set aside: 30 truncated", "occurs for covid", "Images usable"]
    order += ["Positive Negative", "Train, validation and test", "Who and what", "How the images look"]
    places = [text.index(words) for words in [*order, "What to do"]]
    assert places == sorted(places)
    finding = summarise(index, "north").findings[0]
    assert f"effusion {finding.positive} {finding.negative}" in text


def test_the_page_can_be_read_without_seeing_it(html):
    page = Page(html)
    assert ("html", "lang", "en") in page.attributes
    assert {"header", "main", "footer"} <= set(page.tags) and page.tags["h1"] == 1
    assert sum((tag, name) == ("th", "scope") for tag, name, _ in page.attributes) == page.tags["th"]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for _, name, value in page.attributes if name == "aria-labelledby"} <= set(ids)
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("i", "aria-label")]
    assert len(pictures) == sum(name == "role" and value == "img" for _, name, value in page.attributes)


def test_no_patient_and_no_study_is_on_the_page_and_paths_only_of_what_is_set_aside(
    make_index, pictures, planted_names
):
    index = make_index()
    usable = index["code"] == ""
    index.loc[usable, "path"] = "SECRET" + index.loc[usable, "path"]
    index.loc[~usable, "path"] = [f"file {i}.png" for i in range((~usable).sum())]
    html = render_page(index, pictures(index), "north", WRITTEN)
    assert not [name for name in (*planted_names, "SECRET") if name in html]


def test_the_first_twenty_paths_of_each_reason_are_named(index, html):
    text = Page(html).text
    for code in ("truncated", "near-duplicate", "view"):
        paths = index.loc[index["code"] == code, "path"].tolist()
        assert all(path in text for path in paths[:20])
        assert not [path for path in paths[20:] if path in text]
    assert "and 10 more" in text


def test_markup_is_shown_as_text_and_control_characters_are_not(make_index, pictures):
    index = make_index(300)
    index.loc[0, "path"] = f"{EVIL}\x1b[31m\u202egnp\x00\x07" + "x" * 5000
    index.loc[100:200, "scanner"], index.loc[100:200, "view"] = EVIL, EVIL
    html = render_page(index, pictures(index), "north", WRITTEN)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("alert('x')") >= 3
    assert not set("\x1b\x00\x07\u202e") & set(html)
    assert "x" * 301 not in html


def test_the_pictures_are_those_of_the_rows(index, pictures):
    thumbnails = pictures(index)
    sheets = contact_sheets(index, thumbnails, summarise(index, "north"))
    usable = (index["code"] == "").to_numpy()
    shown = {(section, sheet.title): rows_of(sheet) for section, part in sheets.items() for sheet in part}
    assert set(sheets) == {"findings", "scanners", "views", "set aside"}
    for (section, title), rows in shown.items():
        picked = index.iloc[rows]
        if section == "findings":
            assert (picked[f"label.{title}"] == 1).all() and usable[rows].all()
        elif section in ("scanners", "views"):
            assert (picked[section[:-1]] == title.replace("unknown", "")).all() and usable[rows].all()
        else:
            assert (picked["code"] == title).all()
    assert ("findings", "covid") not in shown
    # What could not be read is black and not shown.
    assert ("set aside", "truncated") not in shown and ("set aside", "near-duplicate") in shown
    assert len(shown["findings", "effusion"]) == 12
    positive = index[usable & (index["label.pneumothorax"] == 1)]
    assert sorted(shown["findings", "pneumothorax"]) == positive.index.tolist()[:12]


def test_captions_tell_view_sex_and_age_band(index, pictures):
    index = index.assign(view="PA", sex="F", age=np.float32(41))
    index.loc[::2, ["sex"]] = ""
    index.loc[::2, "age"] = np.nan
    for sheet in contact_sheets(index, pictures(index), summarise(index, "north"))["findings"]:
        known = [row % 2 == 1 for row in rows_of(sheet)]
        assert sheet.captions == tuple("PA F 40-59" if told else "PA" for told in known)


def test_a_sheet_shows_many_patients_and_is_the_same_every_time(make_index, pictures):
    index = make_index(600)
    index["label.effusion"] = np.float32(1)
    index.loc[:400, "patient"] = "one with many"
    summary = summarise(index, "north")
    first = contact_sheets(index, pictures(index), summary)
    rows = rows_of(first["findings"][0])
    assert index.loc[rows, "patient"].nunique() == 12
    assert rows != sorted(index.index[index["code"] == ""])[:12]
    assert contact_sheets(index, pictures(index), summary) == first


def test_thumbnails_of_another_index_are_refused(index, pictures, tmp_path):
    with pytest.raises(DataError, match="not those of the index"):
        write_page(index, pictures(index)[1:], "north", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_stays_small_however_much_there_is(make_index, tmp_path):
    rng = np.random.default_rng(0)
    index = make_index(3000)
    codes = ["truncated", "missing", "decode", "colour", "modality", "burned-in", "conflict", "view"]
    index["code"] = np.where(np.arange(3000) < 1000, np.array(codes)[np.arange(3000) % 8], "")
    index["path"] = "d" * 4000
    index["scanner"] = rng.integers(0, 30, 3000).astype(str)
    index["view"] = rng.integers(0, 30, 3000).astype(str)
    for finding in FINDINGS:
        index[f"label.{finding}"] = rng.integers(0, 2, 3000).astype(np.float32)
    # Noise is what PNG packs worst.
    thumbnails = rng.integers(0, 256, (3000, 96, 96), dtype=np.uint8)
    path = write_page(index, thumbnails, "north", tmp_path)
    assert 1_000_000 < path.stat().st_size < 3_000_000
    sheets = contact_sheets(index, thumbnails, summarise(index, "north"))
    assert len(sheets["findings"]) == len(FINDINGS)
    assert all(len(s.captions) >= 2 for part in sheets.values() for s in part)


@pytest.mark.parametrize("rows", [0, 1])
def test_an_index_of_hardly_any_image_has_a_page(make_index, pictures, rows):
    index = make_index(60).head(rows)
    text = Page(render_page(index, pictures(index), "north", WRITTEN)).text
    assert ("No image can be used: 1 truncated." if rows else "The index holds no image.") in text


def test_an_index_without_findings_says_what_to_do(make_index, pictures):
    index = make_index(60)
    index = index[[name for name in index.columns if not name.startswith(("label.", "clinical."))]]
    assert "fill in [labels]" in Page(render_page(index, pictures(index), "north", WRITTEN)).text


def test_fewer_levels_of_grey_are_hardly_another_picture():
    ramp = np.arange(96 * 96).reshape(1, 96, 96) // 36
    tile = ramp.astype(np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(index_page._sprite(tile)))))
    assert np.abs(drawn.astype(int) - tile[0]).max() <= 4
    assert drawn.min() == 0 and drawn.max() == 255
