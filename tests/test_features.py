"""Sets of images to features: each image once through each network, from the cache after that.

What is tested are the sets, so quick networks stand in for the large ones.
"""

import functools

import numpy as np
import pytest
import torch
from drawn import smooth

import metrics
from common import features, perceptual, weights

pytestmark = pytest.mark.usefixtures("random_state_untouched")
CPU = torch.device("cpu")
TRAIN, VALIDATION, SAMPLES = 9, 8, 6  # images in the three sets; ROWS of each are compared
ROWS, FEW = 6, [0, 2, 3, 5]


@pytest.fixture(scope="module")
def stand_ins():
    """{name in weights.py: a network}: EfficientNet for ResNet-50, a random one for Inception."""
    embedding = weights.efficientnet_lite2_network()
    other = weights.efficientnet_lite2_network("random")
    return {"efficientnet_lite2_network": embedding, "resnet50_network": embedding,
            "inception_network": other, "dinov2_network": other,
            "lpips_network": weights.lpips_network("alex", "random")}


@pytest.fixture(autouse=True)
def asked(monkeypatch, stand_ins):
    """The (name, arguments) with which weights.py was asked for networks."""
    calls = []

    def give(name, *arguments, **options):
        calls.append((name, arguments, options))
        return stand_ins[name]

    for name in stand_ins:
        monkeypatch.setattr(weights, name, functools.partial(give, name))
    return calls


def image_set(name, images, cache, rows=None):
    """An ImageSet in batches of 3 that counts the images it gave."""
    def batches(rows):
        whole.given += len(rows)
        return images[rows].split(3)

    whole = features.ImageSet(name, f"key of {name}", len(images), batches, cache)
    whole.given = 0
    few = torch.tensor(FEW)
    return whole if rows is None else whole.choose(rows, few)


@pytest.fixture(scope="module")
def images():
    train, validation = (smooth(n, seed=i) for i, n in enumerate((TRAIN, VALIDATION)))
    samples = torch.cat([smooth(SAMPLES - 2, seed=2), train[[1, 7]]])  # two copies
    return {"train": train, "validation": validation, "samples": samples}


CHOSEN = {"train": torch.tensor([0, 1, 3, 4, 7, 8]), "validation": torch.tensor([0, 2, 3, 5, 6, 7]),
          "samples": torch.arange(SAMPLES)}


@pytest.fixture
def sets(images, tmp_path):
    return [image_set(name, images[name], tmp_path / name, rows) for name, rows in CHOSEN.items()]


def same_sets(sets):
    """The sets as another process has them: without features, and without their images."""
    again = [features.ImageSet(x.name, x.key, x.n, None, x.cache) for x in sets]
    return [x.choose(CHOSEN[x.name], torch.tensor(FEW)) for x in again]


@torch.inference_mode()
def cells_of(images, network):
    return network.with_cells(images)[1]


# Images to features


@pytest.mark.parametrize("images", [
    np.zeros((2, 3, 64, 64)), np.zeros((2, 64, 64, 3), np.uint8), np.zeros((0, 3, 9, 9), np.uint8)])
def test_images_that_are_none(images, stand_ins):
    with pytest.raises(ValueError, match="uint8"):
        features.features(images, stand_ins["efficientnet_lite2_network"])


def test_resized():
    images = smooth(2, 64)
    assert features.resized(images, 64) is images
    small = features.resized(images, 16)
    means = images.float().unflatten(2, (16, 4)).unflatten(4, (16, 4)).mean((3, 5))
    assert small.dtype == torch.uint8 and (small.float() - means).abs().max() < 10


# Kept on disk


def test_a_cache_is_whole_and_of_its_name_or_none(tmp_path, capsys):
    value = {"a": [torch.arange(5000), (torch.ones(2), torch.zeros(2))]}
    path, other = (features.cache_path(tmp_path / "new", "embeddings", [1, key]) for key in "ab")
    assert path != other and features.read_cache(path) is None
    features.write_cache(path, value)
    read = features.read_cache(path)
    assert torch.equal(read["a"][0], value["a"][0]) and torch.equal(read["a"][1][0], torch.ones(2))
    content = bytearray(path.read_bytes())
    other.write_bytes(content)  # under another's name
    assert features.read_cache(other) is None
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:1000]):
        path.write_bytes(damaged)
        assert features.read_cache(path) is None
    features.write_cache(path / "below" / "a.pt", value)
    assert "warning: " in capsys.readouterr().err


# Networks


@pytest.mark.parametrize("kind, names, first, second", [
    ("efficientnet", {"embeddings", "cells", "spectra"}, None, "efficientnet_lite2"),
    ("inception", {"features", "embeddings", "cells", "spectra"}, "inception", "resnet50"),
    ("dinov2", {"features", "embeddings", "cells", "spectra"}, "dinov2", "resnet50")])
