"""The report: one HTML file with the words, the table and all pictures in it, for any browser.

It needs no script and nothing from outside. A click on a picture enlarges it.
"""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from common import files, report

SAMPLES, SUSPECTS = 16, 8  # of a column
WEIGHT = 4_400_000  # characters that up to four columns may have together
SIDES = (1024, 768, 512, 384, 256, 128)  # pixels: images are as large as that allows
QUALITY = 80  # of JPEG

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --page: #fff;
  --card: #f6f8fa; --band: #c3d9f4; --mark: #0b57b7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --soft: #9aa4af; --line: #3d444d; --page: #0f1318; --card: #181d24;
    --band: #2b4a70; --mark: #7ab4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1400px; margin: auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
a { color: var(--mark); }
nav a { margin-right: 1rem; white-space: nowrap; }
small, figcaption, .note { color: var(--soft); font-size: .85rem; }
.words { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 0 1rem; margin-bottom: 1rem; overflow-wrap: anywhere; }
h3 small { font-weight: 400; }
.few { display: grid; grid-template-columns: repeat(4, minmax(0, 10rem)); gap: 2px;
  margin-bottom: 1rem; }
.few.of8 { grid-template-columns: repeat(8, minmax(0, 10rem)); }
.few img { width: 100%; height: auto; display: block; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0 0 .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { min-width: 8.5rem; font-variant-numeric: tabular-nums; }
tbody th { min-width: 16rem; font-weight: 600; position: sticky; left: 0;
  background: var(--page); z-index: 1; }
tbody th small { display: block; font-weight: 400; }
tr.group th { background: var(--card); text-transform: capitalize; }
.bar { display: block; position: relative; height: 1rem; margin: .2rem .6rem 0 0; }
.bar i { position: absolute; top: 0; bottom: 0; }
.bar .band { background: var(--band); border-radius: 2px; }
.bar .ideal { border-left: 2px dashed var(--soft); }
.bar .interval { top: 40%; bottom: 40%; background: var(--mark); }
.bar .value { top: 10%; bottom: 10%; width: 3px; margin-left: -1px; background: var(--mark); }
.images { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 18rem), 1fr)); }
.pairs { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.pairs > div { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
figure { margin: 0 0 .8rem; overflow-wrap: anywhere; }
figure img { width: 100%; height: auto; display: block; cursor: zoom-in; }
figure.plot { max-width: 1100px; }
figure.plot img { width: auto; max-width: 100%; background: #fff; }
input { position: absolute; opacity: 0; }
input:focus-visible + img { outline: 3px solid var(--mark); }
figure input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; z-index: 2;
  max-width: none; object-fit: contain; background: #000d; cursor: zoom-out; }
@media (max-width: 640px) {
  thead { position: absolute; clip-path: inset(50%); }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid var(--line); }
  tbody th { grid-column: 1 / -1; }
  tbody th { position: static; }
  .few.of8 { grid-template-columns: repeat(4, 1fr); }
  th, td { border: 0; min-width: 0; }
  td::before { content: attr(data-column); display: block; color: var(--soft); font-size: .8rem;
    overflow-wrap: anywhere; } }
@media print {
  @page { margin: 1cm; }
  nav { display: none; }
  .scroll { overflow: visible; }
  th, td { min-width: 0; padding: .2rem; font-size: 7pt; }
  tbody th { position: static; min-width: 4.5cm; }
  th small { font-size: 6.5pt; }
  h2, h3 { break-after: avoid; }
  main { max-width: none; padding: 0; }
  body { font-size: 9pt; }
  .bar i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  article, figure, tr { break-inside: avoid; }
  figure input:checked + img { position: static; width: 100%; height: auto; } }
"""


def write(path, caption, words, rows, results, judged, photo, figures):
    """The report of a table.

    words: of verdict.parts. rows, results: as report.py takes them. judged: of evaluate.py, with
    images of the first SAMPLES samples and of the first SUSPECTS suspects by each distance. photo:
    (name, image) of a training photo by its number. figures: {name of a column, "" for all: [(what
    it shows, path)]}.
    """
    names = [measured.result["name"] for measured in judged]
    links = [("verdict", "Verdict"), ("numbers", "Numbers"),
             *((place(name), name) for name in names), ("all", "All columns")]
    nav = " ".join(f'<a href="#{escape(to)}">{escape(text)}</a>' for to, text in links)
    title = f"{', '.join(names[:4])}{', …' if names[4:] else ''}: how good, and are they copies?"
    parts = [f"<h1>{escape(title)}</h1><p class=note>{escape(caption)}</p><nav>{nav}</nav>",
             section("verdict", "The verdict", verdict(words, judged, photo)),
             section("numbers", "The numbers", numbers(rows, results)),
             *(section(place(name), name, column(name, measured, photo, figures[name],
                                                 WEIGHT // min(4, len(judged))))
               for name, measured in zip(names, judged, strict=True)),
             section("all", "All columns", "".join(plot(*found) for found in figures[""]))]
    text = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n"
            + "\n".join(parts) + "\n</main></body></html>\n")
    with files.replacing(path) as file:
        file.write(text.encode())


def place(name):
    """The id of a column's section."""
    return f"column-{files.slug(name)}"


def section(name, title, content):
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>\n{content}</section>'


def verdict(parts, judged, photo):
    """A card for all columns, one for photos, and one for each column, with its first samples."""
    said = dict(parts)
    names = [measured.result["name"] for measured in judged]
    few = range(min([8, *(measured.result["n"] for measured in judged)]))
    of_all = [*(card(heading, "", said[heading]) for heading in said if heading not in names),
              card("Photos", "of training, to compare", {}, [photo(j)[1] for j in few])]
    cards = []
    for name, measured in zip(names, judged, strict=True):
        cards.append(card(name, measured.result.get("path", ""), said.get(name, {}),
                          [image for _, image in first_samples(measured)[:4]],
                          f' href="#{place(name)}"'))
    return f"{''.join(of_all)}<div class=words>{''.join(cards)}</div>"


def card(heading, note, said, images=(), link=""):
    """A heading, a strip of images, and what is said of them."""
    strip = "".join(f'<img alt="{escape(heading)}" {jpeg(image, 160)}>' for image in images)
    words = "".join(f"<dt>{escape(part.capitalize())}<dd>{lead(text)}"
                    for part, text in said.items())
    return (f"<article><h3>{escape(heading)} <small>{escape(note)}</small></h3>"
            + (f'<a class="few of{len(images)}"{link}>{strip}</a>' if strip else "")
            + (f"<dl>{words}</dl>" if words else "") + "</article>")


def lead(text):
    """What comes before a colon in bold, and no line break before a ±."""
    first, colon, rest = escape(text).partition(": ")
    bold = f"<strong>{first}{colon}</strong>{rest}" if colon else first
    return bold.replace(" ±", "&nbsp;±")


# The table -----------------------------------------------------------------------------------


def numbers(rows, results):
    """The table: a row's name and sentence, then a number, ± half its interval, and its bar."""
    header = "".join(f"<th scope=col>{escape(result['name'])}" for result in results)
    lines = []
    for group, members in report.groups(rows, results):
        lines.append(f'<tr class=group><th scope=rowgroup colspan="{len(results) + 1}">{group}')
        for row in members:
            best = report.best(row, results)
            cells = "".join(cell(row, result, results, i in best)
                            for i, result in enumerate(results))
            lines.append(f"<tr><th scope=row>{escape(row.label)}<small>{escape(row.says)}</small>"
                         f"{cells}")
    return ("<p class=note>REAL is what photos score, validation photos in the place of samples; "
            "no generator is expected to do better. ± is half a 95% interval; numbers whose "
            "intervals overlap may be equal. In the bars, the tick is the number, the line its "
            "interval, the band REAL's interval, the dashed line the ideal. Bold is nearest to the "
            "ideal.</p><div class=scroll>"
            f"<table><thead><tr><th>{header}</thead><tbody>" + "\n".join(lines)
            + "</tbody></table></div>"
            + "".join(f"<p>{escape(text)}" for text in report.beside(rows, results)))


def cell(row, result, results, bold):
    """A number, with its exact value and interval in its title, and its bar."""
    text = report.cell(row, result)
    if result.get(row.name) is None:
        return f'<td data-column="{escape(result["name"])}">{text}'
    value, ends = result[row.name], result.get("intervals", {}).get(row.name)
    exact = f"{value:.6g}" + (f", 95% interval {ends[0]:.6g} to {ends[1]:.6g}" if ends else "")
    text = f"<b>{text}</b>" if bold else text
    text = text.replace(" ±", "&nbsp;±")
    return (f'<td data-column="{escape(result["name"])}" title="{exact}">{text}'
            f"{bar(row, result, results)}")


def bar(row, result, results):
    """A number and its interval as lines, REAL's band behind them and a mark at the ideal."""

    def ends(of):
        value = of.get(row.name)
        return value is not None and of.get("intervals", {}).get(row.name, [value, value])

    known = [x for of in results if ends(of) for x in ends(of)]
    known += [row.ideal] if row.ideal is not None else []
    first, width = min(known), max(known) - min(known)
    if width == 0:
        return ""

    def along(low, high=None):
        left = f"left:{2 + 96 * (low - first) / width:.1f}%"
        return left + (f";width:{96 * (high - low) / width:.1f}%" if high is not None else "")

    real = next((of for of in results if of["kind"] == "real"), {})
    marks = [("band", along(*ends(real)))] if ends(real) else []
    marks += [("ideal", along(row.ideal))] if row.ideal is not None else []
    marks += [("interval", along(*ends(result))), ("value", along(result[row.name]))]
    return "<span class=bar>" + "".join(f'<i class={kind} style="{style}"></i>'
                                        for kind, style in marks) + "</span>"


# Pictures ------------------------------------------------------------------------------------


def first_samples(measured):
    return [measured.images[i] for i in range(min(SAMPLES, measured.result["n"]))]


def column(name, measured, photo, figures, weight):
    """The first samples, suspects beside their photos, and figures: as large as their weight in
    characters allows."""
    samples, pairs = first_samples(measured), []
    suspects = measured.result["suspects"]
    for distance, found in suspects.items():
        nearest = measured.near[distance][0].indices[:, 0]
        for suspect in found[:SUSPECTS]:
            source, near = photo(nearest[suspect["sample"]])
            pairs.append((measured.images[suspect["sample"]],
                          (f"{source}, {distance} distance {suspect['distance']:.3f}", near)))
    for side in SIDES:
        text = "<h3>Samples, not picked</h3><div class=images>" + "".join(
            figure(image, label, f"{label} of {name}", side) for label, image in samples) + "</div>"
        if pairs:
            counts = ", ".join(f"{len(found)} by {kind} distance"
                               for kind, found in suspects.items())
            text += ("<h3>Suspected copies, each beside its nearest training photo <small>"
                     f"{counts}; the nearest {SUSPECTS} are shown</small></h3><div class=pairs>")
            for (label, image), (source, near) in pairs:
                text += (f"<div>{figure(image, label, f'{label} of {name}', side // 2)}"
                         + figure(near, source, f"the training photo nearest to {label}", side // 2)
                         + "</div>")
            text += "</div>"
        text += "".join(plot(*found, max(2 * side, 800)) for found in figures)
        if len(text) < weight:
            break
    return text


def plot(title, path, side=1400):
    """A figure from its file."""
    with Image.open(path) as image:
        image = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return f"<h3>{escape(title)}</h3>" + figure(image, "", title, side, " class=plot")


def figure(image, label, alt, side, kind=""):
    """An image that a click enlarges: a checkbox, hidden, whose label is the image."""
    alt = escape(alt)
    return (f'<figure{kind}><label title="Enlarge, or back"><input type=checkbox autocomplete=off '
            f'aria-label="Enlarge: {alt}"><img alt="{alt}" {jpeg(image, side)}></label>'
            + (f"<figcaption>{escape(label)}</figcaption>" if label else "") + "</figure>")


def jpeg(image, side):
    """A uint8 image (3, h, w), shrunk to `side`, as an img's size and source."""
    image = Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)))
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    return f'width={image.width} height={image.height} src="data:image/jpeg;base64,{data}"'
