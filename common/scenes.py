"""Drawn bedrooms, by a small ray caster.

Metres; x runs right, y towards the bed's wall, z up. Points, directions and colours (linear RGB)
are float32 arrays (3, n). A paint is a function from points in a solid to their colours.
"""

import io
from collections import namedtuple

import numpy as np
from PIL import Image

PALETTES = (  # wall, accent, bedding, wood, second accent
    "e8dcc8 2f4858 f4efe6 8a5a34 c8553d", "cfd8d7 33658a ffffff c69c6d f6ae2d",
    "6f8f86 d9ae94 f1dca7 6b4226 9b3d3d", "efe9e1 7a8b6f e4e0d5 d2b48c b5651d",
    "2e4057 c9ada7 e8e6e3 5c3d2e e0a458", "d8b4a0 7d4e57 f7ede2 a47148 4f6d7a",
    "b7c9d6 1d3557 f1faee e0c097 e63946", "8c7aa9 f0c6b2 f5f0f6 4a3728 3f3351",
)
Hour = namedtuple("Hour", "zenith horizon hills sunlight sun sky ambient lamps view")
HOURS = (  # four colours, then how bright each light is; view: what the window shows
    Hour("3f7fd6", "cfe6f7", "3d6b35", "fff1d8", 6.0, 3.2, 0.42, 0.5, 1.9),  # noon
    Hour("5a83b8", "ffd9a0", "5d5a35", "ffb46a", 5.5, 2.2, 0.32, 1.2, 1.3),  # evening
    Hour("27376b", "f0876a", "3a2f33", "ff9a70", 0.0, 1.2, 0.16, 2.6, 0.8),  # dusk
    Hour("070b1f", "1e2a4a", "0c1418", "8aa0d8", 0.0, 0.3, 0.07, 3.4, 0.35),  # night
)
Solid = namedtuple("Solid", "center half powers paint glow casts")  # casts: a shadow
BOX, CLOTH, CUSHION, BALL, DRUM = (64, 64, 64), (16, 16, 8), (4, 2, 4), (2, 2, 2), (2, 2, 32)


def column(values):
    return np.float32(values)[:, None]


def rgb(code):
    """Linear (3, 1) colour of an sRGB hex code."""
    return (column([*bytes.fromhex(code)]) / 255) ** 2.2


WHITE, LAMP = rgb("f1eee8"), rgb("ffd29a")


def mix(a, b, weight):
    return a + (b - a) * weight


def weave(a, b, width, *axes):
    """A paint: stripes across one axis, checks across two."""
    return lambda p: mix(a, b, (p[list(axes)] / width % 1 > 0.5).mean(0, np.float32))


def boards(color, table, *sizes):
    """A paint: cells of these sizes, each of its own tone, by a (16, 16, 16) table in [0, 1]."""
    return lambda p: color * (0.75 + 0.4 * table[tuple(np.int32(np.floor(p / column(sizes))) % 16)])


def framed(paint, frame, half, axis, *parts):
    """A paint: frames of 2 cm around parts of the side across an axis: panes, drawers, pictures."""

    def painted(p):
        place = (p / column(half) + 1)[[1 - axis, 2]] / 2 * column(parts)
        edge = np.abs(place - place.round()) / column(parts) * 2 * column(half)[[1 - axis, 2]]
        return np.where(edge.min(0) < 0.02, frame, paint(p))

    return painted


def crossing(solid, start, rays, scale=1.0):
    """Where rays enter and leave the box around a solid, scaled: both (n,), in their lengths."""
    center, half = solid.center - start, solid.half * scale
    a, b = (center - half) / rays, (center + half) / rays
    return np.minimum(a, b).max(0), np.maximum(a, b).min(0)


def meet(solid, eye, rays):
    """How far rays from `eye` go until they meet a solid: (n,), infinite where they miss it."""
    near, far = crossing(solid, eye, rays)
    depth = np.where((near < far) & (near > 0.05), near, np.float32(np.inf))
    rounded = np.flatnonzero((depth < np.inf) & (solid.powers[0] < BOX[0]))
    reached, direction = depth[rounded], rays[:, rounded] / solid.half
    for _ in range(6):  # Newton's method
        at = (eye - solid.center) / solid.half + reached * direction
        power = np.abs(at) ** (solid.powers - 1)
        excess = (power * np.abs(at)).sum(0) - 1
        slope = (solid.powers * power * np.sign(at) * direction).sum(0)
        reached = reached - excess / np.minimum(slope, -1e-3)
    depth[rounded] = np.where(np.abs(excess) < 0.05, reached, np.inf)
    return depth


