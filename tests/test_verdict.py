"""The verdict in words: each sentence, and on both sides of each border; by made-up numbers, and by
the tables of docs/results.md."""

import re

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import binom

import metrics
from common import verdict
from common.rows import DETAILS, rows

SETTINGS = {"n": 100, "features": "efficientnet"}
PHOTOS = {"fid_validation": (20, 1), "precision": (0.7, 0.1), "aa_train": (0.5, 0.1),
          "spectrum_high": (0.1, 0.05), "spectrum_high_signed": (0.0, 0.05),
          "spectrum_grid": (0.0, 0.1), "spectrum_grid_8": (0.0, 0.1), "spectrum_grid_4": (0.0, 0.1),
          "spectrum_grid_2": (0.0, 0.1), "recall": (0.7, 0.1), "effective_images": (8, 1)}
SAMPLES = {**PHOTOS, "aa_test": (0.5, 0.1), "privacy_loss": (0, 0.1), "copies": (0.01, 0.02),
           "pieces": (0.5, 0.1)}


def result(name, numbers, kind="judged", suspects=(), **others):
    """A result of report.py, of (number, half its interval)."""
    named = {name.replace("fid", "fd_efficientnet"): pair for name, pair in numbers.items()}
    return {"name": name, "kind": kind, **{row: value for row, (value, _) in named.items()},
            "intervals": {row: [value - margin, value + margin]
                          for row, (value, margin) in named.items()},
            "suspects": {"cosine": [{"sample": i, "name": f"sample {i}"} for i in suspects]},
            "other_photos": False, **others}


def said(suspects=(), n=100, others=(), **numbers):
    """The words for a column of these numbers, and for others."""
    columns = [result("REAL", PHOTOS, "real"),
               result("a", {**SAMPLES, **numbers}, suspects=suspects), *others]
    words = verdict.verdict(columns, {**SETTINGS, "n": n})
    return words if others else words["columns"].get("a", words)


@pytest.mark.parametrize("told, distance, lead", [
    ((0.5, 0.1), (20, 1), "No difference from photos is seen: "),
    ((0.7, 0.1), (22, 1), "No difference from photos is seen: "),  # intervals touch
    ((0.7, 0.1), (22.1, 1), "Not told from photos one by one, but as a whole: "),
    ((0.71, 0.1), (22, 1), "Can be told from photos: "),
    ((0.95, 0.05), (22, 1), "Can be told from photos: "),
    ((0.96, 0.05), (22, 1), "Far from photos: "),
    ((0.31, 0.1), (20, 1), "No difference from photos is seen: "),
    ((0.29, 0.1), (20, 1), "Nearer to validation photos than photos are to each other")])
def test_quality_by_the_nearest_neighbour_test(told, distance, lead):
    text = said(aa_test=told, fid_validation=distance)["quality"]
    assert text.startswith(lead)
    percent, margin = 100 * told[0], 100 * told[1]
    assert f"tells {percent:.0f}% ±{margin:.0f} of the images apart (photos 50% ±10, ide" in text


@pytest.mark.parametrize("distance, words", [
    ((22, 1), "is no more than that of other photos (FD-EfficientNet 22.0 ±1.0; 20.0 ±1.0)."),
    ((22.1, 1), "is 1.1 times that of other photos (FD-EfficientNet 22.1 ±1.0; 20.0 ±1.0)."),
    ((300, 5), "is 15 times that"), ((18, 1), "is no more than"), ((17.9, 1), "is below that of")])
def test_quality_by_the_distance(distance, words):
    assert words in said(fid_validation=distance)["quality"]


