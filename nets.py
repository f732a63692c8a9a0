"""The networks, as their papers name them; nothing here knows of files, devices or losses.

    images = DCGANGenerator(image_size=64)(torch.randn(8, 100))
    reconstruction, mean, log_variance = VAE(image_size=256)(torch.rand(8, 3, 256, 256))
    image, image_128 = FastGANGenerator(image_size=256)(torch.randn(8, 256))
    logits, maps = FastGANDiscriminator(image_size=256)(image, image_128)
    logits = ProjectedDiscriminator()(Levels(EfficientNetLite())(image), image)

Every generator is made by (image_size, z_dim, ...), has both as attributes, and turns latents
(n, z_dim), N(0, 1), into images (n, 3, image_size, image_size) in [-1, 1].

GAN is Goodfellow et al. 2014 (arXiv 1406.2661); DCGAN Radford et al. 2015 (arXiv 1511.06434); VAE
Kingma and Welling 2013 (arXiv 1312.6114), convolutional. FastGAN is Liu et al., "Towards Faster and
Stabilized GAN Training for High-fidelity Few-shot Image Synthesis", 2021 (arXiv 2101.04775); its
parameter names and their order are those of the published code, so that its checkpoints, the
optimisers' included, load as they are. The projected discriminator is of Sauer et al., "Projected
GANs Converge Faster", 2021 (arXiv 2111.01007); it sees through EfficientNet-Lite (Tan and Le 2019).
"""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm with its scale drawn from N(1, 0.02), as the GANs here start."""

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.normal_(self.weight, 1.0, 0.02)


# GAN: linear layers alone --------------------------------------------------------------------


class GANGenerator(nn.Module):
    """Latents (n, z_dim) -> images (n, 3, image_size, image_size), of any size."""

    def __init__(self, image_size=28, z_dim=50):
        super().__init__()
        self.image_size, self.z_dim = image_size, z_dim
        layers, widths = [], (z_dim, 128, 256, 512)
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width, bias=False),
                       nn.BatchNorm1d(next_width, eps=0.8), nn.LeakyReLU(0.25)]
        last = nn.Linear(widths[-1], 3 * image_size**2, bias=False)
        self.main = nn.Sequential(*layers, last, nn.Tanh())

    def forward(self, z):
        return self.main(z).view(-1, 3, self.image_size, self.image_size)


class GANDiscriminator(nn.Module):
    """Images (n, 3, image_size, image_size) -> logits (n,)."""

    def __init__(self, image_size=28):
        super().__init__()
        layers, widths = [nn.Flatten()], (3 * image_size**2, 1024, 512, 256)
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.LeakyReLU(0.25)]
        self.main = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, images):
        return self.main(images).flatten()


# DCGAN: strided convolutions -----------------------------------------------------------------


def dcgan_widths(image_size, features):
    """Channels of the maps from image_size / 2 down to 4, at most 16 · features.

    Raises ValueError for an image_size that is no power of 2 from 8 on.
    """
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f"DCGAN makes images of 8, 16, 32, 64, ... pixels, not {image_size}")
    return [features * min(2**k, 16) for k in range(image_size.bit_length() - 3)]


def dcgan_weights(module):
    """The paper's initial weights: convolutions N(0, 0.02); batch norms have theirs already."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)


