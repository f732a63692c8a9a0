"""report.html: what is in it, that nothing comes from outside, and that its bars are to scale."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from common import page, rows
from metrics import Neighbors

ROWS = [row for row in rows.rows("efficientnet")
        if row.name in ("fd_efficientnet_validation", "aa_train", "copies", "recall")]
RESULTS = [
    {"name": "REAL", "kind": "real", "n": 20, "fd_efficientnet_validation": 20.0, "aa_train": 0.5,
     "intervals": {"fd_efficientnet_validation": [18.0, 22.0], "aa_train": [0.4, 0.6]}},
    {"name": "a <b> & c", "kind": "judged", "n": 20, "path": "runs/x/y.pth", "step": 5000,
     "fd_efficientnet_validation": 30.123456789,
     "aa_train": 1.0, "copies": 0.5,
     "intervals": {"fd_efficientnet_validation": [29.0, 40.0], "aa_train": [0.9, 1.0]},
     "suspects": {"cosine": [{"sample": i, "name": f"sample {i}", "distance": 0.25}
                             for i in range(19, 9, -1)]}},
    {"name": "published", "kind": "published", "n": 331, "aa_train": 0.9}]
PARTS = [("a <b> & c", {"quality": "Far from <photos>: by 99% ±1.", "copying": "No sign."}),
         ("Which is best?", {"best": "a"})]


class Reader(HTMLParser):
    """The tags of a page, [(tag, attributes)], and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def shade(i, size=64):
    return np.full((3, size, size), 10 * i + 5, np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (1000, 500), (255, 0, 0)).save(folder / "plot.png")
    near = Neighbors(np.full((20, 4), 0.25), np.arange(20)[:, None] + np.arange(4))
    measured = SimpleNamespace(
        result=RESULTS[1], near={"cosine": (near, [0])},
        images={i: (f"sample {i}", shade(i, 600 if i == 0 else 64)) for i in range(20)})
    figures = {"a <b> & c": [("Its plot", folder / "plot.png")],
               "": [("Over steps", folder / "plot.png")]}
    page.write(folder / "report.html", "half, 20 images", PARTS, ROWS, RESULTS, [measured],
               lambda j: (f"photo {j}.jpg", shade(j)), figures)
    return (folder / "report.html").read_text()


def test_it_stands_alone_and_is_whole(written):
    """No script, nothing from outside; each link, label and image has what it needs."""
    read = Reader(written)
    assert "url(" not in written and "@import" not in written
    assert "http" not in re.sub(r'base64,[^"]*', "", written)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "form"}
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = {link["href"] for link in read.all("a") if "href" in link}
    assert links == {f"#{name}" for name in ids}
    assert all(image["alt"] and int(image["width"]) for image in read.all("img"))
    assert all(box["aria-label"].startswith("Enlarge: ") for box in read.all("input"))
    assert {"charset": "utf-8"} in read.all("meta") and read.all("html") == [{"lang": "en"}]


def test_it_has_the_words_the_sentences_and_the_exact_values(written):
    read = Reader(written)
    text = read.text.replace("\xa0", " ")
    for heading, said in PARTS:
        assert heading in text
        assert all(sentences in text and part.capitalize() in text
                   for part, sentences in said.items())
    assert all(row.says in text and row.label in text for row in ROWS if row.name != "recall")
    assert "recall" not in text and "<b> & c" not in written  # no such number; names are escaped
    titles = [cell.get("title") for cell in read.all("td")]
    assert "30.1235, 95% interval 29 to 40" in titles and "0.9" in titles
    assert "30.1 ±9.9" in text and "–" in text and "0.50" in text
    assert [cell["data-column"] for cell in read.all("td")][:3] == ["REAL", "a <b> & c",
                                                                   "published"]
    assert "runs/x/y.pth" in text
    assert text.index("Which is best?") < text.index("Far from")
    assert "<strong>Far from &lt;photos&gt;: </strong>" in written


def test_bars_are_to_scale(written):
    """Of a row: from the least of all ends and the ideal to the largest."""
    def places(name):
        row = written.split(f"<th scope=row>{name}<")[1].split("<th ")[0]
        found = []
        for cell in row.split("<td ")[1:]:
            marks = re.findall(r'<i class=(\w+) style="left:([\d.]+)%(?:;width:([\d.]+)%)?"', cell)
            found.append({kind: tuple(float(x) for x in ends if x) for kind, *ends in marks})
        return found

    real, own, published = places("FD-EfficientNet validation")
    assert published == {} and real["band"] == own["band"]
    assert own["ideal"] == (2,) and own["band"] == (2 + 96 * 18 / 40, round(96 * 4 / 40, 1))
    assert own["interval"] == (2 + round(96 * 29 / 40, 1), round(96 * 11 / 40, 1))
    assert own["value"] == (round(2 + 96 * 30.123456789 / 40, 1),)
    real, own, published = places("AA train")
    assert own["band"] == (2, 32) and own["ideal"] == (18,) and own["value"] == (98,)
    assert published["value"] == (82,) and published["interval"] == (82, 0)


def test_its_pictures(written):
    """Samples, shrunk where they are large; each suspect beside its nearest photo; plots."""
    read = Reader(written)

    def shown(alt):
        (image,) = [image for image in read.all("img") if image["alt"] == alt]
        return Image.open(io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2])))

    for i in range(12):  # those after it are suspects, too
        assert np.abs(np.asarray(shown(f"sample {i} of a <b> & c"), int) - 10 * i - 5).max() < 3
    assert shown("sample 0 of a <b> & c").size == (600, 600)
    for i in range(19, 19 - page.SUSPECTS, -1):  # nearest photo: of the same number
        near = shown(f"the training photo nearest to sample {i}")
        assert np.abs(np.asarray(near, int) - 10 * i - 5).max() < 3
    assert "the training photo nearest to sample 11" not in written
    assert "photo 19.jpg, cosine distance 0.250" in read.text
    assert "10 by cosine distance; the nearest 8 are shown" in read.text
    assert shown("Its plot").size == shown("Over steps").size == (1000, 500)
    assert len(read.all("img")) == 8 + 4 + page.SAMPLES + 2 * page.SUSPECTS + 2


def test_four_columns_stay_below_five_megabytes(tmp_path):
    """Of images that JPEG hardly compresses, half of them suspects by two distances."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 512, 512), np.uint8)
    near = Neighbors(np.zeros((20, 4)), np.zeros((20, 4), int))
    suspects = [{"sample": i, "name": "", "distance": 0.1} for i in range(10)]
    judged = [SimpleNamespace(
        result={**RESULTS[1], "name": f"c{i}", "suspects": {"cosine": suspects, "lpips": suspects}},
        near={"cosine": (near, [0]), "lpips": (near, [0])},
        images={i: (f"sample {i}", noise) for i in range(20)}) for i in range(4)]
    sizes = []
    for columns in (judged, judged[:1]):
        page.write(tmp_path / "report.html", "", [], [], [], columns, lambda j: ("photo", noise),
                   {"": [], **{measured.result["name"]: [] for measured in columns}})
        assert (tmp_path / "report.html").stat().st_size < 5e6
        read = Reader((tmp_path / "report.html").read_text())
        sizes.append(max(int(image["width"]) for image in read.all("img")))
    assert sizes[0] < sizes[1] < 512


def test_it_is_written_whole_or_not_at_all(written, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.files.os, "fsync", full)
    with pytest.raises(OSError, match="report.html"):
        page.write(tmp_path / "report.html", "", PARTS, ROWS, RESULTS, [],
                   lambda j: ("photo", shade(j)), {"": []})
    assert not list(tmp_path.iterdir())