@pytest.mark.parametrize("numbers, words", [
    ({"spectrum_high": (0.2, 0.05)}, None),  # intervals touch
    ({"spectrum_high": (2.3, 0.1), "spectrum_high_signed": (-2.3, 0.1)},
     "Fine detail has a tenth of the power of photos (spectrum, high 2.30 ±0.10; photos 0.10 ±0."),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (-0.69, 0.1)}, "has half the power of"),
    ({"spectrum_high": (1.1, 0.1), "spectrum_high_signed": (1.1, 0.1)}, "has 3.0 times the power"),
    ({"spectrum_high": (3, 0.1), "spectrum_high_signed": (3, 0.1)}, "has 20 times the power of"),
    ({"spectrum_high": (4, 0.1), "spectrum_high_signed": (-4, 0.1)}, "has 1/55 of the power of"),
    ({"spectrum_high": (6, 0.1), "spectrum_high_signed": (-6, 0.1)}, "has less than a hundredth"),
    ({"spectrum_high": (0.3, 0.05), "spectrum_high_signed": (-0.3, 0.1)}, "has 74% of the power"),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (0.3, 0.1)},
     "The power in fine detail is off by a factor of 2.0 on average, up and down (spectrum, high"),
    ({"spectrum_high": (0.3, 0.05), "spectrum_high_signed": (0.2, 0.3)}, "off by a factor of 1.3"),
    ({"spectrum_grid": (0.2, 0.1)}, None),
    ({"spectrum_grid": (0.3, 0.1), "spectrum_grid_8": (0.3, 0.1), "spectrum_grid_4": (0.9, 0.1)},
     "A regular grid of 8 pixels shows (spectrum, grid 0.30 ±0.10; photos 0.00 ±0.10)."),
    ({"spectrum_grid": (0.3, 0.1), "spectrum_grid_4": (0.3, 0.1)}, "grid of 4 pixels shows"),
    ({"spectrum_grid": (0.3, 0.1), "spectrum_grid_2": (0.3, 0.1)}, "grid of 2 pixels shows"),
    ({"spectrum_grid": (0.3, 0.1)}, "A regular grid shows"),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (-0.69, 0.1),
      "spectrum_grid": (0.3, 0.1)}, "photos 0.10 ±0.05); a regular grid shows (")])
def test_quality_by_the_spectrum(numbers, words):
    text = said(**numbers)["quality"]
    if words:
        assert words in text
    else:
        assert "power" not in text and "grid" not in text


@pytest.mark.parametrize("images, lead", [
    ((1.0, 0.1), "Collapsed, nearly all of them are one image: 1.0 ±0.1 effective images, ph"),
    ((1.9, 0.1), "Little variety, less than half of photos'"),  # 2 is no collapse
    ((3.3, 0.1), "Little variety"), ((3.5, 0.1), "Less varied than photos"),
    ((6.0, 0.9), "Less varied than photos: 6.0 ±0.9 effective images, photos 8.0 ±1.0"),
    ((6.0, 1), "As varied as photos"), ((10, 1), "As varied as photos"),
    ((10.1, 1), "More varied than photos, as images far from them often are")])
def test_variety_by_effective_images(images, lead):
    assert said(effective_images=images)["variety"].startswith(lead)


@pytest.mark.parametrize("recall, images, words", [
    ((0.5, 0.1), (8, 1), "photos 8.0 ±1.0; 50% ±10 of the photos lie among them, among as many "
                         "other photos 70% ±10."),
    ((0.49, 0.1), (8, 1), "photos 8.0 ±1.0, but of other kinds; 49% ±10 of the photos"),
    ((0.1, 0.1), (5, 1), "photos 8.0 ±1.0; 10% ±10 of the photos"),
    ((0.0, 0.0), (8, 1), "but of other kinds; 0% of the photos lie")])
def test_variety_by_recall(recall, images, words):
    assert words in said(recall=recall, effective_images=images)["variety"]


NONE = ("No sign of it: 1 of 100 images lies suspiciously near to a training photo (1.0 by "
        "chance): sample 3; 50% ±10 of pieces are nearer to training than to validation photos "
        "(50% by chance); privacy loss is 0.00 ±0.10 (0 by chance). Had 8% of the images been "
        "copies, they would have shown nine times in ten.")