class Bedroom:
    """A random room: its size, colours and hour, the solids in it, its lights."""

    def __init__(self, rng):
        self.rng, self.table = rng, rng.random((16, 16, 16), np.float32)
        colors = map(rgb, self.choice(*PALETTES).split())
        self.wall, self.accent, self.bedding, self.timber, self.second = colors
        self.wood = boards(self.timber, self.table, 0.5, 0.02, 0.02)
        self.hour = HOURS[rng.choice(4, p=(0.36, 0.28, 0.18, 0.18))]
        self.size = column(rng.uniform((3.7, 3.9, 2.4), (4.8, 5.0, 2.85)))
        self.solids, self.lights = [], []
        (width, back, height), uniform = self.size[:, 0], rng.uniform
        tone, color = mix(self.timber, WHITE, uniform(0, 0.45)), self.choice(self.wall, self.accent)
        floor = boards(tone, self.table, uniform(0.1, 0.2), 1.5, 9)
        paper = weave(color, mix(color, WHITE, self.choice(0, 0.2)), 0.24, 0)
        self.add((0, back / 2, -1), (9, 9, 1), floor)
        self.add((0, back / 2, height + 1), (9, 9, 1), WHITE)
        self.add((-1, back / 2, 0), (1, 9, 9), self.wall)
        self.add((width + 1, back / 2, 0), (1, 9, 9), self.wall)
        self.add((width / 2, back + 1, 0), (9, 1, 9), paper)
        size, finish = (0.28, 0.6, uniform(0.45, 1.1)), self.choice(self.wood, lambda p: WHITE)
        doors = framed(finish, self.timber * 0.3, size, 0, 2, self.choice(1, 3))
        self.add((width - 0.28, back - 0.65, size[2]), size, doors, casts=True)
        if self.choice(True, False):
            self.add_lamp(width / 2, back * 0.6, height - 0.12)
        self.add_bed()
        self.add_window()

    def choice(self, *options):
        return options[self.rng.integers(len(options))]

    def add(self, center, half, paint, powers=BOX, glow=0.0, casts=False):
        """Adds the solid |x/a|^p + |y/b|^q + |z/c|^r <= 1: half is a, b, c, powers p, q, r."""
        paint = paint if callable(paint) else weave(paint, paint, 1, 0)
        self.solids.append(Solid(column(center), column(half), column(powers), paint, glow, casts))

    def add_lamp(self, *place):
        self.add(place, (0.16, 0.16, 0.12), LAMP, DRUM, 0.3 + self.hour.lamps / 2)
        self.lights.append((column(place), 0.35 * self.hour.lamps * LAMP))

    def add_bed(self):
        """The bed at the back wall, nightstands with lamps, a picture above, a rug below."""
        uniform, (width, back, _) = self.rng.uniform, self.size[:, 0]
        half, low, head, reach = uniform((0.6, 0.2, 0.45, 0.6), (0.85, 0.28, 0.7, 0.75))
        x, cell = uniform(half + 0.6, width - half - 1.2), uniform(0.15, 0.4)
        cloth = weave(self.bedding, self.second, cell, *self.choice((0,), (0, 1)))
        wool = weave(self.second, mix(self.bedding, WHITE, 0.3), 0.4, *self.choice((1,), (0, 1)))
        self.add((x, back - 1.75, 0), (half + 0.5, 0.9, 0.015), wool, self.choice(BOX, DRUM))
        self.add((x, back - 1.08, low), (half + 0.03, 1.05, 0.08), self.wood, casts=True)
        self.add((x, back - 0.06, head), (half + 0.06, 0.055, head), self.wood, casts=True)
        self.add((x, back - 1.1, low + 0.17), (half, 1.0, 0.14), WHITE, CLOTH)
        self.add((x, back - 2.16 + reach, low + 0.19), (half + 0.06, reach, 0.2),
                 self.choice(self.bedding, self.accent, cloth), CLOTH, casts=True)
        size, art = (half * 0.6, 0.03, 0.27), weave(self.accent, self.bedding, cell, 0, 2)
        self.add((x, back, 2 * head + 0.42), size, framed(art, self.timber * 0.4, size, 1, 1, 1))
        size, stem = (0.22, 0.2, uniform(0.24, 0.3)), uniform(0.13, 0.2)
        drawers = framed(self.wood, self.timber * 0.4, size, 1, 1, 2)
        for side, at in ((-1, x - half - 0.32), (1, x + half + 0.32)):
            for k, color in enumerate((WHITE, mix(self.second, WHITE, 0.2))):
                self.add((x + side * half / 2, back - 0.25 - 0.2 * k, low + 0.5 - 0.05 * k),
                         (half * 0.46 - 0.05 * k, 0.11, 0.23 - 0.05 * k), color, CUSHION)
            self.add((at, back - 0.2, size[2]), size, drawers, casts=True)
            self.add((at, back - 0.2, 2 * size[2] + stem), (0.07, 0.07, stem), self.second, BALL)
            self.add_lamp(at, back - 0.2, 2 * (size[2] + stem) + 0.13)

    def add_window(self):
        """The window in the left wall, curtains, and the light that comes in."""
        (sky, horizon, hills), uniform = map(rgb, self.hour[:3]), self.rng.uniform
        y, half, top, phase = uniform((0.5, 0.5, 2.0, 0), (0.7, 0.75, 2.2, 6))
        y, foot = y * self.size[1, 0], self.choice(0.12, 0.75, 0.95)
        place, size = (0, y, (foot + top) / 2), (0.02, half, (top - foot) / 2)
        self.window, self.opening, self.sun = map(column, (place, size, (-9, uniform(-6, 6), 5.5)))
        panes = framed(
            lambda p: np.where(p[2] < np.sin(4 * p[1] + phase) / 9, hills, mix(horizon, sky, p[2])),
            WHITE * 0.5, size, 0, 2, self.choice(1, 2, 3))
        self.add(place, size, panes, glow=self.hour.view)
        strength = self.hour.sky * half * size[2] * mix(horizon, sky, 0.3)
        self.lights.append((self.window + column((0.05, 0, 0)), np.float32(strength)))
        color, folds = self.choice(self.accent, self.second, self.bedding), uniform(38, 60)
        for middle in (y - half - 0.15, y + half + 0.15):
            self.add((0.1, middle, top / 2 + 0.1), (0.05, 0.22, top / 2 + 0.05),
                     lambda p: color * (0.72 + 0.28 * np.sin(p[1] * folds)), CLOTH)

    def look(self, eye, rays):
        """The colours (3, n) that rays (3, n) from `eye` see."""
        depths = np.stack([meet(solid, eye, rays) for solid in self.solids])
        points, nearest = eye + depths.min(0) * rays, depths.argmin(0)
        normal, color, glow = (np.empty_like(points) for _ in range(3))
        for k in np.unique(nearest):
            solid, where = self.solids[k], nearest == k
            at = (points[:, where] - solid.center) / solid.half
            slope = np.sign(at) * np.abs(at) ** (solid.powers - 1) * solid.powers / solid.half
            normal[:, where] = slope / np.linalg.norm(slope, axis=0)
            color[:, where], glow[:, where] = solid.paint(at * solid.half), solid.glow
        start = points + 0.02 * normal
        beside = np.abs(start + start[0] / 9 * self.sun - self.window)[1:] > self.opening[1:]
        sun = 120 * self.hour.sun * rgb(self.hour.sunlight) * ~beside.any(0)
        at = start + 0.48 * normal
        openness = np.minimum(at, self.size - at).min(0).clip(0.1, 0.5) * (1.5 + 0.5 * normal[2])
        light = glow + self.hour.ambient * openness * mix(self.wall, 1, 0.6)
        for place, strength in (*self.lights, (start + self.sun, sun)):
            ray = place - start
            distance = np.linalg.norm(ray, axis=0)
            share = (normal * ray).sum(0).clip(0) / distance / (distance**2 + 0.3)
            for solid in filter(lambda solid: solid.casts, self.solids):
                enter, leave = crossing(solid, start, ray, 0.95)
                inside = (np.minimum(leave, 1) - np.maximum(enter, 0)) * distance
                share *= 1 - (inside / 0.1).clip(0, 1)
            light = light + share * strength
        return color * light


