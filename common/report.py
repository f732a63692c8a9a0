"""The table and the figures of evaluate.py.

A result is a dict of a column of the table: "name"; "kind", "real" (validation photos in the place
of samples), "judged" or "published"; numbers by the names in ROWS; "intervals", {row: [low, high]}.
"""

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np

from common import files

ROWS = {  # name in JSON and CSV: (in the table, the ideal or None, digits; None: 3 in all)
    "fid_train": ("FID train", 0, 1),
    "fid_validation": ("FID validation", 0, 1),
    "fid_infinity_train": ("FID∞ train", 0, 1),
    "fid_infinity_validation": ("FID∞ validation", 0, 1),
    "kid_train": ("KID train", 0, None),
    "kid_validation": ("KID validation", 0, None),
    "fd_dinov2_train": ("FD-DINOv2 train", 0, 1),
    "fd_dinov2_validation": ("FD-DINOv2 validation", 0, 1),
    "fd_dinov2_infinity_train": ("FD∞-DINOv2 train", 0, 1),
    "fd_dinov2_infinity_validation": ("FD∞-DINOv2 validation", 0, 1),
    "kd_dinov2_train": ("KD-DINOv2 train", 0, None),
    "kd_dinov2_validation": ("KD-DINOv2 validation", 0, None),
    "precision": ("precision", 1, 2),
    "recall": ("recall", 1, 2),
    "density": ("density", 1, 2),
    "coverage": ("coverage", 1, 2),
    "spectrum_low": ("spectrum, low", 0, 2),
    "spectrum_middle": ("spectrum, middle", 0, 2),
    "spectrum_high": ("spectrum, high", 0, 2),
    "spectrum_grid": ("spectrum, grid", 0, 2),
    "aa_train": ("AA train", 0.5, 2),
    "aa_test": ("AA test", 0.5, 2),
    "privacy_loss": ("privacy loss", 0, 2),
    "copies": ("suspected copies", 0, 2),
    "authpct": ("AuthPct", None, 0),
    "ct": ("C_T", 0, 1),
    "aa_train_lpips": ("AA train, LPIPS", 0.5, 2),
    "aa_test_lpips": ("AA test, LPIPS", 0.5, 2),
    "privacy_loss_lpips": ("privacy loss, LPIPS", 0, 2),
    "copies_lpips": ("suspected copies, LPIPS", 0, 2),
    "authpct_lpips": ("AuthPct, LPIPS", None, 0),
    "pieces": ("pieces nearer to training", 0.5, 2),
    "piece_photos": ("photos they come from", None, 0),
    "recovery_gap": ("recovery gap", 0, None),
    "recovery_p": ("its p value", None, 4),
}
STUDY = [  # published, not ours: 331 images a set at 1024×1024
    {"name": f"published {name}", "kind": "published", "n": 331, **dict(zip(
        ("fid_train", "fid_validation", "aa_train", "aa_test", "privacy_loss"), numbers,
        strict=True))}
    for name, *numbers in [
        ("REAL", None, 63, 0.55, None, None), ("10K", 89, 87, 0.91, 0.91, 0.00),
        ("50K", 76, 74, 0.86, 0.85, -0.01), ("100K", 79, 78, 0.86, 0.84, -0.02),
        ("150K", 77, 77, 0.86, 0.85, -0.01)]
]


def rounded(row, value):
    """(the value, rounded to its row's digits after the point, their number)."""
    digits = ROWS[row][2]
    if digits is None:  # KID's scale is that of the features; a gap may be of any size, too
        digits = max(0, 2 - math.floor(math.log10(abs(value) or 1)))
    return round(value, digits) + 0, digits  # + 0: never -0.00


def cell(row, result):
    """A number as the table shows it, ± half its interval; a dash for none."""
    if result.get(row) is None:
        return "–"
    value, digits = rounded(row, result[row])
    low, high = result.get("intervals", {}).get(row, (None, None))
    if low is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ±{max(high - result[row], result[row] - low):.{digits}f}"


def best(row, results):
    """Which columns to set in bold: of two or more that are judged, the nearest to the ideal."""
    if ROWS[row][1] is None:
        return set()
    off = {i: abs(rounded(row, result[row])[0] - ROWS[row][1]) for i, result in enumerate(results)
           if result.get(row) is not None and result["kind"] == "judged"}
    return {i for i in off if len(off) > 1 and off[i] < min(off.values()) + 1e-9}


def table(results):
    """The table as rows of (text, whether it is bold); the header first, then rows with numbers."""
    rows = [[("", False), *((result["name"], False) for result in results)]]
    for row, (label, _, _) in ROWS.items():
        if any(result.get(row) is not None for result in results):
            winners = best(row, results)
            rows.append([(label, False), *((cell(row, result), i in winners)
                                           for i, result in enumerate(results))])
    return rows


