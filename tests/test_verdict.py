"""The verdict in words: each sentence, and on both sides of each border; by made-up numbers, and by
the tables of docs/results.md."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT

import metrics
from common import verdict

SETTINGS = {"n": 100, "features": "efficientnet", "validation_photos": 300}
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
    ((0.29, 0.1), (20, 1), "Nearer to validation photos than photos are to each other"),
    ((0.5, 0.1), (17.9, 1), "Nearer to validation photos than photos are to each other")])
def test_quality_by_the_nearest_neighbour_test(told, distance, lead):
    text = said(aa_test=told, fid_validation=distance)["quality"]
    assert text.startswith(lead)
    percent, margin = 100 * told[0], 100 * told[1]
    assert (f"tells {percent:.0f}% ±{margin:.0f} of images and photos apart (50% is guessing; "
            "validation photos 50% ±10). FD-EfficientNet, their distance from photos, is ") in text


@pytest.mark.parametrize("distance, words", [
    ((22, 1), "is the same as validation photos' within the intervals: 22.0 ±1.0 and 20.0 ±1.0."),
    ((22.1, 1), "is 1.1 times validation photos': 22.1 ±1.0 and 20.0 ±1.0."),
    ((300, 5), "is 15 times validation"), ((18, 1), "within the intervals: 18"),
    ((17.9, 1), "is smaller than validation photos': 17.9 ±1.0 and 20.0 ±1.0.")])
def test_quality_by_the_distance(distance, words):
    assert words in said(fid_validation=distance)["quality"]


def test_no_multiple_of_a_distance_that_is_nothing():
    """Where both halves of the photos are one."""
    real = result("REAL", {**PHOTOS, "fid_validation": (0, 1)}, "real")
    words = verdict.verdict([real, result("a", SAMPLES)], SETTINGS)["columns"]["a"]["quality"]
    assert "is larger than validation photos': 20.0 ±1.0 and 0.0 ±1.0." in words


@pytest.mark.parametrize("numbers, words", [
    ({"spectrum_high": (0.2, 0.05)}, None),  # intervals touch
    ({"spectrum_high": (2.3, 0.1), "spectrum_high_signed": (-2.3026, 0.1)},
     "1.0. Fine detail is too weak, 10% ±1 of its power in photos."),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (-0.69, 0.1)}, "too weak, 50% ±5 of"),
    ({"spectrum_high": (1.1, 0.1), "spectrum_high_signed": (1.1, 0.1)}, "strong, 3.0 ±0.3 times"),
    ({"spectrum_high": (4, 0.1), "spectrum_high_signed": (-4, 0.1)}, "too weak, 1.8% ±0.2 of its"),
    ({"spectrum_high": (0.3, 0.05), "spectrum_high_signed": (0.3, 0.05)}, "too strong, 135% ±7 of"),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (0.3, 0.1)},
     "The power in fine detail is off by a factor of 2.0 on average, up and down."),
    ({"spectrum_high": (0.3, 0.05), "spectrum_high_signed": (0.2, 0.3)}, "off by a factor of 1.3"),
    ({"spectrum_grid": (0.2, 0.1)}, None), ({"spectrum_grid": (0.29, 0.01)}, None),  # faint
    ({"spectrum_grid": (0.4, 0.1), "spectrum_grid_8": (0.6931, 0.1), "spectrum_grid_4": (2, 0.1)},
     "A regular grid of 8 pixels shows, with 2.0 ±0.2 times the power around it."),
    ({"spectrum_grid": (0.31, 0.1), "spectrum_grid_4": (0.7, 0.1)}, "of 4 pixels shows, with 2.0"),
    ({"spectrum_grid": (0.31, 0.1), "spectrum_grid_2": (0.7, 0.1)}, "grid of 2 pixels shows"),
    ({"spectrum_grid": (0.31, 0.1)}, "A regular grid shows, with 1.4"),
    ({"spectrum_high": (0.7, 0.1), "spectrum_high_signed": (-0.69, 0.1),
      "spectrum_grid": (0.31, 0.1)}, "in photos; a regular grid shows, with 1.4")])
def test_quality_by_the_spectrum(numbers, words):
    text = said(**numbers)["quality"]
    assert text.startswith("No difference from photos is seen but in the spectrum: ") == bool(words)
    if words:
        assert words in text
    else:
        assert "power" not in text and "grid" not in text


@pytest.mark.parametrize("images, lead", [
    ((1.0, 0.05), "Collapsed, nearly all of them are one image: "),
    ((1.05, 0.1), "Collapsed, hardly any variety"),
    ((1.9, 0.1), "Little variety, less than half of photos'"),  # 2 is no collapse
    ((3.3, 0.1), "Little variety"), ((3.5, 0.1), "Less varied than photos"),
    ((6.0, 0.9), "Less varied than photos: they cover 70% ±10 of the photos, validation photos "
     "70% ±10; they vary as 6.0 ±0.9 images with nothing in common would, photos as 8.0 ±1.0."),
    ((6.0, 1), "As varied as photos, within the intervals: "),
    ((10, 1), "As varied as photos, within the intervals"), ((10.1, 1), "More varied than photos")])
def test_variety_by_effective_images(images, lead):
    assert said(effective_images=images)["variety"].startswith(lead)


def test_photos_of_little_variety_make_no_collapse():
    real = result("REAL", {**PHOTOS, "effective_images": (1.8, 0.1)}, "real")
    for images, lead in ((1.5, "Less varied"), (1.7, "As varied"), (1.2, "Collapsed, hardly any")):
        column = result("a", {**SAMPLES, "effective_images": (images, 0.1)})
        words = verdict.verdict([real, column], SETTINGS)["columns"]["a"]["variety"]
        assert words.startswith(lead)


@pytest.mark.parametrize("recall, images, lead", [
    ((0.5, 0.1), (8, 1), "As varied as photos, within the intervals: they cover 50% ±10 of the"),
    ((0.49, 0.1), (8, 1), "Less varied than photos: they cover 49% ±10 of the photos, validat"),
    ((0.49, 0.1), (12, 1), "Less varied than photos"),
    ((0.2, 0.1), (8, 1), "Less varied than photos"),  # half of photos' least is within
    ((0.19, 0.1), (8, 1), "Varied, but most photos are not covered: they cover 19% ±10 of the"),
    ((0.19, 0.1), (5, 1), "Little of the photos' variety: they cover 19% ±10 of the photos"),
    ((0.0, 0.0), (2.5, 0.1), "Little variety, less than half of photos'")])
def test_variety_by_recall(recall, images, lead):
    assert said(recall=recall, effective_images=images)["variety"].startswith(lead)


NONE = ("No sign beyond chance: 1 of 100 images lies suspiciously near to a training photo (1.3 by "
        "chance): sample 3; 50% ±10 of pieces are more like training than like validation photos "
        "(50% by chance); privacy loss is 0.00 ±0.10 (0 by chance). 11 exact copies (11%) would "
        "most likely have shown, fewer may not.")


@pytest.mark.parametrize("numbers, suspects, words", [
    ({}, [3], f"^{re.escape(NONE)}$"),
    ({"copies": (0.033, 0.02)}, [1, 2, 3], "^No sign"),  # chance's share is within the interval
    ({"copies": (0.034, 0.02)}, [1, 2, 3], "^Photos may be copied: 3 of 100 images lie suspic"),
    ({"copies": (0.07, 0.05)}, range(7), r": sample 0, sample 1, .*sample 4, …\. Look at th"),
    ({"pieces": (0.6, 0.1)}, [], "^No sign"),
    ({"pieces": (0.61, 0.1)}, [], "^Parts may be copied, exact copies of whole photos are not "
     r"seen: 61% ±10 of pieces are more like training .*\(50% by chance\)\. Look at them in"),
    ({"pieces": (0.61, 0.1), "copies": (0.1, 0.05)}, range(10), "^Photos may be copied: 10 of .*"
     "61% ±10 of pieces are more like"),
    ({"privacy_loss": (0.2, 0.1)}, [], "^Photos may be copied: privacy loss is 0.20 ±0.10"),
    ({"privacy_loss": (0.1, 0.1)}, [], "^No sign"),
    ({"recovery_gap": (0.03, 0.02)}, [], "^Photos may be copied: training photos are recovered "
     r"better than validation photos by 0.0300 ±0.0200 \(0 by chance\)\."),
    ({"recovery_gap": (0.01, 0.02)}, [], "^No sign.*validation photos by 0.0100 ±0.0200 "),
    ({"recovery_gap": (-0.03, 0.02)}, [], "^No sign"),
    ({"privacy_loss": (-0.2, 0.1)}, [], "^Nearer to validation than to training photos: privacy l"),
    ({"pieces": (0.1, 0.1)}, [], r"^Nearer to validation .*: 10% ±10 of pieces .*Trained on those"),
    ({"pieces": (0.4, 0.1)}, [], "^No sign"),
    ({"pieces": (0.1, 0.1), "copies": (0.2, 0.1)}, [1], r"^Photos may be copied: .*figures\. "
     "Nearer to validation than"),
    ({"aa_test": (0.95, 0.05)}, [], "fewer may not"),
    ({"aa_test": (0.96, 0.05)}, [], r"chance\)\. Copies as far from photos as these images w")])
def test_copying(numbers, suspects, words):
    assert re.search(words, said(suspects, **numbers)["copying"])


def test_copying_by_lpips():
    """Suspects by LPIPS are a sign, too, by a share of their own."""
    def words(share, n=5):
        column = result("a", {**SAMPLES, "copies_lpips": (share, 0.02)})
        column["suspects"]["lpips"] = [{"sample": i, "name": f"sample {i}"} for i in range(n)]
        return verdict.verdict([result("REAL", PHOTOS, "real"), column],
                               SETTINGS)["columns"]["a"]["copying"]

    assert words(0.05).startswith("Photos may be copied: 5 of 100 images lie suspiciously near to "
                                  "a training photo by LPIPS (1.3 by chance): sample 0")
    assert words(0.01, 1).startswith("No sign beyond chance: 0 of 100 images lie suspiciously near "
                                     "to a training photo (1.3 by chance); 1 of 100 images lies ")


def test_copying_of_other_photos_and_of_very_many():
    real = result("REAL", PHOTOS, "real")

    def words(other_photos, *without, **numbers):
        column = result("a", {**SAMPLES, **numbers}, other_photos=other_photos)
        for name in without:
            del column["intervals"][name]
        return verdict.verdict([real, column], SETTINGS)["columns"]["a"]["copying"]

    assert words(True) == "Not tested, since it was trained on other photos."
    assert re.search(r"^Parts may be .* figures\. It was trained on other photos than these\.$",
                     words(True, pieces=(0.9, 0.1)))
    assert words(True, pieces=(0.1, 0.1)).startswith("Nearer to validation than to training")
    # Above 12,000 photos and samples suspects have no interval; what has one counts.
    assert words(False, "copies", pieces=(0.9, 0.1)).startswith("Parts may be copied, exact")
    assert words(False, "copies").endswith("privacy loss is 0.00 ±0.10 (0 by chance).")


@pytest.mark.parametrize("n", [24, 100, 267])
def test_suspects_by_chance(n):
    """Of honest Gaussians, as many as the words say, on average over draws."""
    rng = np.random.default_rng(0)
    found = [metrics.suspected_copies(*rng.standard_normal((3, n, 4))).double().mean()
             for _ in range(400)]
    assert np.mean(found) == pytest.approx(verdict.chance(n), rel=0.15)


@pytest.mark.parametrize("n, draws", [(50, 40), (134, 40), (267, 24)])
def test_the_copies_that_would_have_shown_do(n, draws):
    """Gaussians: of so many copies the row's interval is above chance's share nine times in ten."""
    rng, copies = np.random.default_rng(0), math.ceil(n * verdict.noticed(n, n))
    found = []
    for _ in range(draws):
        train, validation, fake = (torch.from_numpy(x) for x in rng.standard_normal((3, n, 8)))
        fake[:copies] = train[:copies]
        views = metrics.distance_views(train, validation, fake)
        low, _ = metrics.interval(lambda *sets: metrics.suspected_copies(*sets).double().mean(),
                                  *views, replicates=100)
        found.append(low > verdict.chance(n))
    assert np.mean(found) >= 0.85
    assert verdict.noticed(n, n) < 16 / n  # and they are few


def columns_of(**distances):
    """Columns that differ in FD alone, or in it and AA test."""
    return [result(name.replace("_", " "),
                   {**SAMPLES, "fid_validation": pair[:2], "aa_test": pair[2:] or (0.8, 0.05)})
            for name, pair in distances.items()]


@pytest.mark.parametrize("distances, words", [
    ({"b": (30, 2), "c": (40, 2)}, "Too close to call by FD-EfficientNet: a 29.0 ±2.0, b 30.0 "
     "±2.0; 1 other is worse."),
    ({"b": (34, 2), "c": (40, 2)}, "a is best, beyond the intervals: FD-EfficientNet 29.0 ±2.0, "
     "next is b with 34.0 ±2.0."),
    ({"b": (30, 2), "c": (31, 2)}, "FD-EfficientNet: a 29.0 ±2.0, b 30.0 ±2.0, c 31.0 ±2.0."),
    ({"b": (33, 2), "c": (40, 2), "d": (41, 2)}, "b 33.0 ±2.0; 2 others are worse."),
    ({"b": (34, 2, 0.6, 0.05)}, "next is b with 34.0 ±2.0. The nearest-neighbour test prefers b: "
     "60% ±5 told apart, a 80% ±5."),
    ({"b": (34, 2, 0.7, 0.05)}, "next is b with 34.0 ±2.0.")])
def test_which_is_best(distances, words):
    text = said(fid_validation=(29, 2), aa_test=(0.8, 0.05), others=columns_of(**distances))["best"]
    assert text.endswith(words)


@pytest.mark.parametrize("doubtful", [{"copies": (0.5, 0.1)}, {"pieces": (0.1, 0.1)},
                                      {"aa_test": (0.1, 0.1)}])
def test_the_best_may_be_a_copy(doubtful):
    text = said(fid_validation=(5, 2), **doubtful, others=columns_of(b=(34, 2)))["best"]
    assert text.startswith("a is best, beyond the intervals: FD-EfficientNet 5.0 ±2.0 (but see "
                           "copying), next is b with 34.0 ±2.0.")


@pytest.mark.parametrize("distances, words", [
    ([50, 40, 30], "More steps still helped: FD-EfficientNet 40.0 ±2.0 at step 2,000, 30.0 ±2.0 at "
                   "3,000."),
    ([50, 40, 36], "It is not certain that steps after 2,000 helped: FD-EfficientNet 40.0 ±2.0, at "
                   "step 3,000 36.0 ±2.0."),
    ([50, 40, 35.9], "More steps still helped"),
    ([38, 40, 36], "It is not certain that steps after 1,000 helped"),
    ([30, 40, 50], "It got worse after step 1,000: FD-EfficientNet 30.0 ±2.0, at step 3,000 50.0 "
                   "±2.0."),
    ([40, 30, 34], "It is not certain that steps after 2,000 helped"),
    ([40, 30, 34.1], "It got worse after step 2,000")])
@pytest.mark.parametrize("model, unit", [("fastgan", "step"), ("vae", "epoch")])
def test_whether_more_steps_helped(model, unit, distances, words):
    words = words.replace("step", unit)
    columns = [result(f"x {step}", {**SAMPLES, "fid_validation": (value, 2)}, model=model,
                      step=step, path=f"runs/one/ckpt_{step}.pth")
               for step, value in zip((3000, 2000, 1000), distances[::-1], strict=True)]
    real = result("REAL", PHOTOS, "real")
    assert verdict.verdict([real, *columns], SETTINGS)["steps"].startswith(words)
    assert "steps" not in verdict.verdict([real, columns[0]], SETTINGS)
    apart = [{**column, "path": f"runs/{i}/a.pth"} for i, column in enumerate(columns)]
    assert "steps" not in verdict.verdict([real, *apart], SETTINGS)
    text = verdict.verdict([real, *columns, {**apart[0], "name": "y"}, {
        **apart[0], "name": "z", "step": 9}], SETTINGS)["steps"]
    assert re.match(rf"one: .*\. 0: it is not certain that {unit}s after 9 helped", text)
    unknown = {**columns[0], "name": "best"}  # a published checkpoint without a step in its name
    del unknown["step"]
    assert verdict.verdict([real, *columns, unknown], SETTINGS)["steps"].startswith(words)


def test_what_few_and_very_many_images_do_not_bear():
    few = said(n=23)
    assert few == {"columns": {}, "note": few["note"]} and few["note"].startswith("23 images a set "
                                                                                  "are too few")
    assert said(n=24).keys() == {"quality", "variety", "copying"}
    assert said([1, 2], n=8) == {"copying": "2 of 8 images lie suspiciously near to a training "
                                            "photo (0.1 by chance): sample 1, sample 2."}
    real, column = result("REAL", PHOTOS, "real"), result("a", SAMPLES)
    many = verdict.verdict([{**real, "intervals": {}}, column], {**SETTINGS, "n": 5000})
    assert many["note"] == ("Most rows have no interval with 5,000 images a set; --n 4000 gives a "
                            "verdict.")


def test_markdown():
    words = said(others=columns_of(b=(40, 2)))
    lines = verdict.markdown(words).splitlines()
    assert lines[:4] == ["**Which is best?**", f"- best: {words['best']}", "", "**a**"]
    assert lines[4] == f"- quality: {words['columns']['a']['quality']}" and lines[8] == "**b**"
    note = said(n=8)
    assert verdict.markdown(note) == f"**No verdict**\n- note: {note['note']}"


# The words for real results ------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_words():
    """The words for tests/fixtures/verdicts.json: numbers from metrics.json of real evaluations."""
    evaluations = json.loads((ROOT / "tests/fixtures/verdicts.json").read_text())
    return {name: verdict.verdict(found["columns"], found["settings"])
            for name, found in evaluations.items()}


def leads(words, part):
    return {name: re.split("[:,]", said[part])[0] for name, said in words["columns"].items()}


def test_the_words_for_photos_copies_collages_blur_and_one_image(real_words):
    """The worked example of docs/results.md, and some defects more."""
    words = real_words["worked"]
    assert leads(words, "quality") == {
        **dict.fromkeys(("others", "copies", "mixed"), "No difference from photos is seen"),
        **dict.fromkeys(("kitchens", "collages", "unseen", "blurred", "one"), "Far from photos")}
    assert leads(words, "variety") == {
        **dict.fromkeys(("others", "copies", "mixed"), "As varied as photos"),
        **dict.fromkeys(("collages", "unseen"), "Little of the photos' variety"),
        "kitchens": "Varied",
        "blurred": "Less varied than photos", "one": "Collapsed"}
    assert leads(words, "copying") == {
        **dict.fromkeys(("others", "kitchens", "blurred", "one"), "No sign beyond chance"),
        "copies": "Photos may be copied",
        **dict.fromkeys(("collages", "mixed"), "Parts may be copied"),
        "unseen": "Nearer to validation than to training photos"}
    assert "less than 1% of its power" in words["columns"]["blurred"]["quality"]
    assert "they cover 8% ±14 of the photos" in words["columns"]["kitchens"]["variety"]
    assert re.fullmatch("Too close to call by FD-EfficientNet: others [^,]*, "
                        r"copies [^,]* \(but see copying\), mixed [^,]* \(but see copying\); 5 "
                        "others are worse.", words["best"])


def test_the_words_for_the_four_models(real_words):
    words = real_words["four"]
    assert set(leads(words, "quality").values()) == {"Far from photos"}
    assert set(leads(words, "copying").values()) == {"No sign beyond chance"}
    assert leads(words, "variety") == {
        **dict.fromkeys(("gan 400", "dcgan 150", "vae 120"), "Little variety"),
        "fastgan 4500": "Varied"}
    quality = {name: said["quality"] for name, said in words["columns"].items()}
    assert "too weak, 1.9% ±0.1 of its power" in quality["gan 400"]
    assert "off by a factor of 4.0 on average, up and down; a regular grid of 8 pixels shows" in (
        quality["dcgan 150"])
    assert ("weak, 5.7% ±0.3 of its power in photos; a regular grid of 8 pixels shows, with 4.0 "
            "±0.2 times the power around it.") in quality["vae 120"]
    assert "grid" not in quality["gan 400"] + quality["fastgan 4500"]
    assert words["best"] == ("fastgan 4500 is best, beyond the intervals: FD-EfficientNet 122.9 "
                             "±5.2, next is gan 400 with 195.7 ±2.9.")


def test_the_words_for_steps_of_a_run(real_words):
    words = real_words["steps"]
    assert leads(words, "quality") == {
        "fastgan 400": "Far from photos", "fastgan 1000": "Can be told from photos",
        "fastgan 1400": "Can be told from photos"}
    assert words["columns"]["fastgan 1400"] == {
        "quality": "Can be told from photos: a nearest-neighbour test tells 89% ±3 of images "
        "and photos apart (50% is guessing; validation photos 50% ±6). FD-EfficientNet, their "
        "distance from photos, is 1.6 times validation photos': 28.6 ±1.7 and 17.9 ±1.1. Fine "
        "detail is too weak, 35% ±4 of its power in photos; a regular grid of 8 pixels shows, "
        "with 2.1 ±0.1 times the power around it.",
        "variety": "Little of the photos' variety: they cover 4% ±5 of the photos, "
        "validation photos 74% ±7; they vary as 6.1 ±0.3 images with nothing in common would, "
        "photos as 8.2 ±0.3.",
        "copying": "No sign beyond chance: 8 of 267 images lie suspiciously near to a training "
        "photo (3.6 by chance): sample 136, sample 28, sample 213, sample 84, sample 100, …; "
        "56% ±6 of pieces are more like training than like validation photos (50% by chance); "
        "privacy loss is -0.01 ±0.05 (0 by chance). 15 exact copies (6%) would most likely "
        "have shown, fewer may not."}
    assert words["best"] == ("Too close to call by FD-EfficientNet: fastgan 1400 28.6 ±1.7, "
                             "fastgan 1000 32.1 ±2.0; 1 other is worse.")
    assert words["steps"] == ("It is not certain that steps after 1,000 helped: FD-EfficientNet "
                              "32.1 ±2.0, at step 1,400 28.6 ±1.7.")
