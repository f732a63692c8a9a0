"""The rows of the table: their names, and their numbers from points by hand."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_metrics import gaussian

import metrics
from common import features
from common.rows import GROUPS, numbers, rows


@pytest.mark.parametrize("kind", list(features.KINDS))
def test_rows_are_few_in_three_groups_and_say_what_they_are(kind):
    chosen = rows(kind)
    assert len(chosen) <= 16
    assert [row.group for row in chosen] == sorted((row.group for row in chosen), key=GROUPS.index)
    assert len({row.name for row in chosen}) == len({row.label for row in chosen}) == len(chosen)
    assert all(row.says and re.fullmatch("[a-z0-9_]+", row.name) for row in chosen)


def test_names_follow_the_features():
    names = {kind: [(row.name, row.label) for row in rows(kind)] for kind in features.KINDS}
    assert ("fid_train", "FID train") in names["inception"]
    assert ("kid_validation", "KID validation") in names["inception"]
    for kind, name in (("efficientnet", "EfficientNet"), ("dinov2", "DINOv2")):
        for row in [(f"fd_{kind}_validation", f"FD-{name} validation"),
                    (f"fd_{kind}_infinity_validation", f"FD∞-{name} validation"),
                    (f"kd_{kind}_validation", f"KD-{name} validation")]:
            assert row in names[kind]
        assert not any("id_" in row and row[0] in "fk" for row, _ in names[kind])
    assert any("lpips" in row for row, _ in names["dinov2"])
    assert not any("lpips" in row for row, _ in names["efficientnet"])


def sets(n):
    return [gaussian(n, 8, shift, seed=n + i) for i, shift in enumerate((0, 0, 0.4))]


def test_numbers_are_those_of_the_functions():
    """By views as by features; intervals by the same halves as metrics.interval's."""
    train, validation, fake = sets(200)
    views = metrics.product_views(train, validation, fake)
    values, intervals = numbers(rows("inception"), {"features": views, "embeddings": views,
                                                    "all embeddings": views})
    expected = {
        "fid_train": metrics.frechet_distance(train, fake),
        "fid_validation": metrics.frechet_distance(validation, fake),
        "fid_infinity_validation": metrics.frechet_distance_infinity(validation, fake),
        "kid_validation": metrics.kernel_distance(validation, fake),
        "aa_train": metrics.adversarial_accuracy(train, fake),
        "aa_test": metrics.adversarial_accuracy(validation, fake),
        "privacy_loss": metrics.privacy_loss(train, validation, fake),
        "copies": metrics.suspected_copies(train, validation, fake).double().mean().item(),
        **{name: metrics.precision_recall_density_coverage(train, fake)[name]
           for name in ("precision", "recall") if name in values}}
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert list(values) == [row.name for row in rows("inception") if row.name in values]
    low, high = metrics.interval(metrics.privacy_loss, train, validation, fake, bounds=(-1, 1))
    assert intervals["privacy_loss"] == [low, high]
    low, high = metrics.interval(lambda t, v, f: metrics.frechet_distance(t, f), *views)
    assert intervals["fid_train"] == pytest.approx([low, high], rel=1e-9)
    assert intervals.keys() == values.keys()


def earlier_spaces(n=40):
    """What tests/fixtures/numbers.json was computed from."""
    rng = np.random.RandomState(0)
    points = [np.abs(rng.standard_normal((n, 64))) + shift for shift in (0, 0, 0.1)]
    points[2][:4] = points[0][:4]
    rng = np.random.RandomState(1)
    cells = [rng.standard_normal((n, 16, 24)) for _ in range(3)]
    cells[2][:3] = cells[0][5:8] + 0.3 * rng.standard_normal((3, 16, 24))
    rng = np.random.RandomState(2)
    spectra = [rng.exponential(size=(n, 32, 17)) * scale for scale in (9, 11)]
    points, cells, spectra = ([torch.from_numpy(x.astype(np.float32)) for x in sets]
                              for sets in (points, cells, spectra))
    return {"features": points, "embeddings": points, "all embeddings": points,
            "spectra": spectra, "cells": [torch.nn.functional.normalize(x, dim=2) for x in cells]}


@pytest.mark.parametrize("views", [False, True])
def test_numbers_and_intervals_are_what_they_were_before_there_were_rows(views):
    """Of version 66fd00c, by its lists of neighbours: [number, low, high]."""
    expected = json.loads((ROOT / "tests/fixtures/numbers.json").read_text())
    spaces = earlier_spaces()
    if views:
        train, validation, fake = spaces["cells"]
        matrix = torch.cat([metrics.cell_distances(x, fake) for x in (train, validation)])
        spaces |= {name: metrics.product_views(*spaces[name])
                   for name in ("features", "embeddings", "all embeddings")}
        spaces["cells"] = [metrics.Distances(matrix, torch.arange(40) + first)
                           for first in (0, 40, 0)]
    values, intervals = numbers(rows("inception"), spaces)
    assert values.keys() >= {"fid_train", "kid_validation", "recall", "aa_test", "privacy_loss",
                             "copies", "spectrum_grid", "pieces"}
    for name in expected.keys() & values.keys():
        assert [values[name], *intervals[name]] == pytest.approx(expected[name], abs=1e-6), name
    train, validation, fake = earlier_spaces()["features"]
    found = metrics.precision_recall_density_coverage(train, fake)
    assert found == pytest.approx({name: expected[name][0] for name in found}, abs=1e-9)
    assert metrics.kernel_distance(train, fake) == pytest.approx(expected["kid_train"][0], abs=1e-6)
    assert metrics.frechet_distance_infinity(validation, fake) == pytest.approx(
        expected["fid_infinity_validation"][0], abs=1e-6)


def test_real_is_of_the_photos_alone():
    train, validation, _ = sets(60)
    spaces = {name: (train, validation) for name in ("features", "embeddings", "all embeddings")}
    values, _ = numbers(rows("inception"), spaces, real=True)
    assert values["fid_validation"] == metrics.frechet_distance(train, validation)
    assert values["aa_train"] == metrics.adversarial_accuracy(train, validation)
    assert values["effective_images"] == metrics.effective_number(validation)
    assert not values.keys() & {"fid_train", "aa_test", "privacy_loss", "copies"}


@pytest.mark.parametrize("n, missing, without_interval", [
    (199, {"fid_infinity_validation"}, set()),
    (6, {"fid_infinity_validation"}, {"precision", "recall"}),
    (3, {"fid_infinity_validation", "precision", "recall"},
     {"fid_train", "aa_train", "copies"})])
def test_what_needs_more_points_is_left_out(n, missing, without_interval):
    spaces = {"features": sets(n), "embeddings": sets(n), "all embeddings": sets(n)}
    values, intervals = numbers(rows("inception"), spaces)
    assert not values.keys() & missing and not intervals.keys() & without_interval
    assert values.keys() >= {"fid_train", "aa_train"}
    assert n == 3 or intervals.keys() >= {"fid_train", "aa_train"}


def test_many_points_have_no_intervals(monkeypatch):
    monkeypatch.setattr(metrics, "VIEWED", 100)
    spaces = {"embeddings": sets(40), "features": [x[:30] for x in sets(40)]}
    values, intervals = numbers(rows("inception"), spaces)
    assert "aa_train" in values and "aa_train" not in intervals and "fid_train" in intervals
    assert torch.isfinite(torch.tensor(list(values.values()))).all()
