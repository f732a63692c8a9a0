"""Which photos are one picture: re-encoded, rescaled, slightly cropped or mirrored.

    names = twins.pictures(hashes, [twins.thumbnail(image) for image in images])

Thumbnails whose difference hashes nearly agree are candidates; they are one picture if one, moved
and stretched a little (Lucas & Kanade 1981), explains nearly all of the other's variance.
"""

from collections import defaultdict

import numpy as np
from PIL import Image
from tqdm import tqdm

THUMBNAIL = 64  # pixels a side, to compare photos at; smaller ones are compared by equal pixels
ROUGHLY = 0.6  # correlation of photos as they are: of a copy 0.8 or more
HASH_DISTANCE = 28  # bits of 128: copies of a picture differ by 21 or less, rooms by 60 or so
SAME_PICTURE = 0.98  # of the variance explained: of copies 0.996 or more, of rooms 0.75 or less


def thumbnail(image):
    """uint8 greys (64, 64) of a PIL image."""
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(small)


def difference_hash(thumbnail):
    """Which of two neighbours is brighter, of 9 x 8 and of 8 x 9 pixels: (128,) of -1 and 1."""
    small = Image.fromarray(thumbnail)
    signs = [np.diff(np.asarray(small.resize(shape, Image.Resampling.BILINEAR), int), axis=axis) > 0
             for shape, axis in (((9, 8), 1), ((8, 9), 0))]
    return np.float32(np.concatenate(signs, axis=None)) * 2 - 1


def explained(a, b, steps=3, margin=4):
    """The share of thumbnail b's variance that thumbnail a explains, moved and stretched to fit.

    Both float (64, 64), blurred. By Gauss-Newton steps from no move (Lucas & Kanade 1981), without
    the margins: a crop by 3% moves a pixel at the border by 2.
    """
    from scipy import ndimage  # slow to import

    inner = slice(margin, -margin)
    target = b[inner, inner].ravel() - b[inner, inner].mean()
    if target @ target < len(target):  # one shade within the margins: nothing to compare
        return 0.0
    center, best = (THUMBNAIL - 1) / 2, 0.0
    along = (np.arange(THUMBNAIL) - center) / center
    shift, scale = np.zeros(2), np.ones(2)
    for step in range(steps + 1):
        moved = ndimage.affine_transform(a, scale, center + shift - scale * center, order=1,
                                         mode="nearest")
        down, right = np.gradient(moved)
        terms = [moved, np.ones_like(moved), down, right, down * along[:, None], right * along]
        terms = np.stack([term[inner, inner].ravel() for term in terms], 1)
        brightness = np.linalg.lstsq(terms[:, :2], target, rcond=None)[0]
        left = target - terms[:, :2] @ brightness
        best = max(best, 1 - left @ left / (target @ target))
        if step < steps:
            fit = np.linalg.lstsq(terms, target, rcond=None)[0]
            contrast = fit[0] or 1.0
            shift = np.clip(shift + fit[2:4] / contrast, -margin, margin)
            scale = np.clip(scale + fit[4:] / contrast / center, 0.9, 1.1)
    return best


def similar_pairs(thumbnails, blurred):
    """Yields (i, j, whether mirrored), i < j, of thumbnails that may show one picture.

    thumbnails: n of uint8 (64, 64); blurred: the same as floats (n, 64, 64), blurred. The hashes of
    a pair nearly agree, its blurred pixels roughly. Flat ones are left out.
    """
    hashes, mirrored = (np.array([difference_hash(image[:, ::step]) for image in thumbnails])
                        for step in (1, -1))
    upright, turned = (image.reshape(len(thumbnails), -1) - image.mean((1, 2))[:, None]
                       for image in (blurred, blurred[:, :, ::-1]))
    scale = np.linalg.norm(upright, axis=1)[:, None]
    upright, turned = (np.where(scale > THUMBNAIL, x / scale.clip(1), 0) for x in (upright, turned))
    for start in range(0, len(hashes), 1024):
        rows = slice(start, start + 1024)
        for others, pixels, mirror in ((hashes, upright, False), (mirrored, turned, True)):
            near = (hashes.shape[1] - hashes[rows] @ others.T) / 2 <= HASH_DISTANCE
            near &= upright[rows] @ pixels.T > ROUGHLY
            for i, j in np.argwhere(np.triu(near, start + 1)):
                yield int(i) + start, int(j), mirror


def pairs(thumbnails):
    """The pairs (i, j), i < j, of thumbnails, n of uint8 (64, 64), that show one picture."""
    from scipy import ndimage

    if not thumbnails:
        return []
    blurred = ndimage.gaussian_filter(np.float32(thumbnails), (0, 1, 1))
    bar = tqdm(similar_pairs(thumbnails, blurred), "similar photos", unit="pair", disable=None,
               leave=False)
    return [(i, j) for i, j, mirror in bar if explained(
        blurred[i], blurred[j][:, :: -1 if mirror else 1]) > SAME_PICTURE]


def pictures(hashes, thumbnails):
    """The names (n) of the pictures that n photos show: equal where they show the same one.

    A name is the least hash of a picture's photos. hashes: n, equal for equal pixels. thumbnails:
    n of uint8 (64, 64), or None for a photo that is compared by its hash alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    different = dict(zip(hashes, thumbnails, strict=True))
    names = list(different)
    large = [i for i, name in enumerate(names) if different[name] is not None]
    found = [(large[i], large[j]) for i, j in pairs([different[names[i]] for i in large])]
    ends = tuple(np.array(found, int).reshape(-1, 2).T)
    links = coo_array((np.ones(len(found)), ends), shape=[len(names)] * 2)
    groups = defaultdict(list)
    for label, name in zip(connected_components(links)[1], names, strict=True):
        groups[label].append(name)
    picture = {name: min(group) for group in groups.values() for name in group}
    return [picture[name] for name in hashes]