class DCGANGenerator(nn.Module):
    """Latents (n, z_dim) -> images (n, 3, image_size, image_size).

    image_size: a power of 2, else ValueError. 3,576,704 parameters at 64 pixels.
    """

    def __init__(self, image_size=64, z_dim=100, features=64):
        super().__init__()
        self.image_size, self.z_dim = image_size, z_dim
        first, *widths = reversed(dcgan_widths(image_size, features))
        layers = [nn.ConvTranspose2d(z_dim, first, 4, bias=False), BatchNorm2d(first), nn.ReLU()]
        for width, next_width in itertools.pairwise([first, *widths]):
            layers += [nn.ConvTranspose2d(width, next_width, 4, 2, 1, bias=False),
                       BatchNorm2d(next_width), nn.ReLU()]
        layers += [nn.ConvTranspose2d([first, *widths][-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers).apply(dcgan_weights)

    def forward(self, z):
        return self.main(z[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """Images (n, 3, image_size, image_size) -> logits (n,).

    image_size: a power of 2, else ValueError. 2,765,568 parameters at 64 pixels.
    """

    def __init__(self, image_size=64, features=64):
        super().__init__()
        widths = dcgan_widths(image_size, features)
        layers = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 4, 2, 1, bias=False),
                       BatchNorm2d(next_width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, bias=False))
        self.main = nn.Sequential(*layers).apply(dcgan_weights)

    def forward(self, images):
        return self.main(images).flatten()


# VAE -----------------------------------------------------------------------------------------

VAE_WIDTHS = (32, 64, 128, 256, 512)


def vae_map_size(image_size):
    """Side of the encoder's last map; ValueError unless image_size is a multiple of 32."""
    if image_size % 32:
        raise ValueError(f"VAE makes images of 32, 64, 96, ... pixels, not {image_size}")
    return image_size // 32


class VAEEncoder(nn.Module):
    """Images (n, 3, image_size, image_size) -> mean and log-variance of latents, (n, z_dim) each.

    The mean stays within ±10,000 and the log-variance within [-20, 10]: wide of anything that
    training needs, and no square or exponential of them overflows. Raises ValueError for a size
    that is not a multiple of 32.
    """

    def __init__(self, image_size=256, z_dim=512):
        super().__init__()
        layers = []
        for width, next_width in itertools.pairwise([3, *VAE_WIDTHS]):
            layers += [nn.Conv2d(width, next_width, 3, stride=2, padding=1),
                       nn.BatchNorm2d(next_width), nn.LeakyReLU()]
        self.main = nn.Sequential(*layers, nn.Flatten())
        flat = VAE_WIDTHS[-1] * vae_map_size(image_size) ** 2
        self.mean, self.log_variance = nn.Linear(flat, z_dim), nn.Linear(flat, z_dim)

    def forward(self, images):
        x = self.main(images)
        # In float32 whatever the layers computed in: the bounds and the KL need its range.
        return self.mean(x).float().clamp(-1e4, 1e4), self.log_variance(x).float().clamp(-20, 10)


class VAEDecoder(nn.Module):
    """Latents (n, z_dim) -> images (n, 3, image_size, image_size); sizes as VAEEncoder."""

    def __init__(self, image_size=256, z_dim=512):
        super().__init__()
        self.image_size, self.z_dim = image_size, z_dim
        side, widths = vae_map_size(image_size), VAE_WIDTHS[::-1]
        layers = [nn.Linear(z_dim, widths[0] * side**2), nn.Unflatten(1, (widths[0], side, side))]
        for width, next_width in itertools.pairwise([*widths, widths[-1]]):
            layers += [nn.ConvTranspose2d(width, next_width, 3, 2, padding=1, output_padding=1),
                       nn.BatchNorm2d(next_width), nn.LeakyReLU()]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1), nn.Tanh())

    def forward(self, z):
        return self.main(z)


class VAE(nn.Module):
    """Images (n, 3, h, w) -> reconstructions, mean and log-variance (n, z_dim) of the latents.

    The latents that are decoded are drawn in training mode, the means in evaluation mode.
    53,514,339 parameters at 256 pixels, z_dim 512.
    """

    def __init__(self, image_size=256, z_dim=512):
        super().__init__()
        self.encoder = VAEEncoder(image_size, z_dim)
        self.decoder = VAEDecoder(image_size, z_dim)

    def forward(self, images):
        mean, log_variance = self.encoder(images)
        noise = torch.randn_like(mean) if self.training else 0.0
        return self.decoder(mean + (log_variance / 2).exp() * noise), mean, log_variance


# Layers that FastGAN's two networks share ----------------------------------------------------


class SpectralConv2d(nn.Module):
    """2-D convolution without bias, its weight divided by its largest singular value.

    The singular value follows the weight by one power iteration per forward pass in training mode
    (Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks").
    """

    transposed = False

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__()
        self.stride, self.padding = stride, padding
        shape = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        self.weight_orig = nn.Parameter(torch.randn(*shape, kernel_size, kernel_size) * 0.02)
        rows, columns = self.matrix().shape
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0))

    def matrix(self):
        """The weight as (output channels, everything else)."""
        weight = self.weight_orig.transpose(0, 1) if self.transposed else self.weight_orig
        return weight.flatten(1)

    def weight(self):
        """The normalised weight, in float32; in training mode u and v take one step first."""
        u, v = self.weight_u, self.weight_v
        with torch.autocast(u.device.type, enabled=False):
            matrix = self.matrix()
            if self.training:
                with torch.no_grad():
                    v = F.normalize(matrix.t() @ u, dim=0, eps=1e-12)
                    u = F.normalize(matrix @ v, dim=0, eps=1e-12)
                    self.weight_u.copy_(u)
                    self.weight_v.copy_(v)
            # A product: the gradients of a quotient take twice as many passes over the weight.
            return self.weight_orig * (1 / torch.dot(u, matrix @ v))

    def forward(self, x):
        return F.conv2d(x, self.weight(), None, self.stride, self.padding)


