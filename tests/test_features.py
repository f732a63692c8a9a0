"""common/features.py against the reference implementations, on seeded random weights."""

import hashlib
import warnings
from functools import partial
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_metrics import global_random_state_is_untouched  # noqa: F401 (also for the tests here)

import metrics
from common import features


def drawn(n, size=64, seed=0):
    """Smooth uint8 images of random colours: unlike noise, they differ in what they show."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).byte()


@pytest.fixture(scope="module")
def inception():
    return features.inception_network("random")


@pytest.fixture(scope="module")
def resnet():
    return features.resnet50_network("random")


# Networks


def test_inception_features_equal_those_of_pytorch_fid(inception, monkeypatch):
    reference = pytest.importorskip("pytorch_fid.inception")
    state = features._network("inception", features._fid_inception, "random").state_dict()
    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: state)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference.InceptionV3([3]).eval()
    images = drawn(6, 200)
    with torch.no_grad():
        expected = theirs(images / 255)[0][:, :, 0, 0]
    ours = features.features(images, inception)
    assert ours.shape == (6, 2048) and ours.dtype == torch.float32
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().mean())


def test_resnet_embedding_is_torchvisions(resnet):
    net = features._network("resnet50", torchvision.models.resnet50, "random")
    net.fc = torch.nn.Identity()
    images = drawn(3, 224)
    with torch.no_grad():
        normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = net(normalize(images / 255))
    ours = features.features(images, resnet)
    assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_pieces_are_what_torchvisions_second_stage_sees_of_14_by_14_cells():
    net = features._network("resnet50", torchvision.models.resnet50, "random")
    images, maps = drawn(3, 224), []
    net.layer2.register_forward_hook(lambda *call: maps.append(call[-1]))
    with torch.no_grad():
        normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        net(normalize(images / 255))
    ours = features.features(images, features.pieces_network("random"))
    assert ours.shape == (3, features.CELLS**2, 128)
    torch.testing.assert_close(ours.norm(dim=2), torch.ones(3, 196))
    blocks = maps[0].view(3, 512, 14, 2, 14, 2).mean((3, 5))  # image, channel, row, column
    cells = torch.stack([blocks[1, :, row, column] for row in range(14) for column in range(14)])
    exact = metrics.pairwise_cosine(cells, cells)
    nearly, apart = metrics.pairwise_cosine(ours[1], ours[1]), ~torch.eye(196, dtype=torch.bool)
    change = nearly[apart] / exact[apart] - 1  # by the projection: sqrt(2 / 128) in theory
    assert change.mean().abs() < 0.06 and 0.06 < change.std() < 0.25
    moved = images.roll(32, 3)  # by two cells
    inner = features.features(moved, features.pieces_network("random")).view(3, 14, 14, 128)
    near = ours.view(3, 14, 14, 128)[:, 4:10, 4:8] * inner[:, 4:10, 6:10]
    assert (1 - near.sum(3)).median() < 0.2 * nearly.median()


def timm_vit(side=37, width=64):
    """timm's DINOv2 architecture, small, with random weights of every kind."""
    timm = pytest.importorskip("timm.models.vision_transformer")
    with torch.random.fork_rng(devices=[]):
        net = timm.VisionTransformer(img_size=14 * side, patch_size=14, embed_dim=width, depth=3,
                                     num_heads=4, init_values=1.0, num_classes=0).eval()
        for value in net.parameters():
            torch.nn.init.normal_(value, std=0.3 if value.ndim < 2 else value.shape[-1] ** -0.5)
    return net.requires_grad_(False)


def test_dinov2_equals_timms_at_its_native_resolution():
    theirs = timm_vit()
    with torch.device("meta"):
        ours = features._vision_transformer(37, 64, 3, 4).eval()
    ours.load_state_dict(features._from_dinov2(theirs.state_dict(), 37), assign=True)
    images = torch.randn(2, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0,
                                   atol=1e-4 * expected.abs().mean().item())