@pytest.mark.parametrize("numbers, suspects, words", [
    ({}, [3], f"^{re.escape(NONE)}$"),
    ({"copies": (0.03, 0.02)}, [1, 2, 3], "^No sign"),  # the interval begins at chance's share
    ({"copies": (0.04, 0.02)}, [1, 2, 3, 4], "^Photos may be copied: 4 of 100 images lie suspic"),
    ({"copies": (0.07, 0.05)}, range(7), r": sample 0, sample 1, .*sample 4, …\. Look at the f"),
    ({"pieces": (0.6, 0.1)}, [], "^No sign"),
    ({"pieces": (0.61, 0.1)}, [], "^Parts of training photos may be copied, whole ones are not se"
     r".*61% ±10 of pieces are nearer to training .*\. 0 of 100 images lie .*\. Look at t"),
    ({"pieces": (0.61, 0.1), "copies": (0.1, 0.05)}, range(10), "^Photos may be copied: 10 of .*"
     "61% ±10 of pieces are nearer"),
    ({"privacy_loss": (0.2, 0.1)}, [], "^Photos may be copied: privacy loss is 0.20 ±0.10"),
    ({"privacy_loss": (0.1, 0.1)}, [], "^No sign"),
    ({"recovery_gap": (0.03, 0.02)}, [], "^Photos may be copied: it recovers training photos "
     r"better than validation photos, by 0.0300 ±0.0200\."),
    ({"recovery_gap": (0.01, 0.02)}, [], "^No sign"),
    ({"privacy_loss": (-0.2, 0.1)}, [], "^Nearer to validation than to training photos: privacy l"),
    ({"pieces": (0.1, 0.1)}, [], r"^Nearer to validation .*: 10% ±10 of pieces .* Was"),
    ({"pieces": (0.4, 0.1)}, [], "^No sign")])
def test_copying(numbers, suspects, words):
    assert re.search(words, said(suspects, **numbers)["copying"])


def test_copying_by_two_distances_and_of_other_photos():
    column = result("a", SAMPLES, suspects=[1])
    column["suspects"]["lpips"] = [{"sample": 5, "name": "sample 5"}]
    real = result("REAL", PHOTOS, "real")
    words = verdict.verdict([real, column], SETTINGS)["columns"]["a"]["copying"]
    assert "sample 1; 1 of 100 images lies suspiciously near to a training photo by LPIPS" in words
    words = verdict.verdict([real, {**column, "other_photos": True}], SETTINGS)["columns"]["a"]
    assert words["copying"] == "Not tested, since it was trained on other photos."
    del column["intervals"]["copies"]  # above 12,000 photos and samples
    words = verdict.verdict([real, column], SETTINGS)["columns"]["a"]["copying"]
    assert words.startswith("1 of 100 images lies suspiciously near to a training photo (1.0 by ch")


@pytest.mark.parametrize("n", [50, 134, 267, 1000])
def test_what_would_have_been_noticed(n):
    """Of so many copies, with chance's suspects, nine of ten draws have a sign; of fewer not."""
    def shown(share):
        draws = np.random.default_rng(0).binomial(n, min(1, share + 0.01), 20_000) / n
        return np.mean(draws - 1.96 * np.sqrt(draws * (1 - draws) / n) > 0.01)

    share = verdict.noticed(n)
    assert shown(share) > 0.89 and shown(share - 0.005) < 0.9
    assert binom.sf(0, n, share) > 0.9


