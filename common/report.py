"""The table of evaluate.py, for terminals, readers and loops.

A result is a dict of a column of the table: "name"; "kind", "real" (validation photos in the place
of samples), "judged" or "published"; numbers by the names of rows.Row; "intervals", {name: [low,
high]}; "suspects" of a judged one.
"""

import csv
import io
import json
import math
import sys

from common import cli, files
from common.rows import GROUPS

STUDY = [  # published, not ours: 331 images a set at 1024×1024
    {"name": f"published {name}", "kind": "published", "n": 331, **dict(zip(
        ("fid_train", "fid_validation", "aa_train", "aa_test", "privacy_loss"), numbers,
        strict=True))}
    for name, *numbers in [
        ("REAL", None, 63, 0.55, None, None), ("10K", 89, 87, 0.91, 0.91, 0.00),
        ("50K", 76, 74, 0.86, 0.85, -0.01), ("100K", 79, 78, 0.86, 0.84, -0.02),
        ("150K", 77, 77, 0.86, 0.85, -0.01)]
]


def rounded(row, result):
    """(a number, half its interval or None, both rounded; the digits after the point)."""
    value, digits = result[row.name], row.digits
    low, high = result.get("intervals", {}).get(row.name, (value, value))
    margin = max(high - value, value - low)
    if digits is None:  # KID's scale is that of the features; a gap may be of any size, too
        digits = max(0, 2 - math.floor(math.log10(max(abs(value), margin) or 1)))
    known = row.name in result.get("intervals", {})
    return round(value, digits) + 0, round(margin, digits) if known else None, digits  # never -0.0


def cell(row, result):
    """A number as the table shows it, ± half its interval; a dash for none."""
    if result.get(row.name) is None:
        return "–"
    value, margin, digits = rounded(row, result)
    return f"{value:.{digits}f}" + (f" ±{margin:.{digits}f}" if margin is not None else "")


def best(row, results):
    """Which columns to set in bold: of two or more that are judged, the nearest to the ideal."""
    if row.ideal is None:
        return set()
    off = {i: abs(rounded(row, result)[0] - row.ideal) for i, result in enumerate(results)
           if result.get(row.name) is not None and result["kind"] == "judged"}
    return {i for i in off if len(off) > 1 and off[i] < min(off.values()) + 1e-9}


def groups(rows, results):
    """[(the name of a group, its rows with a number in some column)], without empty ones."""
    shown = [row for row in rows if any(result.get(row.name) is not None for result in results)]
    found = [(group, [row for row in shown if row.group == group]) for group in GROUPS]
    return [(group, members) for group, members in found if members]


def beside(rows, results):
    """A paragraph for each row that belongs to no group of the table: its numbers, what it says."""
    found = []
    for row in rows:
        numbers = [f"{result['name']} {cell(row, result)}" for result in results
                   if result.get(row.name) is not None]
        if row.group not in GROUPS and numbers:
            found.append(f"{row.label}: {', '.join(numbers)}. This is {row.says}.")
    return found


def markdown(rows, results):
    """The table in Markdown, its columns aligned so that a terminal shows it well, too."""
    table = [["", *(result["name"].replace("|", r"\|") for result in results)]]
    for group, members in groups(rows, results):
        table.append([f"**{group}**", *("" for _ in results)])
        for row in members:
            bold = best(row, results)
            cells = [cell(row, result) for result in results]
            table.append([row.label, *(f"**{text}**" if i in bold else text
                                       for i, text in enumerate(cells))])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for label, *texts in table:
        padded = [text.rjust(width) for text, width in zip(texts, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label.ljust(widths[0]), *padded])} |")
    return "\n".join(lines)


def csv_text(rows, results):
    """One line a column of the table: its numbers, and the ends of their intervals."""
    names = [row.name for row in rows]
    ends = [f"{name}_{end}" for name in names for end in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "kind", "n", *names, *ends], lineterminator="\n",
                            extrasaction="ignore")
    writer.writeheader()
    for result in results:
        spread = {f"{name}_{end}": value for name, pair in result.get("intervals", {}).items()
                  for end, value in zip(("low", "high"), pair, strict=True)}
        writer.writerow({**result, **spread})
    return text.getvalue()


def write(rows, results, words, text, settings, caption, out, json_path):
    """metrics.json, metrics.csv and table.md in `out`, and on the terminal what table.md says.

    words, text: the verdict, and that in Markdown. json_path: where the JSON goes, too; "-" leaves
    stdout to it alone.
    """
    text = "\n\n".join([caption, text, markdown(rows, results), *beside(rows, results)]) + "\n"
    as_json = json.dumps({"settings": settings, "verdict": words, "columns": results},
                         indent=1)
    written = {out / "metrics.json": as_json, out / "table.md": text,
               out / "metrics.csv": csv_text(rows, results)}
    if json_path not in (None, "-"):
        written[json_path] = as_json
    for path, content in written.items():
        with files.replacing(path) as file:
            file.write(content.encode())
    cli.say(text, sys.stderr if json_path == "-" else sys.stdout)
    if json_path == "-":
        cli.say(as_json)
