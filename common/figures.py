"""The pictures: each function draws what it is given into one PNG, written whole or not at all."""

from pathlib import Path

import numpy as np

from common import files


def new_figure(width, height, rows=1, columns=1, **sharing):
    """(a figure of so many inches, its axes (rows, columns)); it needs no display."""
    from matplotlib.figure import Figure  # slow to import, and --interpolate does without

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def save_figure(figure, title, path):
    """A PNG, and its path again; the title gets a line for each of its parts between semicolons."""
    figure.suptitle(title.replace("; ", "\n"), fontsize=10)
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=100, pil_kwargs={"compress_level": 3})
    return path


def loss_curves(rows, resumed, title, path, hidden=(), apart=()):
    """Each loss and its mean over 1/25 of the rows, by iteration.

    rows: texts by column, as csv.DictReader reads them: "step", "iteration" (without it a step is
    one), and the losses, empty where there is none. resumed: the steps after which dotted lines
    are drawn. hidden: columns that are not drawn. apart: those that are drawn below, as logits.
    """
    losses = [name for name in rows[0] if name not in ("step", "iteration", *hidden, *apart)]
    panels = {"loss": losses, "D's mean logit": [name for name in apart if name in rows[0]]}
    panels = {label: names for label, names in panels.items() if names}
    figure, axes = new_figure(8, 1 + 3 * len(panels), len(panels), sharex=True)
    iterations = [int(row.get("iteration") or row["step"]) for row in rows]
    for (label, names), axis in zip(panels.items(), axes[:, 0], strict=True):
        for name in names:
            trace(axis, iterations, [float(row[name] or "nan") for row in rows], name)
        for step in resumed:
            before = [i for i, row in zip(iterations, rows, strict=True)
                      if int(row["step"]) <= step]
            axis.axvline(before[-1] if before else 0, color="grey", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.legend()
    if all(float(row[name] or 1) > 0 for row in rows for name in losses):
        axes[0, 0].set_yscale("log")  # a KL divergence is hundreds of times a squared error
    axes[-1, 0].set_xlabel("iteration (dotted: resumed)")
    save_figure(figure, title, path)


def trace(axes, iterations, values, name):
    """Values, pale, and their mean over 1/25 of them."""
    width = max(1, len(values) // 25)
    smooth = np.convolve(values, np.full(width, 1 / width), "valid")
    (line,) = axes.plot(iterations[width - 1 :], smooth, label=name, linewidth=1.5)
    axes.plot(iterations, values, color=line.get_color(), alpha=0.25, linewidth=0.7)


# Of evaluate.py ------------------------------------------------------------------------------


def evaluation(real, judged, photo, shares, panels, caption, out):
    """All figures of a table: {name of a column, "" for all: [(what one shows, path)]}.

    real, judged: of evaluate.py. photo(j): (name, image) of a training photo. shares: of the
    variance, that the photos' two principal components explain. panels: of curves.
    """
    drawn = {measured.result["name"]: column(measured, photo, real.points, shares, caption, out)
             for measured in judged}
    powers = real.spectra | {name: spectrum for measured in judged
                             for name, spectrum in measured.spectra.items()}
    of_all = [
        ("Over steps", curves(panels, [measured.result for measured in judged], caption,
                              out / "curve.png")),
        ("Power spectra", spectra(powers, caption, out / "spectrum.png")),
        ("Embeddings of training and validation photos: two principal components",
         components(shares, {f"train + test, AA {real.result['aa_train']:.2f}": real.points},
                    f"REAL: embeddings\n{caption}", out / "pca_real.png"))]
    return drawn | {"": [(title, path) for title, path in of_all if path]}


def images(rows, title, path, cells=1):
    """Rows of labelled images: a sample, then its nearest photos, or photos that its pieces are of.

    rows: lists of (label, uint8 image (3, h, w)) or of (label, image, {number of a colour: cells to
    outline in it}), of cells × cells, counted row by row.
    """
    from matplotlib.collections import LineCollection

    columns = max(map(len, rows))  # all in one axes: each of their own would take seconds to draw
    figure, ((axes,),) = new_figure(max(2.4 * columns, 8), 2.6 * len(rows) + 0.6)  # for the title
    for i, row in enumerate(rows):
        for j, (label, image, *outlined) in enumerate(row):
            left, bottom = 1.05 * j, -1.14 * i
            axes.imshow(np.asarray(image).transpose(1, 2, 0),
                        extent=(left, left + 1, bottom, bottom + 1))
            axes.text(left + 0.5, bottom + 1.03, label, fontsize=9, ha="center")
            for color, places in (outlined[0] if outlined else {}).items():
                lines = outlines({divmod(int(place), cells) for place in places})
                lines = np.reshape(lines, (-1, 2, 2)) / cells
                lines = np.stack([left + lines[..., 0], bottom + 1 - lines[..., 1]], 2)
                axes.add_collection(LineCollection(lines, colors=f"C{color + 1}", linewidths=2))
    axes.set(xlim=(0, 1.05 * columns - 0.05), ylim=(1.14 - 1.14 * len(rows), 1.1))
    axes.axis("off")
    save_figure(figure, title, path)


def column(measured, photo, photo_points, shares, caption, out):
    """The figures of a column of the table: nearest photos, pieces, recovered photos, components.

    As evaluation takes them; photo_points: {"train": the photos' embeddings in their two principal
    components, "test": ...}. Returns what each shows, and its path.
    """
    result, name = measured.result, measured.result["name"]
    drawn = []

    def path(kind, title):
        drawn.append((title, out / f"{kind}_{files.slug(name)}.png"))
        return drawn[-1][1]

    for distance, (near, shown) in measured.near.items():
        title = f"nearest training photos by {distance}"
        suspects = {suspect["sample"] for suspect in result["suspects"][distance]}
        neighbours({i: measured.images[i] for i in shown}, near, suspects, photo,
                   f"{name}: {title}\n{caption}",
                   path(f"neighbours_{distance}", f"The samples nearest to photos, and their "
                        f"{title}"))
    title = "pieces that are nearer to a training photo than to any validation photo"
    pieces(measured.images, measured.pieces, measured.cells, photo, f"{name}: {title}\n{caption}",
           path("pieces", f"The samples with the most {title}"))
    if measured.recovered:
        title = "photos, and the nearest images that it can make"
        images(measured.recovered, f"{name}: {title}\n{caption}", path("recovered", title))
    panels = {f"{side} + synthetic, AA {result[f'aa_{side}']:.2f}":
              {side: points, **measured.points} for side, points in photo_points.items()}
    components(shares, panels, f"{name}: embeddings\n{caption}",
               path("pca", "Embeddings of photos and samples: two principal components"))
    return drawn


def neighbours(samples, near, suspects, photo, title, path):
    """Samples, each beside its four nearest training photos.

    samples: {number: (label, image)}. near: metrics.Neighbors of all samples. suspects: the numbers
    of suspected copies. photo: (name, image) of a training photo by its number.
    """
    rows = []
    for i, (label, image) in samples.items():
        rows.append([(label[-20:] + (": suspect" if i in suspects else ""), image)])
        for distance, j in zip(near.distances[i], near.indices[i], strict=True):
            name, found = photo(j)
            rows[-1].append((f"{name[-20:]}: {distance:.3f}", found))
    images(rows, title, path)


def pieces(samples, sources, side, photo, title, path):
    """Samples, each beside the photos that most of its pieces come from, these outlined in both.

    sources: {sample: [(photo, cells of the sample, cells of the photo)]}, of side × side cells.
    """
    rows = []
    for i, found in sources.items():
        label, image = samples[i]
        own = {color: cells for color, (_, cells, _) in enumerate(found)}
        count = sum(map(len, own.values()))
        rows.append([(f"{label[-20:]}: {count} pieces", image, own)])
        for color, (j, cells, places) in enumerate(found):
            name, source = photo(j)
            rows[-1].append((f"{name[-20:]}: {len(cells)}", source, {color: places}))
    images(rows, title, path, side)


def outlines(places):
    """The borders of the regions that cells {(row, column)} form: [((x, y), (x, y)), ...]."""
    sides = {(-1, 0): ((0, 0), (1, 0)), (1, 0): ((0, 1), (1, 1)),
             (0, -1): ((0, 0), (0, 1)), (0, 1): ((1, 0), (1, 1))}
    return [tuple((column + x, row + y) for x, y in side)
            for row, column in sorted(places) for (down, right), side in sides.items()
            if (row + down, column + right) not in places]


def components(explained, panels, title, path):
    """Panels of two sets each on the axes of the training photos' principal components.

    explained: the share of variance of each of the two. panels: {subtitle: {label: coordinates
    (n, 2)}}.
    """
    figure, axes = new_figure(6 * len(panels), 5, 1, len(panels), sharex=True, sharey=True)
    explained = " + ".join(f"{100 * share:.1f}%" for share in explained)
    for axis, (subtitle, sets) in zip(axes[0], panels.items(), strict=True):
        for (label, points), marker in zip(sets.items(), "ox", strict=True):
            axis.scatter(*points.T, s=16, marker=marker, label=label, alpha=0.7)
        axis.set(title=f"{subtitle}, variance {explained}", xlabel="component 1",
                 ylabel="component 2")
        axis.legend()
    return save_figure(figure, title, path)


def spectra(powers, title, path):
    """Power over frequency, and the log ratio of each spectrum to the first in two dimensions.

    powers: {name: natural logarithm (h, h // 2 + 1) of power}, the training photos first. None
    for h < 16.
    """
    (first, reference), *others = powers.items()
    if len(reference) < 16:
        return None
    wide = min(4, len(powers))
    figure, axes = new_figure(4.5 * wide, 4 * -(-len(powers) // wide) + 0.4,
                              -(-len(powers) // wide), wide)
    curves, *maps = axes.flat
    h = len(reference)
    frequencies = 2 * np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(h))
    many = max(4, h // 4)
    rings = (frequencies * many).round().astype(int).ravel()
    sizes = np.bincount(rings)
    for name, power in powers.items():
        means = np.bincount(rings, np.ravel(power)) / sizes
        curves.semilogy(np.arange(1, many + 1) / many, np.exp(means[1 : many + 1]), label=name,
                        color="0.3" if name == first else None)
    curves.set(xlabel="frequency / Nyquist's", ylabel="power (squared grey levels)", xlim=(0, 1))
    curves.legend(fontsize=8)
    for axis in maps[len(others):]:
        axis.axis("off")
    for axis, (name, power) in zip(maps, others, strict=False):
        ratio = np.asarray(power - reference)
        mirrored = np.roll(ratio[::-1], 1, axis=0)[:, :0:-1]
        shown = axis.imshow(np.fft.fftshift(np.concatenate([mirrored, ratio], 1), axes=0),
                            cmap="RdBu_r", vmin=-2, vmax=2, extent=(-1, 1, -1, 1))
        axis.set_title(f"{name}: ln of power / that of {first}", fontsize=9)
        figure.colorbar(shown, ax=axis, shrink=0.8)
    return save_figure(figure, title, path)


def curves(panels, results, title, path):
    """Numbers over steps, of runs with two or more of them; else None.

    panels: [(label, {what a line is called: the number's name}, a level to compare with)].
    results: as in report.py.
    """
    runs = {}
    for result in results:
        if "step" in result:
            folder = Path(result["path"]).parent.resolve()
            runs.setdefault((folder, result["model"]), []).append(result)
    runs = {run: sorted(found, key=lambda result: result["step"]) for run, found in runs.items()
            if len({result["step"] for result in found}) > 1}
    if not runs:
        return None
    figure, (axes,) = new_figure(12, 4.5, 1, 2)
    for axis, (label, lines, level) in zip(axes, panels, strict=True):
        for number, ((folder, model), found) in enumerate(runs.items()):
            steps = [result["step"] for result in found]
            for (name, row), style in zip(lines.items(), ("-", "--"), strict=True):
                axis.plot(steps, [result[row] for result in found], style, marker="o",
                          color=f"C{number}", label=f"{folder.name} ({model}), {name}")
                if all(row in result["intervals"] for result in found):
                    ends = zip(*(result["intervals"][row] for result in found), strict=True)
                    axis.fill_between(steps, *ends, alpha=0.12, color=f"C{number}", linewidth=0)
        axis.axhline(level, color="0.4", linewidth=1, linestyle=":", label="REAL")
        axis.set(xlabel="step (FastGAN: iterations, others: epochs)", ylabel=label)
        axis.legend(fontsize=8)
    axes[1].set_ylim(-0.03, 1.03)
    return save_figure(figure, f"{title}\nbands: 95% intervals", path)
