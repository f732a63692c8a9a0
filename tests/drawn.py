"""Images that need no files."""

import torch
from torch.nn import functional as F


def smooth(n, size=64, seed=0, coarse=5):
    """uint8 images (n, 3, size, size) of random colours: unlike noise, they differ in what they
    show."""
    seeded = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, coarse, coarse, generator=seeded) * 255
    return F.interpolate(images, size=(size, size), mode="bicubic").clamp(0, 255).byte()