def test_networks_of_a_kind_are_made_when_needed_and_once(kind, names, first, second, asked):
    networks = features.FeatureNetworks(kind, CPU, "clean")
    assert networks.names == names and networks.lpips == (kind != "efficientnet") and not asked
    assert networks["embeddings"] is networks["embeddings"]
    assert asked == [(f"{second}_network", (), {"device": CPU})]
    if first:
        assert networks["features"] is networks["features"]
        options = {"resize": "clean"} if first == "inception" else {}
        assert asked[1:] == [(f"{first}_network", (), {"device": CPU, **options})]
        assert networks["lpips"] is networks["lpips"]
        assert asked[2:] == [("lpips_network", ("alex",), {"device": CPU})]


def test_keys_tell_apart_what_is_of_other_networks():
    plain = features.FeatureNetworks("inception", CPU).keys
    others = {"efficientnet": features.FeatureNetworks("efficientnet", CPU),
              "dinov2": features.FeatureNetworks("dinov2", CPU),
              "clean": features.FeatureNetworks("inception", CPU, "clean"),
              "smaller": features.FeatureNetworks("inception", CPU, lpips_size=64)}
    same = {kind: {name for name in networks.names | {"lpips"} if networks.keys[name] == plain[name]
                   } for kind, networks in others.items()}
    assert same == {"efficientnet": {"spectra", "lpips"},
                    "dinov2": {"embeddings", "cells", "spectra", "lpips"},
                    "clean": {"embeddings", "cells", "spectra", "lpips"},
                    "smaller": {"features", "embeddings", "cells", "spectra"}}


@pytest.mark.parametrize("kind, says", [
    ("inception", "no weights, or choose --features efficientnet, which needs no download"),
    ("efficientnet", "no weights")])
def test_weights_that_cant_be_had_end_the_program_by_one_line(kind, says, monkeypatch, capsys):
    def missing(**_):
        raise weights.WeightsError("no weights")

    for name in ("inception_network", "efficientnet_lite2_network"):
        monkeypatch.setattr(weights, name, missing)
    networks = features.FeatureNetworks(kind, CPU, lpips_size=64)
    with pytest.raises(SystemExit) as stop:
        networks[min(networks.names - {"cells", "embeddings"}) if kind == "inception" else
                 "embeddings"]
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(says)


# Whole sets


def test_each_image_goes_once_through_each_network(images, tmp_path, stand_ins):
    """In one pass over the images; a second time none, from memory or from disk; what is missing
    on disk alone is computed anew."""
    passed = {}
    hooks = [stand_ins[f"{name}_network"].register_forward_hook(
        lambda *call, name=name: passed.update({name: passed.get(name, 0) + len(call[2])}))
        for name in ("resnet50", "inception")]
    body = stand_ins["resnet50_network"].net["body"].register_forward_hook(
        lambda *call: passed.update(body=passed.get("body", 0) + len(call[2])))
    networks = features.FeatureNetworks("inception", CPU, lpips_size=64)
    whole = image_set("train", images["train"], tmp_path)
    whole.load(networks.names, networks)
    # Embeddings and cells are made of one pass.
    assert whole.given == TRAIN and passed == {"inception": TRAIN, "body": TRAIN}
    whole.load(networks.names, networks)
    again = features.ImageSet("train", whole.key, TRAIN, None, tmp_path)
    again.load(networks.names, networks)
    assert whole.given == TRAIN and passed["body"] == TRAIN
    for hook in (*hooks, body):
        hook.remove()
    assert again.features.keys() == whole.features.keys() == networks.names
    expected = {"features": features.features(images["train"], networks["features"]),
                "embeddings": features.features(images["train"], networks["embeddings"]),
                "cells": cells_of(images["train"], networks["embeddings"]),
                "spectra": features.features(images["train"], features.Spectrum())}
    for name, value in expected.items():
        assert torch.equal(again.features[name], whole.features[name])
        torch.testing.assert_close(whole.features[name], value, rtol=1e-5, atol=1e-5)

    for name in ("cells", "embeddings"):  # one without the other
        other = image_set("train", images["train"], tmp_path)
        for path in tmp_path.glob(f"{name}_*.pt"):
            path.unlink()
        other.load(networks.names, networks)
        assert other.given == TRAIN
        torch.testing.assert_close(other.features[name], expected[name], rtol=1e-5, atol=1e-5)
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_cells_and_spectra_are_of_few(images, tmp_path):
    networks = features.FeatureNetworks("efficientnet", CPU)
    whole = image_set("train", images["train"], tmp_path, CHOSEN["train"])
    assert whole.few.tolist() == [0, 3, 4, 8]
    whole.load(networks.names, networks)
    few = images["train"][whole.few]
    torch.testing.assert_close(whole.features["cells"], cells_of(few, networks["embeddings"]),
                               rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.features["spectra"],
                               features.features(few, features.Spectrum()), rtol=1e-3, atol=1e-3)
    assert whole.features["embeddings"].shape == (TRAIN, 1280)
    other = image_set("train", images["train"], tmp_path).choose(
        CHOSEN["train"], torch.tensor([4]))  # in the last batch alone
    other.load(networks.names, networks)  # the first's cells and spectra are not these
    torch.testing.assert_close(other.features["cells"],
                               cells_of(images["train"][[7]], networks["embeddings"]),
                               rtol=0, atol=1e-5)
    assert len(other.features["spectra"]) == 1
    assert len(list(tmp_path.glob("embeddings_*.pt"))) == 1