def markdown(results):
    """The table in Markdown, its columns aligned so that a terminal shows it well, too."""
    rows = [[f"**{text}**" if bold else text for text, bold in row] for row in table(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for label, *texts in rows:
        padded = [text.rjust(width) for text, width in zip(texts, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label.ljust(widths[0]), *padded])} |")
    return "\n".join(lines)


def csv_text(results, note):
    """One line a column of the table: its numbers, and the ends of their intervals."""
    ends = [f"{row}_{end}" for row in ROWS for end in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "n", *ROWS, *ends, "note"], lineterminator="\n",
                            extrasaction="ignore")
    writer.writeheader()
    for result in results:
        spread = {f"{row}_{end}": value for row, pair in result.get("intervals", {}).items()
                  for end, value in zip(("low", "high"), pair, strict=True)}
        remark = "published" if result["kind"] == "published" else note
        writer.writerow({"note": remark, **result, **spread})
    return text.getvalue()


def write(results, settings, caption, out, json_path):
    """The table as metrics.json, metrics.csv, table.md and table.png in `out` and on the terminal.

    json_path: where the JSON goes, too; "-" leaves stdout to it alone.
    """
    caption += "; ± half a 95% interval"
    text = f"{caption}\n\n{markdown(results)}\n"
    as_json = json.dumps({"settings": settings, "columns": results}, indent=1)
    written = {out / "metrics.json": as_json, out / "table.md": text,
               out / "metrics.csv": csv_text(results, settings["note"])}
    if json_path not in (None, "-"):
        written[json_path] = as_json
    for path, content in written.items():
        with files.replacing(path) as file:
            file.write(content.encode())
    table_figure(results, caption, out / "table.png")

    messages = sys.stderr if json_path == "-" else sys.stdout
    print(text, file=messages)
    for result in results:
        for kind, found in result.get("suspects", {}).items():
            if found:
                few = ", ".join(suspect["name"] for suspect in found[:5])
                dots = ", ..." if len(found) > 5 else ""
                print(f"{result['name']}: {len(found)} of {settings['n']} nearer to a training "
                      f"photo than 99% of the validation photos by {kind}: {few}{dots}",
                      file=messages)
    print(f"written to {out}/", file=messages)
    if json_path == "-":
        print(as_json)


# Figures -------------------------------------------------------------------------------------


def new_figure(width, height, rows=1, columns=1, **sharing):
    """(a figure of so many inches, its axes (rows, columns)); it needs no display."""
    from matplotlib.figure import Figure  # slow to import, and --interpolate does without

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def save_figure(figure, title, path):
    """A PNG; the title gets a line for each of its parts between semicolons."""
    figure.suptitle(title.replace("; ", "\n"), fontsize=10)
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=100, pil_kwargs={"compress_level": 3})


def table_figure(results, caption, path):
    """The table as a picture."""
    rows = table(results)
    texts = [[text for text, _ in row] for row in rows]
    figure, ((axes,),) = new_figure(2.2 + 1.7 * len(results), 0.6 + 0.28 * len(rows))
    axes.axis("off")
    drawn = axes.table(texts[1:], colLabels=texts[0], bbox=[0, 0, 1, 1], cellLoc="center",
                       colWidths=[2.2] + [1.7] * len(results))
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    for (i, j), box in drawn.get_celld().items():
        box.set_edgecolor("0.8")
        if i == 0 or rows[i][j][1]:
            box.set_text_props(weight="bold")
    save_figure(figure, caption, path)


def images_figure(rows, title, path, cells=1):
    """Rows of labelled images: a sample, then its nearest photos, or photos that its pieces are of.

    rows: lists of (label, uint8 image (3, h, w)) or of (label, image, {number of a colour: cells to
    outline in it}), of cells × cells, counted row by row.
    """
    from matplotlib.collections import LineCollection

    columns = max(map(len, rows))  # all in one axes: each of their own would take seconds to draw
    figure, ((axes,),) = new_figure(2.4 * columns, 2.6 * len(rows) + 0.6)
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


def outlines(places):
    """The borders of the regions that cells {(row, column)} form: [((x, y), (x, y)), ...]."""
    sides = {(-1, 0): ((0, 0), (1, 0)), (1, 0): ((0, 1), (1, 1)),
             (0, -1): ((0, 0), (0, 1)), (0, 1): ((1, 0), (1, 1))}
    return [tuple((column + x, row + y) for x, y in side)
            for row, column in sorted(places) for (down, right), side in sides.items()
            if (row + down, column + right) not in places]