def test_a_sign_of_copies_is_what_the_rows_interval_shows():
    """Gaussians, n = 134, 30 draws: as many copies as `noticed` says show nine times in ten."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        train, validation, fake = rng.standard_normal((3, 134, 8))
        copies = round(134 * verdict.noticed(134))
        fake[:copies] = train[:copies]
        low, _ = metrics.interval(lambda *sets: metrics.suspected_copies(*sets).double().mean(),
                                  train, validation, fake, replicates=60)
        found.append(low > verdict.CHANCE)
    assert np.mean(found) >= 0.8


def columns_of(**distances):
    """Columns that differ in FD alone, or in it and AA test."""
    return [result(name.replace("_", " "),
                   {**SAMPLES, "fid_validation": pair[:2], "aa_test": pair[2:] or (0.8, 0.05)})
            for name, pair in distances.items()]


@pytest.mark.parametrize("distances, words", [
    ({"b": (30, 2), "c": (40, 2)}, "No column is best beyond its interval by FD-EfficientNet: a "
     "29.0 ±2.0, b 30.0 ±2.0; the other is worse."),
    ({"b": (34, 2), "c": (40, 2)}, "a is best, beyond its interval: FD-EfficientNet 29.0 ±2.0, "
     "next b with 34.0 ±2.0."),
    ({"b": (30, 2), "c": (31, 2)}, "FD-EfficientNet: a 29.0 ±2.0, b 30.0 ±2.0, c 31.0 ±2.0."),
    ({"b": (33, 2), "c": (40, 2), "d": (41, 2)}, "b 33.0 ±2.0; the others are worse."),
    ({"b": (34, 2, 0.6, 0.05)}, "next b with 34.0 ±2.0. The nearest-neighbour test prefers b, of "
     "which it tells 60% ±5 apart, of a 80% ±5."),
    ({"b": (34, 2, 0.7, 0.05)}, "next b with 34.0 ±2.0.")])
def test_which_is_best(distances, words):
    text = said(fid_validation=(29, 2), aa_test=(0.8, 0.05), others=columns_of(**distances))["best"]
    assert text.endswith(words)


@pytest.mark.parametrize("distances, words", [
    ([50, 40, 30], "More steps still helped, FD-EfficientNet 40.0 ±2.0 at step 2,000, 30.0 ±2.0 at "
                   "3,000."),
    ([50, 40, 36], "No gain beyond the interval from step 2,000 to 3,000, FD-EfficientNet 40.0 "
                   "±2.0 and 36.0 ±2.0."),
    ([50, 40, 35.9], "More steps still helped"),
    ([38, 40, 36], "No gain beyond the interval from step 1,000 to 3,000"),
    ([30, 40, 50], "It was best at step 1,000, FD-EfficientNet 30.0 ±2.0, and is worse at step "
                   "3,000, 50.0 ±2.0."),
    ([40, 30, 34], "No gain beyond the interval from step 2,000"), ([40, 30, 34.1], "It was best")])
def test_whether_more_steps_helped(distances, words):
    columns = [result(f"x {step}", {**SAMPLES, "fid_validation": (value, 2)}, model="x", step=step,
                      path=f"runs/one/ckpt_{step}.pth")
               for step, value in zip((3000, 2000, 1000), distances[::-1], strict=True)]
    real = result("REAL", PHOTOS, "real")
    assert verdict.verdict([real, *columns], SETTINGS)["steps"].startswith(words)
    assert "steps" not in verdict.verdict([real, columns[0]], SETTINGS)
    apart = [{**column, "path": f"runs/{i}/a.pth"} for i, column in enumerate(columns)]
    assert "steps" not in verdict.verdict([real, *apart], SETTINGS)
    text = verdict.verdict([real, *columns, {**apart[0], "name": "y"}, {
        **apart[0], "name": "z", "step": 9}], SETTINGS)["steps"]
    assert re.match(r"one: .*\. 0: no gain beyond .* step 9 to 3,000", text)


def test_what_few_and_very_many_images_do_not_bear():
    few = said(n=23)
    assert few == {"columns": {}, "note": few["note"]} and few["note"].startswith("23 images a set "
                                                                                  "are too few")
    assert said(n=24).keys() == {"quality", "variety", "copying"}
    assert said([1, 2], n=8) == {"copying": "2 of 8 images lie suspiciously near to a training "
                                            "photo (0.1 by chance): sample 1, sample 2."}
    real, column = result("REAL", PHOTOS, "real"), result("a", SAMPLES)
    many = verdict.verdict([{**real, "intervals": {}}, column], {**SETTINGS, "n": 5000})
    assert many["note"].startswith("5,000 images a set have no intervals")


def test_markdown():
    words = said(others=columns_of(b=(40, 2)))
    lines = verdict.markdown(words).splitlines()
    assert lines[0] == "**a**" and lines[1] == f"- quality: {words['columns']['a']['quality']}"
    assert lines[-3:] == ["", "**Which is best?**", f"- best: {words['best']}"]
    note = said(n=8)
    assert verdict.markdown(note) == f"**No verdict**\n- note: {note['note']}"


# The words for real results ------------------------------------------------------------------


def tables():
    """The tables of docs/results.md with a column REAL, as results of report.py."""
    labels = {row.label: row.name for row in rows("efficientnet")}
    found = []
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *lines = ([cell.strip(" *") for cell in line.strip("|").split("|")]
                             for line in table.splitlines())
        if "REAL" not in header:
            continue
        columns = [{"name": name, "kind": "real" if name == "REAL" else "judged", "intervals": {},
                    "suspects": {}, "other_photos": False} for name in header[1:]]
        for label, *cells in lines:
            for column, cell in zip(columns, cells, strict=True):
                if " ±" in cell:
                    value, margin = map(float, cell.split(" ±"))
                    column[labels[label]] = value
                    column["intervals"][labels[label]] = [value - margin, value + margin]
        found.append({column["name"]: column for column in columns})
    return found


def read(columns, n, step=None):
    """The words for columns of a table; what it does not say: samples have less fine detail."""
    for column in columns.values():
        for row in DETAILS:
            of = "spectrum_high" if row.name.endswith("signed") else "spectrum_grid"
            sign = -1 if row.name.endswith("signed") and column["kind"] == "judged" else 1
            low, high = sorted(sign * x for x in column["intervals"][of])
            column["intervals"][row.name], column[row.name] = [low, high], (low + high) / 2
        if column["kind"] == "judged":
            found = range(round(column["copies"] * n))
            column["suspects"] = {"cosine": [{"sample": i, "name": f"sample {i}"} for i in found]}
        if step and re.match(step, column["name"]):
            model, step_of = column["name"].split()
            column |= {"model": model, "step": int(step_of), "path": f"runs/{model}/a.pth"}
    return verdict.verdict(list(columns.values()), {**SETTINGS, "n": n})


def test_the_words_for_the_worked_example():
    table = next(table for table in tables() if "kitchens" in table)
    words = read(table, 100)
    said = words["columns"]
    assert {name: text["quality"].partition(":")[0] for name, text in said.items()} == {
        **dict.fromkeys(("others", "copies", "mixed"), "No difference from photos is seen"),
        **dict.fromkeys(("kitchens", "collages", "unseen"), "Far from photos")}
    assert {name: re.split("[:,]", text["copying"])[0] for name, text in said.items()} == {
        **dict.fromkeys(("others", "kitchens"), "No sign of it"), "copies": "Photos may be copied",
        **dict.fromkeys(("collages", "mixed"), "Parts of training photos may be copied"),
        "unseen": "Nearer to validation than to training photos"}
    assert said["kitchens"]["variety"].startswith("As varied as photos: 6.9 ±0.4 effective images, "
                                                  "photos 6.9 ±0.4, but of other kinds; 7% ±13")
    assert words["best"].startswith("No column is best beyond its interval by FD-EfficientNet: "
                                    "others 29.9 ±2.4, copies 30.1 ±2.3, mixed 32.2 ±2.9; the oth")


def test_the_words_for_the_four_models():
    table = next(table for table in tables() if "vae 300" in table)
    words = read(table, 267, "gan")
    said = words["columns"]
    assert all(text["quality"].startswith("Far from photos: a nearest-neighbour test tells 100% of")
               and text["copying"].startswith("No sign of it: 0 of 267") for text in said.values())
    assert {name: text["variety"].partition(",")[0].partition(":")[0]
            for name, text in said.items()} == {
        "gan 500": "Little variety", "gan 1000": "Little variety", "vae 300": "Little variety",
        "dcgan 500": "Less varied than photos", "fastgan 3000": "More varied than photos"}
    assert "Fine detail has 1/55 of the power of photos" in said["gan 500"]["quality"]
    assert "a regular grid of 8 pixels shows" in said["vae 300"]["quality"]
    assert words["best"] == ("fastgan 3000 is best, beyond its interval: FD-EfficientNet 169.6 "
                             "±4.1, next vae 300 with 186.8 ±3.5.")
    assert words["steps"] == ("It was best at step 500, FD-EfficientNet 194.7 ±3.2, and is worse "
                              "at step 1,000, 201.8 ±3.3.")


def test_the_words_for_steps_of_a_run():
    small, published = (next(table for table in tables() if name in table)
                        for name in ("small 7400", "fastgan 2000"))
    words = read(small, 267, "small")
    assert words["columns"]["small 7400"]["quality"].startswith(
        "Can be told from photos: a nearest-neighbour test tells 83% ±4 of the images apart "
        "(photos 50% ±6, ideal 50%), and the distance from photos is 1.3 times that of other "
        "photos (FD-EfficientNet 24.1 ±1.4; 17.9 ±1.1). Fine detail has half the power of photos")
    assert words["columns"]["small 7400"]["variety"].startswith("Less varied than photos")
    assert words["steps"] == ("No gain beyond the interval from step 4,600 to 7,400, "
                              "FD-EfficientNet 27.0 ±1.7 and 24.1 ±1.4.")
    words = read(published, 267, "fastgan")
    assert words["steps"].startswith("More steps still helped")
    assert words["columns"]["fastgan 3000"]["variety"].endswith(
        "but of other kinds; 0% of the photos lie among them, among as many other photos 74% ±7.")