class SpectralConvTranspose2d(SpectralConv2d):
    """The same for a transposed convolution."""

    transposed = True

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight(), None, self.stride, self.padding)


class NoiseInjection(nn.Module):
    """Adds a learned scalar times an N(0, 1) map: one per image in training, one for all after.

    A fixed map in evaluation mode keeps the texture that training gave it and lets an image
    depend on its latent alone.
    """

    def __init__(self, size, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        seeded = torch.Generator().manual_seed(seed)
        fixed = torch.randn(1, 1, size, size, generator=seeded, device="cpu")
        self.register_buffer("fixed", fixed, persistent=False)

    def forward(self, x):
        weight = self.weight.to(x.dtype)  # else it would widen what autocast narrowed
        if not self.training:
            return x + weight * self.fixed.to(x.dtype)
        n, _, height, width = x.shape
        return x + weight * torch.randn(n, 1, height, width, device=x.device, dtype=x.dtype)


class GLU(nn.Module):
    """nn.GLU over channels; its gradients keep the channels-last layout, without which the batch
    norm before it is many times slower."""

    def forward(self, x):
        values, gates = x.chunk(2, 1)
        if x.is_cpu:  # whose sigmoid is three times as fast on what lies together
            gates = gates.clone()
        return values * gates.sigmoid()


class MeanPool(nn.Module):
    """nn.AdaptiveAvgPool2d for sides that `size` divides, deterministic on GPUs too; and for 7 to
    4: means of 2, 2, 2 and 1 places."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return F.avg_pool2d(x, math.ceil(x.shape[-1] / self.size), ceil_mode=True)


def channels_last(x):
    """The same images, under autocast in the layout that convolutions are fast in.

    Not in float32, where batch norm on a CPU sums 1,000 times less exactly in this layout.
    """
    fast = torch.is_autocast_enabled(x.device.type)
    return x.contiguous(memory_format=torch.channels_last) if fast else x


class SkipLayerExcitation(nn.Module):
    """Channel weights of a high-resolution map, computed from a low-resolution one (section 3.1).

    forward(low (n, in, h, w), high (n, out, H, W)) -> (n, out, H, W).
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.main = nn.Sequential(
            MeanPool(4), SpectralConv2d(in_channels, out_channels, 4), nn.SiLU(),
            SpectralConv2d(out_channels, out_channels, 1), nn.Sigmoid())

    def forward(self, low, high):
        return high * self.main(low)


def up_layers(in_channels, out_channels):
    """Twice the height and width: nearest, conv 3×3, batch norm, GLU."""
    return [nn.Upsample(scale_factor=2, mode="nearest"),
            SpectralConv2d(in_channels, 2 * out_channels, 3, padding=1),
            BatchNorm2d(2 * out_channels), GLU()]


def up_block(in_channels, out_channels):
    """The published UpBlock."""
    return nn.Sequential(*up_layers(in_channels, out_channels))


def up_block_comp(in_channels, out_channels, size):
    """The published UpBlockComp: a second convolution, and noise before each batch norm.

    size: of the maps that it gives.
    """
    upsample, conv, norm, glu = up_layers(in_channels, out_channels)
    return nn.Sequential(
        upsample, conv, NoiseInjection(size, seed=size), norm, glu,
        SpectralConv2d(out_channels, 2 * out_channels, 3, padding=1),
        NoiseInjection(size, seed=size + 1), BatchNorm2d(2 * out_channels), GLU())


class Bias(nn.Module):
    """Adds a learned number to each channel: a bias in the place of a batch norm."""

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return x + self.bias.to(x.dtype)


def down_layers(in_channels, out_channels, kernel_size, stride=1, padding=0, norm=BatchNorm2d):
    """Convolution, batch norm, LeakyReLU."""
    return [SpectralConv2d(in_channels, out_channels, kernel_size, stride, padding),
            norm(out_channels), nn.LeakyReLU(0.2)]


def check_image_size(network, image_size, *sizes):
    if image_size not in sizes:
        raise ValueError(f"{network} is for images of {', '.join(map(str, sizes[:-1]))} or "
                         f"{sizes[-1]} pixels, not {image_size}")


# FastGAN's generator -------------------------------------------------------------------------


class InitLayer(nn.Module):
    """From a latent to the first 4×4 map."""

    def __init__(self, z_dim, out_channels):
        super().__init__()
        self.init = nn.Sequential(SpectralConvTranspose2d(z_dim, 2 * out_channels, 4),
                                  BatchNorm2d(2 * out_channels), GLU())

    def forward(self, z):
        return self.init(z[:, :, None, None])


class FastGANGenerator(nn.Module):
    """Latents (n, z_dim) -> (image (n, 3, image_size, image_size), image_128 (n, 3, 128, 128)).

    Images aim at [-1, 1]; at 1024 both pass through tanh, below neither does (as in the published
    code, which has no 128), so clamp them before use. `features` scales every width; 64 is the
    paper's. Raises ValueError for another image_size than 128, 256, 512 or 1024.
    """

    def __init__(self, image_size=1024, z_dim=256, features=64):
        super().__init__()
        check_image_size("FastGAN", image_size, 128, 256, 512, 1024)
        self.image_size, self.z_dim = image_size, z_dim
        share = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 1 / 2, 512: 1 / 4, 1024: 1 / 8}
        width = {size: max(1, int(s * features)) for size, s in share.items()}

        self.init = InitLayer(z_dim, width[4])
        self.feat_8 = up_block_comp(width[4], width[8], 8)
        self.feat_16 = up_block(width[8], width[16])
        self.feat_32 = up_block_comp(width[16], width[32], 32)
        self.feat_64 = up_block(width[32], width[64])
        self.feat_128 = up_block_comp(width[64], width[128], 128)
        if image_size > 128:
            self.feat_256 = up_block(width[128], width[256])
        self.se_64 = SkipLayerExcitation(width[4], width[64])
        self.se_128 = SkipLayerExcitation(width[8], width[128])
        if image_size > 128:
            self.se_256 = SkipLayerExcitation(width[16], width[256])
        self.to_128 = SpectralConv2d(width[128], 3, 1)
        self.to_big = SpectralConv2d(width[image_size], 3, 3, padding=1)
        if image_size > 256:
            self.feat_512 = up_block_comp(width[256], width[512], 512)
            self.se_512 = SkipLayerExcitation(width[32], width[512])
        if image_size > 512:
            self.feat_1024 = up_block(width[512], width[1024])

    def low_maps(self, z):
        """The maps of 4, 8, 16 and 32 pixels: what there is and where."""
        map_4 = channels_last(self.init(z))
        map_8 = self.feat_8(map_4)
        map_16 = self.feat_16(map_8)
        return map_4, map_8, map_16, self.feat_32(map_16)

    def forward(self, z, style=None):
        """style: other latents (n, z_dim), whose low maps excite the high ones instead (section
        3.1): the layout stays that of z, colours and textures are the other's."""
        low = self.low_maps(z)
        map_4, map_8, map_16, map_32 = low if style is None else self.low_maps(style)
        map_64 = self.se_64(map_4, self.feat_64(low[-1]))
        last = map_128 = self.se_128(map_8, self.feat_128(map_64))
        if self.image_size > 128:
            last = self.se_256(map_16, self.feat_256(last))
        if self.image_size > 256:
            last = self.se_512(map_32, self.feat_512(last))
        if self.image_size == 1024:
            return torch.tanh(self.to_big(self.feat_1024(last))), torch.tanh(self.to_128(map_128))
        return self.to_big(last), self.to_128(map_128)