def test_dinov2_of_a_file_resamples_its_positions(tmp_path, monkeypatch):
    """From 37 x 37 to 16 x 16 by cubic convolution (Keys 1981, a = -0.75) at a scale of 16.1 / 37,
    and to 224 x 224 pixels as clean-fid resizes; a file of half precision is loaded in single."""
    monkeypatch.setattr(features, "_vision_transformer", partial(
        features._vision_transformer, width=64, depth=3, heads=4))
    theirs = timm_vit()
    state = {name: value.half() for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: value.float() for name, value in state.items()})
    torch.save({**state, "mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    network = features.dinov2_network(tmp_path / "dinov2.pth")
    for wrong in ({**state, "register_tokens": torch.zeros(1, 4, 64)}, {"pos_embed": torch.ones(5)},
                  {**state, "blocks.0.ls1.gamma": torch.tensor(1.0)}):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(features.WeightsError, match="does not hold the weights of dinov2"):
            features.dinov2_network(tmp_path / "wrong.pth")

    def weights(i):  # of the 37 positions along a side, for the new one i
        at = (i + 0.5) * 37 / 16.1 - 0.5
        row = np.zeros(37)
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            x = abs(at - j)
            row[min(max(j, 0), 36)] += (1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else
                                        -0.75 * (x**3 - 5 * x**2 + 8 * x - 4))
        return row

    matrix = np.stack([weights(i) for i in range(16)])
    grid = theirs.pos_embed[0, 1:].view(37, 37, 64).double().numpy()
    grid = np.einsum("ai,bj,ijc->abc", matrix, matrix, grid).reshape(256, 64)
    positions = network.net.encoder.pos_embedding
    assert positions.dtype == torch.float32 and positions.shape == (1, 257, 64)
    np.testing.assert_allclose(positions[0, 1:], grid, atol=1e-5)
    assert torch.equal(positions[0, 0], theirs.pos_embed[0, 0])

    cleanfid = pytest.importorskip("cleanfid.resize")
    resize = cleanfid.make_resizer("PIL", False, "bicubic", (224, 224))
    image = drawn(1, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.from_numpy(resize(image[0].permute(1, 2, 0).numpy())).permute(2, 0, 1)
    small = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(
        small / 255)
    with torch.no_grad():
        torch.testing.assert_close(features.features(image, network), network.net(small[None]),
                                   rtol=0, atol=1e-2)


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (400, 333)])
def test_clean_resize_equals_clean_fid(size):
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = features._prepare_clean_fid(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (resize(image) - 128) / 128
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_features_of_an_image_do_not_depend_on_its_batch(inception, resnet):
    images = drawn(7, 96)
    for network in (inception, resnet):
        together = features.features(images.numpy(), network, batch_size=4)
        alone = features.features(images, network, batch_size=1)
        assert (together - alone).norm(dim=1).max() < 1e-5 * alone.norm(dim=1).min()


def test_random_weights_are_the_same_each_time_and_tell_images_apart(resnet):
    again = features.resnet50_network("random").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in resnet.state_dict().items())
    for name, build, total in (("inception", features._fid_inception, 726221),
                               ("resnet50", torchvision.models.resnet50, 884112)):
        # In every version: cached features and published tables are made with them.
        state = features._network(name, build, "random").state_dict()
        assert sum(value.double().abs().sum() for value in state.values()) == pytest.approx(
            total, abs=5)
    x, y = (features.features(drawn(12, 96, seed), resnet) for seed in (1, 2))
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)
    far = metrics.frechet_distance(x, features.features(noise, resnet))
    assert metrics.frechet_distance(x, y) < far / 2
    assert metrics.pairwise_cosine(x, y).min() > 1e-3


@pytest.mark.parametrize("images", [
    np.zeros((2, 3, 64, 64)), np.zeros((2, 64, 64, 3), np.uint8), np.zeros((0, 3, 9, 9), np.uint8)])
def test_images_that_are_none(images, resnet):
    with pytest.raises(ValueError, match="uint8"):
        features.features(images, resnet)


# Weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache and a 'release' of SqueezeNet weights at a file:// URL."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with torch.random.fork_rng(devices=[]):
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "release")
    digest = hashlib.sha256((tmp_path / "release").read_bytes()).hexdigest()
    release = (tmp_path / "release").rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setitem(features.WEIGHTS, "squeeze", release.as_uri())
    return release, tmp_path / "home/hub/checkpoints" / release.name


def test_pretrained_weights_are_downloaded_cached_and_verified(hub):
    release, cached = hub
    network = features.lpips_network("squeeze")
    expected = torch.load(release, weights_only=True)["features.0.weight"]
    assert torch.equal(network.net.slice1[0].weight, expected)
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    content = bytearray(cached.read_bytes())
    release.unlink()
    features.lpips_network("squeeze")  # needs the cache alone
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(features.WeightsError, match="damaged") as error:
        features.lpips_network("squeeze")
    assert str(cached) in str(error.value)
    cached.unlink()  # a download with another hash is refused
    release.write_bytes(content)
    with pytest.raises(features.WeightsError, match="hash"):
        features.lpips_network("squeeze")
    assert not cached.exists()