def pca_figure(pca, panels, title, path):
    """Panels of two embedding sets each on the axes of the training photos' components.

    pca: scikit-learn's, of two components. panels: [(subtitle, {label: embeddings (n, d)})].
    """
    figure, axes = new_figure(6 * len(panels), 5, 1, len(panels), sharex=True, sharey=True)
    explained = " + ".join(f"{100 * share:.1f}%" for share in pca.explained_variance_ratio_)
    for axis, (subtitle, sets) in zip(axes[0], panels, strict=True):
        for (label, embeddings), marker in zip(sets.items(), "ox", strict=True):
            axis.scatter(*pca.transform(embeddings).T, s=16, marker=marker, label=label, alpha=0.7)
        axis.set(title=f"{subtitle}, variance {explained}", xlabel="component 1",
                 ylabel="component 2")
        axis.legend()
    save_figure(figure, title, path)


def spectrum_figure(spectra, title, path):
    """Power over frequency, and the log ratio of each spectrum to the first in two dimensions.

    spectra: {name: natural logarithm (h, h // 2 + 1) of power}, the training photos first. Nothing
    for h < 16.
    """
    (first, reference), *others = spectra.items()
    if len(reference) < 16:
        return
    wide = min(4, len(spectra))
    figure, axes = new_figure(4.5 * wide, 4 * -(-len(spectra) // wide) + 0.4,
                              -(-len(spectra) // wide), wide)
    curves, *maps = axes.flat
    h = len(reference)
    frequencies = 2 * np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(h))
    many = max(4, h // 4)
    rings = (frequencies * many).round().astype(int).ravel()
    sizes = np.bincount(rings)
    for name, spectrum in spectra.items():
        means = np.bincount(rings, np.ravel(spectrum)) / sizes
        curves.semilogy(np.arange(1, many + 1) / many, np.exp(means[1 : many + 1]), label=name,
                        color="0.3" if name == first else None)
    curves.set(xlabel="frequency / Nyquist's", ylabel="power (squared grey levels)", xlim=(0, 1))
    curves.legend(fontsize=8)
    for axis in maps[len(others):]:
        axis.axis("off")
    for axis, (name, spectrum) in zip(maps, others, strict=False):
        ratio = np.asarray(spectrum - reference)
        mirrored = np.roll(ratio[::-1], 1, axis=0)[:, :0:-1]
        shown = axis.imshow(np.fft.fftshift(np.concatenate([mirrored, ratio], 1), axes=0),
                            cmap="RdBu_r", vmin=-2, vmax=2, extent=(-1, 1, -1, 1))
        axis.set_title(f"{name}: ln of power / that of {first}", fontsize=9)
        figure.colorbar(shown, ax=axis, shrink=0.8)
    save_figure(figure, title, path)


def curve_figure(results, real, caption, path):
    """FID and adversarial accuracy over steps, of runs with two or more of them; else nothing."""
    runs = {}
    for result in results:
        if "step" in result:
            folder = Path(result["path"]).parent.resolve()
            runs.setdefault((folder, result["model"]), []).append(result)
    runs = {run: sorted(found, key=lambda result: result["step"]) for run, found in runs.items()
            if len({result["step"] for result in found}) > 1}
    if not runs:
        return
    figure, (axes,) = new_figure(12, 4.5, 1, 2)
    fid = "fid" if "fid_validation" in real else "fd_dinov2"
    label = ROWS[f"{fid}_train"][0].split()[0]
    panels = [(label, {f"{fid}_train": "-", f"{fid}_validation": "--"}, real[f"{fid}_validation"]),
              ("adversarial accuracy", {"aa_train": "-", "aa_test": "--"}, real["aa_train"])]
    for axis, (label, rows, reference) in zip(axes, panels, strict=True):
        for number, ((folder, model), found) in enumerate(runs.items()):
            steps = [result["step"] for result in found]
            for row, style in rows.items():
                axis.plot(steps, [result[row] for result in found], style, marker="o",
                          color=f"C{number}",
                          label=f"{folder.name} ({model}), {ROWS[row][0].split()[1]}")
                if all(row in result["intervals"] for result in found):
                    ends = zip(*(result["intervals"][row] for result in found), strict=True)
                    axis.fill_between(steps, *ends, alpha=0.12, color=f"C{number}", linewidth=0)
        axis.axhline(reference, color="0.4", linewidth=1, linestyle=":", label="REAL")
        axis.set(xlabel="step (FastGAN: iterations, others: epochs)", ylabel=label)
        axis.legend(fontsize=8)
    axes[1].set_ylim(-0.03, 1.03)
    save_figure(figure, f"{caption}\nbands: 95% intervals", path)