# What is compared


def check_space(space, points, functions):
    """The numbers of a space are those of the same points as plain features."""
    for function in functions:
        assert function(*space) == pytest.approx(function(*points), rel=1e-6, abs=1e-9)


def aa_train(train, validation, samples):
    return metrics.adversarial_accuracy(train, samples)


def distances_to_train(train, validation, samples):
    return metrics.frechet_distance(train, samples), metrics.kernel_distance(train, samples)


def copies(*sets):
    return metrics.suspected_copies(*sets).tolist()


@pytest.mark.parametrize("kind", ["efficientnet", "inception"])
def test_spaces_are_views_of_what_is_compared(kind, sets, images, stand_ins):
    networks = features.FeatureNetworks(kind, CPU, lpips_size=64)
    spaces = features.spaces(networks, *sets)
    assert [x.given for x in sets] == [TRAIN, VALIDATION, SAMPLES]  # once through all networks
    assert spaces.keys() == {"features", "embeddings", "all embeddings", "cells", "spectra",
                             *(["lpips", "all lpips"] if kind == "inception" else [])}
    assert all(isinstance(x, metrics.View) for name, space in spaces.items() if name != "spectra"
               for x in space)
    assert {name: [len(x) for x in space] for name, space in spaces.items()} == {
        **dict.fromkeys(spaces, [ROWS] * 3), "cells": [len(FEW)] * 3, "spectra": [len(FEW)] * 2,
        **{name: [TRAIN, VALIDATION, SAMPLES] for name in spaces if "all" in name}}
    embeddings = [features.features(x, stand_ins["resnet50_network"]) for x in images.values()]
    compared = [x[CHOSEN[name]] for x, name in zip(embeddings, CHOSEN, strict=True)]
    check_space(spaces["embeddings"], compared, [aa_train, metrics.privacy_loss])
    check_space(spaces["all embeddings"], embeddings, [copies])
    assert copies(*spaces["all embeddings"])[-2:] == [True, True]
    others = compared if kind == "efficientnet" else [
        features.features(x, stand_ins["inception_network"])[CHOSEN[name]]
        for name, x in images.items()]
    check_space(spaces["features"], others, [distances_to_train])
    if kind == "inception":
        lpips = [perceptual.lpips_points([x], stand_ins["lpips_network"], len(x))
                 for x in images.values()]
        check_space(spaces["all lpips"], lpips, [copies])
        check_space(spaces["lpips"], [x[CHOSEN[name]] for x, name in zip(lpips, CHOSEN, strict=True)
                                      ], [aa_train, metrics.privacy_loss])
    cells = [cells_of(images[x.name][x.few], stand_ins["resnet50_network"]) for x in sets]
    assert metrics.pieces(*spaces["cells"]) == metrics.pieces(*cells)
    powers = [features.features(images[x.name][x.few], features.Spectrum()) for x in sets]
    for found, expected in zip(spaces["spectra"], powers[::2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_spaces_of_real_are_of_the_photos_alone(sets):
    networks = features.FeatureNetworks("inception", CPU, lpips_size=64)
    spaces = features.spaces(networks, *sets[:2])
    assert spaces.keys() == {"features", "embeddings", "all embeddings", "lpips", "all lpips",
                             "spectra"}
    assert {len(space) for space in spaces.values()} == {2}
    assert spaces["spectra"][1] is sets[1].features["spectra"]
    tiny = [image_set(x.name, smooth(x.n, 12), x.cache / "tiny", x.rows) for x in sets]
    assert "spectra" not in features.spaces(features.FeatureNetworks("efficientnet", CPU), *tiny)


def test_lpips_distances_are_kept_on_disk(sets, images, stand_ins, monkeypatch):
    """Of photos those that REAL computed before; with no pass over images a second time."""
    networks = features.FeatureNetworks("inception", CPU, lpips_size=64)
    computed, pairs = [], perceptual.pairwise_lpips
    monkeypatch.setattr(perceptual, "pairwise_lpips", lambda x, y: (
        computed.append((len(x), len(y))), pairs(x, y))[1])
    features.lpips_views(networks, *sets[:2])
    assert computed == [(TRAIN, TRAIN), (VALIDATION, TRAIN), (VALIDATION, VALIDATION)]
    computed.clear()
    views = features.lpips_views(networks, *sets)
    assert computed == [(SAMPLES, TRAIN), (SAMPLES, VALIDATION), (SAMPLES, SAMPLES)]
    assert [x.given for x in sets] == [TRAIN, VALIDATION, SAMPLES]
    computed.clear()
    again = features.lpips_views(networks, *same_sets(sets))
    assert not computed and torch.equal(again[0].matrix, views[0].matrix)
    points = perceptual.lpips_points(images.values(), stand_ins["lpips_network"],
                                     TRAIN + VALIDATION + SAMPLES)
    torch.testing.assert_close(views[0].matrix, pairs(points, points), rtol=0, atol=1e-5)
    assert torch.cat([x.rows for x in views]).tolist() == list(range(len(points)))
    assert [len(x) for x in views] == [TRAIN, VALIDATION, SAMPLES]


def test_images_are_shrunk_for_lpips(sets, images, stand_ins):
    networks = features.FeatureNetworks("inception", CPU, lpips_size=48)
    views = features.lpips_views(networks, *sets[:2])
    points = [perceptual.lpips_points([features.resized(images[name], 48)],
                                      stand_ins["lpips_network"], len(images[name]))
              for name in ("train", "validation")]
    torch.testing.assert_close(views[0].between(views[1]), perceptual.pairwise_lpips(*points),
                               rtol=0, atol=1e-5)


def test_distances_of_cells_are_kept_on_disk(sets, monkeypatch):
    """Those to the nearest photos of each side; farther ones are infinitely far."""
    monkeypatch.setattr(features, "NEAREST", 2)
    networks = features.FeatureNetworks("efficientnet", CPU)
    for x in sets:
        x.load(networks.names, networks)
    train, validation, samples = (x.features["cells"] for x in sets)
    views = features.cell_views(networks, *sets)
    for view, photos in zip(views, (train, validation), strict=False):
        found, expected = view.between(views[2]), metrics.cell_distances(photos, samples)
        assert found.shape == expected.shape == (len(FEW), len(FEW), 64)
        assert (found.isfinite().sum(0) == 2).all()
        nearest = expected <= expected.kthvalue(2, 0).values
        assert torch.equal(found, expected.masked_fill(~nearest, torch.inf))
        few = view[[3, 1]].between(views[2][[0, 2, 3]])
        assert torch.equal(few, found[[3, 1]][:, [0, 2, 3]])
    assert metrics.pieces(*views) == metrics.pieces(train, validation, samples)
    monkeypatch.setattr(metrics, "cell_distances", None)
    again = features.cell_views(networks, *same_sets(sets))
    assert torch.equal(again[0].matrix, views[0].matrix)


def test_more_points_than_are_viewed(sets, images, stand_ins, monkeypatch):
    monkeypatch.setattr(metrics, "VIEWED", 10)
    networks = features.FeatureNetworks("inception", CPU, lpips_size=64)
    spaces = features.spaces(networks, *sets)
    assert not any(isinstance(x, metrics.View) for name, space in spaces.items()
                   for x in space if name != "cells")
    assert all(isinstance(x, perceptual.LpipsPoints) for x in spaces["all lpips"])
    assert not list(sets[2].cache.glob("lpips_*"))
    many = {name: aa_train(*spaces[name]) for name in ("embeddings", "lpips", "features")}
    found = {name: copies(*spaces[name]) for name in ("all embeddings", "all lpips")}
    monkeypatch.undo()
    for name in stand_ins:
        monkeypatch.setattr(weights, name, lambda *_, name=name, **__: stand_ins[name])
    views = features.spaces(networks, *sets)
    assert isinstance(views["all lpips"][0], metrics.Distances)
    assert many == {name: aa_train(*views[name]) for name in many}
    assert found == {name: copies(*views[name]) for name in found}


def test_principal_components_equal_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, y = torch.randn(49, 12, generator=torch.Generator().manual_seed(0)).split([40, 9])
    x = x * torch.linspace(3, 1, 12)
    pca = decomposition.PCA(2).fit(x.double().numpy())
    ours = features.principal_components(x)
    np.testing.assert_allclose(ours.shares, pca.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(ours.project(y).abs(), np.abs(pca.transform(y.double().numpy())),
                               rtol=1e-6)