@pytest.mark.parametrize("make", ["inception", "resnet50", "dinov2", "alex", "vgg", "squeeze"])
def test_without_network_and_cache_the_error_says_what_to_do(make, hub, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    build = {name: getattr(features, f"{name}_network")
             for name in ("inception", "resnet50", "dinov2")}
    with pytest.raises(features.WeightsError) as error:
        build.get(make, partial(features.lpips_network, make))("pretrained")
    message, url = str(error.value), features.WEIGHTS[make]
    assert url in message and str(hub[1].parent / url.rsplit("/", 1)[1]) in message
    assert "--weights random" in message and "\n" not in message


def test_weights_from_a_path(tmp_path, hub, resnet):
    images = drawn(2, 96)
    net = features._network("resnet50", torchvision.models.resnet50, "random")
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    ours = features.features(images, features.resnet50_network(tmp_path / "resnet.pth"))
    assert torch.equal(ours, features.features(images, resnet))
    features.lpips_network("squeeze", hub[0])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "empty.pth", "list.pth", "absent.pth", "resnet.pth"):
        for make in (features.inception_network, features.dinov2_network,
                     partial(features.lpips_network, "squeeze")):
            with pytest.raises(features.WeightsError, match=name) as error:
                make(str(tmp_path / name))
            assert "\n" not in str(error.value)


# LPIPS


@pytest.mark.parametrize("net, size", [
    ("alex", 64), ("alex", 160), ("alex", 512), ("squeeze", 96), ("vgg", 64)])
def test_pairwise_lpips_equals_the_module_pair_by_pair(net, size):
    network = features.lpips_network(net, "random")
    x, y = drawn(3, size), drawn(4, size, seed=1)
    y[0] = x[1]
    with torch.inference_mode():
        expected = torch.stack([
            torch.cat([network(a[None] / 127.5 - 1, b[None] / 127.5 - 1).flatten() for b in y])
            for a in x])
    ours = features.pairwise_lpips(x, y, network)
    assert expected.max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours[1, 0] == 0 and ours.dtype == torch.float32
    assert (features.pairwise_lpips(x, x, network).diagonal() == 0).all()


def test_lpips_features_are_points_computed_once(monkeypatch):
    x, y, alex = drawn(7), drawn(5, seed=1), features.lpips_network("alex", "random")
    expected, close = features.pairwise_lpips(x, y, alex), partial(
        torch.testing.assert_close, rtol=0, atol=1e-6)
    points = features.lpips_features(iter(x.split([3, 4])), alex, total=7)
    with monkeypatch.context() as patch:
        patch.setattr(features, "lpips_features", None)  # no forward pass from here on
        assert len(points) == 7 and len(points[2:4]) == 2
        rows = [4, 0, 2]
        among = features.pairwise_lpips(points[rows], points[1:], alex)
        assert among.shape == (3, 6) and among[2, 1] == 0
    close(among, features.pairwise_lpips(x[rows], x[1:], alex))
    close(features.pairwise_lpips(points[rows], y, alex), expected[rows])
    with pytest.raises(ValueError, match="one size"):
        features.pairwise_lpips(points, drawn(2, 96), alex)
    for batches, total in (([x], 6), ([x], 8), ([x, drawn(2, 96)], 9)):
        with pytest.raises(ValueError, match="LPIPS features of"):
            features.lpips_features(batches, alex, total=total)


# Whole sets


def test_a_cache_is_whole_and_of_its_name_or_none(tmp_path, capsys):
    value = {"a": [torch.arange(5000), (torch.ones(2), torch.zeros(2))]}
    path, other = (features.cache_path(tmp_path / "new", "resnet", [1, key]) for key in "ab")
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


def test_one_pass_gives_the_same_embeddings_and_pieces_as_two(tmp_path):
    images = drawn(5, 96)

    def found(*calls):
        networks = features.FeatureNetworks("random", "cpu")
        whole = features.ImageSet("set", "key", 5, lambda rows: images[rows].split(3),
                                  tmp_path / str(len(calls)))
        for names in calls:
            whole.load(names, networks)
        again = features.ImageSet("set", "key", 5, None, whole.cache)
        again.load(["resnet"], networks)  # from the cache
        assert torch.equal(again.features["resnet"], whole.features["resnet"])
        return whole.features

    together, apart = found(["resnet", "pieces"]), found(["resnet"], ["pieces"])
    assert together.keys() == apart.keys() and together["pieces"].shape == (5, 196, 128)
    for name, value in together.items():
        torch.testing.assert_close(value, apart[name], rtol=1e-6, atol=1e-6)
    embeddings = next((tmp_path / "1").glob("resnet_*.pt"))
    assert embeddings.stat().st_size < 2 * 5 * 2048 * 4  # without the pieces


def test_a_subset_of_an_image_set(tmp_path):
    images = drawn(6)
    whole = features.ImageSet("set", "key", 6, lambda rows: [images[rows]], tmp_path)
    assert whole.subset(torch.arange(6)) is whole
    some = whole.subset(torch.tensor([1, 4]))
    assert torch.equal(next(iter(some.batches(torch.tensor([1])))), images[[4]])
    assert len({whole.key, some.key, whole.subset(torch.tensor([1, 5])).key}) == 3
