"""How surely prepare_data.py finds the photos that are one picture, and how often it errs.

    python tests/bench_split.py DIR       # a folder of photos, no picture in it twice
    python tests/bench_split.py --demo 1000

Of each photo one copy of each kind is made. Prints how many of the copies would be grouped with
their photo, the furthest hash and the least explained variance among them; and how many pairs of
different photos would be, with the most that one explains of another.
"""

import argparse
import functools
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import imagefiles, twins
from common.scenes import draw_scene


def encoded(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def scaled(image, share):
    return image.resize([round(side * share) for side in image.size])


def cropped(image, rng, most=0.03):
    """Up to 3% cut off each side."""
    (width, height), (left, top, right, bottom) = image.size, rng.uniform(0, most, 4)
    return image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))


KINDS = {
    "JPEG, quality 50": lambda image, rng: encoded(image, 50),
    "JPEG, quality 95": lambda image, rng: encoded(image, 95),
    "scaled by 0.5": lambda image, rng: scaled(image, 0.5),
    "scaled by 0.8": lambda image, rng: scaled(image, 0.8),
    "up to 3% off each side": cropped,
    "3% off the left and the top": lambda image, rng: image.crop(
        (0.03 * image.width, 0.03 * image.height, *image.size)),
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "all of these": lambda image, rng: encoded(scaled(cropped(image, rng), 0.5).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT), 50),
}


def main(args):
    if args.demo:
        files = (io.BytesIO(draw_scene(0, i)) for i in range(args.demo))
    else:
        files = imagefiles.find(args.folder)
    rng, originals, copies = np.random.default_rng(0), [], {kind: [] for kind in KINDS}
    for file in tqdm(files, total=args.demo or len(files), disable=None):
        image = Image.open(file).convert("RGB")
        originals.append(twins.thumbnail(image))
        for kind, make in KINDS.items():
            copies[kind].append(twins.thumbnail(make(image, rng)))

    print(f"| {len(originals)} photos | found | bits apart, at most | explained, at least |\n"
          "| --- | ---: | ---: | ---: |")
    smooth = functools.partial(ndimage.gaussian_filter, sigma=1)
    for kind, thumbnails in copies.items():
        found, bits, least = 0, 0, 1.0
        for original, copy in zip(originals, thumbnails, strict=True):
            found += bool(twins.pairs([original, copy]))
            ways = [original, original[:, ::-1]]
            apart = [(twins.difference_hash(copy) != twins.difference_hash(way)).sum()
                     for way in ways]
            bits = max(bits, min(apart))
            best = ways[int(np.argmin(apart))]
            least = min(least, twins.explained(smooth(np.float32(best)),
                                               smooth(np.float32(copy))))
        print(f"| {kind} | {found / len(originals):.4f} | {bits} | {least:.4f} |")
    blurred = np.stack([smooth(np.float32(original)) for original in originals])
    pairs = list(twins.similar_pairs(originals, blurred))
    most = max((twins.explained(blurred[i], blurred[j][:, :: -1 if mirror else 1])
                for i, j, mirror in pairs), default=0)
    print(f"\nof different photos: {len(pairs)} pairs with similar hashes, "
          f"{len(twins.pairs(originals))} grouped, at most {most:.4f} explained")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--demo", type=int, metavar="N", help="drawn scenes instead")
    main(parser.parse_args())