@np.errstate(all="ignore")  # rays that miss: infinities
def draw_scene(seed, index, size=256):
    """A random bedroom as PNG bytes, the same for the same seed and index."""
    room, n = Bedroom(np.random.default_rng([seed, index])), size * 9 // 8
    x, y, aim = room.choice((0.2, 0.02, 0.5), (0.5, 0.02, 0.5), (0.8, 0.02, 0.5), (0.85, 0.25, 0.2))
    eye = room.size * column(room.rng.uniform((x, y, 0.5), (x, y + 0.1, 0.65)))
    forward = room.size * column((aim, 0.75, room.rng.uniform(0.3, 0.4))) - eye
    forward /= np.hypot(*forward[:2])
    right, up = column((forward[1, 0], -forward[0, 0], 0)), column((0, 0, 1))
    line = np.linspace(-1, 1, n) / room.rng.uniform(1.1, 1.45)
    rays = np.float32(forward + right * np.tile(line, n) - up * np.repeat(line, n))
    bands = np.array_split(rays, n * n // 2**14 + 1, axis=1)  # each stays in the cache
    image = np.concatenate([room.look(eye, band) for band in bands], 1)
    key = np.exp(np.log(image.mean(0) + 0.02).mean())
    image = 1 - np.exp(-1.25 * image * (0.42 / key) ** (0.85 if room.hour.lamps < 2 else 0.6))
    image = (image.reshape(3, n, n).transpose(1, 2, 0) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
    image, png = Image.fromarray(image[:, :: room.rng.choice((-1, 1))]), io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(png, "PNG", compress_level=1)
    return png.getvalue()