# FastGAN's discriminator ---------------------------------------------------------------------


class DownBlock(nn.Module):
    """Half the height and width: conv 4×4 stride 2, batch norm (or `norm`), LeakyReLU."""

    def __init__(self, in_channels, out_channels, norm=BatchNorm2d):
        super().__init__()
        self.main = nn.Sequential(*down_layers(in_channels, out_channels, 4, 2, 1, norm))

    def forward(self, x):
        return self.main(x)


class DownBlockComp(nn.Module):
    """Half the height and width: the mean of a two-convolution path and a pooled 1×1 path."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.main = nn.Sequential(*down_layers(in_channels, out_channels, 4, 2, 1),
                                  *down_layers(out_channels, out_channels, 3, 1, 1))
        self.direct = nn.Sequential(nn.AvgPool2d(2), *down_layers(in_channels, out_channels, 1))

    def forward(self, x):
        return (self.main(x) + self.direct(x)) / 2


class Decoder(nn.Module):
    """A feature map (n, channels, h, w), pooled to 8×8, -> a 128×128 image in [-1, 1]."""

    def __init__(self, in_channels, features):
        super().__init__()
        self.main = nn.Sequential(
            MeanPool(8),
            up_block(in_channels, 4 * features),
            up_block(4 * features, 2 * features),
            up_block(2 * features, 2 * features),
            up_block(2 * features, features),
            SpectralConv2d(features, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, x):
        return self.main(x)


def quadrant(x, index):
    """Quarter `index` of (n, c, h, w): 0 top left, 1 top right, 2 bottom left, 3 bottom right.

    index: a number, or a tensor of one, which is used without a look at its value.
    """
    quarters = torch.stack([quarter for half in x.chunk(2, 2) for quarter in half.chunk(2, 3)])
    index = torch.as_tensor(index, device=x.device).view(1)
    return channels_last(quarters.index_select(0, index).squeeze(0))


def down_from_small(widths, norm=BatchNorm2d):
    """A 128×128 image -> an 8×8 map; widths: channels of the four maps on the way."""
    first = [SpectralConv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*first, *(DownBlock(width, next_width, norm)
                                   for width, next_width in itertools.pairwise(widths)))


class FastGANDiscriminator(nn.Module):
    """(image (n, 3, image_size, image_size), image_128 (n, 3, 128, 128)) -> (logits, maps).

    logits (n, 50): 5×5 from the large image, then 5×5 from the small one. `maps` are what
    `reconstruct` needs: the last 8×8 map, the small path's 8×8 map, the 16×16 map.
    Raises ValueError for another image_size than 256, 512 or 1024.
    """

    def __init__(self, image_size=1024, features=64):
        super().__init__()
        check_image_size("the published discriminator", image_size, 256, 512, 1024)
        share = {8: 16, 16: 8, 32: 4, 64: 2, 128: 1, 256: 1 / 2, 512: 1 / 4, 1024: 1 / 8}
        width = {size: max(1, int(s * features)) for size, s in share.items()}

        kernel, stride = {256: (3, 1), 512: (4, 2), 1024: (4, 2)}[image_size]
        first = width[1024] if image_size == 1024 else width[512]
        large = [SpectralConv2d(3, first, kernel, stride, padding=1), nn.LeakyReLU(0.2)]
        if image_size == 1024:
            large += down_layers(first, width[512], 4, 2, 1)
        self.down_from_big = nn.Sequential(*large)
        self.down_4 = DownBlockComp(width[512], width[256])
        self.down_8 = DownBlockComp(width[256], width[128])
        self.down_16 = DownBlockComp(width[128], width[64])
        self.down_32 = DownBlockComp(width[64], width[32])
        self.down_64 = DownBlockComp(width[32], width[16])
        self.rf_big = nn.Sequential(*down_layers(width[16], width[8], 1),
                                    SpectralConv2d(width[8], 1, 4))
        self.se_2_16 = SkipLayerExcitation(width[512], width[64])
        self.se_4_32 = SkipLayerExcitation(width[256], width[32])
        self.se_8_64 = SkipLayerExcitation(width[128], width[16])
        self.down_from_small = down_from_small([width[size] for size in (256, 128, 64, 32)])
        self.rf_small = SpectralConv2d(width[32], 1, 4)
        # The published decoders have 32 features whatever the rest has; half of it is the same
        # at 64 and keeps a small discriminator small.
        self.decoder_big = Decoder(width[16], max(1, features // 2))
        self.decoder_part = Decoder(width[32], max(1, features // 2))
        self.decoder_small = Decoder(width[32], max(1, features // 2))

    def forward(self, image, image_128):
        image, image_128 = channels_last(image), channels_last(image_128)
        map_256 = self.down_from_big(image)
        map_128 = self.down_4(map_256)
        map_64 = self.down_8(map_128)
        map_32 = self.se_2_16(map_256, self.down_16(map_64))
        map_16 = self.se_4_32(map_128, self.down_32(map_32))
        map_8 = self.se_8_64(map_64, self.down_64(map_16))
        small_8 = self.down_from_small(image_128)
        logits = torch.cat([self.rf_big(map_8).flatten(1), self.rf_small(small_8).flatten(1)], 1)
        return logits, (map_8, small_8, map_16)

    def reconstruct(self, maps, part):
        """Three 128×128 images: of the whole, of the whole from the small path, of quadrant `part`.

        They are what the maps of a real image decode to, (n, 3, 128, 128) in [-1, 1] each.
        """
        map_8, small_8, map_16 = maps
        return (self.decoder_big(map_8), self.decoder_small(small_8),
                self.decoder_part(quadrant(map_16, part)))


# EfficientNet-Lite: sees what is in photos ---------------------------------------------------

LITE_STAGES = [  # kernel, stride, expansion, channels, repeats: Tan and Le 2019, table 1
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's SAME padding: where the zeros are odd in number,
    the right and the bottom get one more.

    On a CPU a depthwise one computes all places and takes every second: the gradients of that are
    several times as fast as those of a stride.
    """

    def forward(self, x):
        kernel = self.kernel_size[0]
        top, left = (1 - side % 2 for side in x.shape[2:])
        if self.groups > 1 and x.is_cpu:
            x = F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
            return x[:, :, top::2, left::2]
        x = F.pad(x, (kernel // 2 - left, kernel // 2, kernel // 2 - top, kernel // 2))
        return F.conv2d(x, self.weight, self.bias, 2, 0, 1, self.groups)


def lite_layers(in_channels, out_channels, kernel, stride=1, groups=1):
    """Convolution without bias, batch norm, ReLU6: layers of EfficientNet-Lite."""
    convolution = SameConv2d if stride > 1 else nn.Conv2d
    padding = 0 if stride > 1 else kernel // 2
    return [convolution(in_channels, out_channels, kernel, stride, padding, groups=groups,
                        bias=False),
            nn.BatchNorm2d(out_channels, eps=1e-3), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, one of each channel by itself, 1×1 to fewer; the input is
    added where the shape allows (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, in_channels, out_channels, kernel, stride, expansion):
        super().__init__()
        width = in_channels * expansion
        widen = lite_layers(in_channels, width, 1) if expansion > 1 else []
        narrow = lite_layers(width, out_channels, 1)[:2]  # the sum stays linear
        self.main = nn.Sequential(*widen, *lite_layers(width, width, kernel, stride, width),
                                  *narrow)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x):
        return x + self.main(x) if self.residual else self.main(x)


class EfficientNetLite(nn.Module):
    """Images (n, 3, h, w) in [-1, 1] -> logits (n, 1000) of ImageNet's classes.

    Tan and Le 2019 (arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, the stem and the
    head not widened. Lite0 is (1.0, 1.0), made for 224 pixels a side, Lite2 (1.1, 1.2), for 260.
    """

    def __init__(self, width=1.0, depth=1.0):
        super().__init__()

        def channels(n):  # a multiple of 8, at least nine tenths
            rounded = max(8, int(n * width + 4) // 8 * 8)
            return rounded + 8 * (rounded < 0.9 * n * width)

        self.stem = nn.Sequential(*lite_layers(3, 32, 3, 2))
        self.stages, last = nn.ModuleList(), 32
        for i, (kernel, stride, expansion, n, repeats) in enumerate(LITE_STAGES):
            if 0 < i < len(LITE_STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            blocks = [InvertedResidual(channels(n) if again else last, channels(n), kernel,
                                       1 if again else stride, expansion)
                      for again in range(repeats)]
            self.stages.append(nn.Sequential(*blocks))
            last = channels(n)
        self.head = nn.Sequential(*lite_layers(last, 1280, 1), nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten())
        self.classes = nn.Linear(1280, 1000)

    def maps(self, images):
        """The seven stages' maps: their sides are 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32."""
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, images):
        return self.classes(self.head(self.maps(images)[-1]))


# The projected discriminator: learns from what a pretrained network sees ---------------------

LEVELS = (24, 40, 112, 320)  # channels of EfficientNet-Lite0's maps at 1/4, 1/8, 1/16 and 1/32


def enlarged(images):
    """To 224 pixels a side, for which the network was trained, where they are smaller."""
    return F.interpolate(images, 224, mode="bilinear") if images.shape[-1] < 224 else images


class Levels(nn.Sequential):
    """Images (n, 3, h, w) in [-1, 1], `enlarged`, -> an EfficientNetLite's maps at 1/4, 1/8, 1/16
    and 1/32."""

    def __init__(self, net):
        super().__init__(nn.Sequential(net.stem, *net.stages[:2]), net.stages[2],
                         net.stages[3:5], net.stages[5:])

    def forward(self, images):
        x, found = enlarged(channels_last(images)), []
        for level in self:
            for layer in level:
                x = layer(x)
            found.append(x)
        return found


class RandomConv1x1(nn.Module):
    """A 1×1 convolution with bias, drawn once as torch draws one and never trained."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        drawn = nn.Conv2d(in_channels, out_channels, 1)
        self.register_buffer("weight", drawn.weight.detach())
        self.register_buffer("bias", drawn.bias.detach())

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias)


class ProjectedDiscriminator(nn.Module):
    """Maps of `Levels`, and the images (n, 3, h, w) -> logits, at 256 pixels 5×5 for each map.

    Random convolutions mix the maps' channels and, from the coarsest to the finest, their scales;
    on each of the four that come out (1/2 to 1/16 of a side) a small discriminator judges places.
    features: the paper's c, channels of the finest mixed map; all other widths follow it.

    extended: not of the paper. Without batch norm, which takes away what all samples have in
    common, such as one palette. The frozen network hardly looks at single pixels and colours: the
    finest mixed map gets a learned convolution of the images added, and the published small path
    judges them shrunk to 128×128. No place knows where it is: each small discriminator has a logit
    of the whole image, too, of its last map shrunk to 4×4. Both count as much as a map's places.
    """

    def __init__(self, features=64, extended=False):
        super().__init__()
        mixed = [features * 2**k for k in range(4)]
        judged = [features, features, 2 * features, 4 * features]
        self.mix_channels = nn.ModuleList(map(RandomConv1x1, LEVELS, mixed))
        self.mix_scales = nn.ModuleList(map(RandomConv1x1, mixed, judged))
        norm = Bias if extended else BatchNorm2d
        widths = [features, features, 2 * features, 4 * features, 8 * features]  # at 1/2, ... 1/32
        halved = [itertools.pairwise([c, *widths[k + 1 :]]) for k, c in enumerate(judged)]
        # No bias before a batch norm, which takes it away again.
        self.small = nn.ModuleList(
            nn.Sequential(*(DownBlock(*pair, norm) for pair in pairs)) for pairs in halved)
        self.places = nn.ModuleList(SpectralConv2d(widths[-1], 1, 4) for _ in judged)
        self.extended = extended
        if extended:
            self.whole = nn.ModuleList(SpectralConv2d(widths[-1], 1, 4) for _ in judged)
            self.pixels = SpectralConv2d(3, features, 4, stride=2, padding=1)
            self.palette = nn.Sequential(
                MeanPool(128), down_from_small([max(1, features // 2), *widths[1:4]], norm),
                SpectralConv2d(widths[3], 1, 4))

    def forward(self, maps, images):
        logits, mixed = [], 0
        for level in reversed(range(4)):
            x = self.mix_channels[level](maps[level]) + mixed
            # The published order is the other way round: the same, at four times the cost.
            x = self.mix_scales[level](x)
            mixed = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            if level == 0 and self.extended:
                mixed = mixed + self.pixels(enlarged(channels_last(images)))
            seen = self.small[level](mixed)
            logits.append(self.places[level](seen).flatten(1))
            if self.extended:
                whole = self.whole[level](MeanPool(4)(seen)).flatten(1)
                logits.append(whole.expand_as(logits[-1]))
        if self.extended:
            palette = self.palette(channels_last(images)).flatten(1)
            logits.append(palette.repeat(1, math.ceil(logits[-1].shape[1] / palette.shape[1])))
        return torch.cat(logits, 1)
