"""The verdict in words: what the numbers say of quality, variety and copying, and what is best.

    words = verdict(results, settings)     # as in metrics.json, REAL first
    print(markdown(words))

A sentence says what the 95% intervals of its numbers bear, and names these numbers: two differ if
their intervals don't overlap. Numbers without an interval are not spoken of.
"""

import math
from pathlib import Path
from typing import NamedTuple

from common import report, rows

LEAST = 24  # images a set: intervals of fewer were not tested (docs/metrics.md)
FEW = 5  # names a sentence
FAINT = 0.3  # of a grid, in log power: blur alone bends the spectrum by half of it
COPIES = {"cosine": "copies", "lpips": "copies_lpips"}  # the rows of suspects by each distance


class Known(NamedTuple):
    """A number with its 95% interval, and its text in the table."""

    value: float
    low: float
    high: float
    text: str

    def __str__(self):
        return self.text

    @property
    def percent(self):
        """A share as percent, rounded as in the table."""
        margin = 100 * round(max(self.high - self.value, self.value - self.low), 2)
        return f"{100 * round(self.value, 2):.0f}%" + (f" ±{margin:.0f}" if margin else "")

    def beyond(self, other):
        """Whether it is larger than another number by more than both intervals."""
        return self.low > other.high


def known(result, kind):
    """{name of a row, with FID or KID in it for any features: Known} of the numbers of a result
    that have an interval."""
    found = {}
    for row in (*rows.ROWS, *rows.DETAILS):
        renamed = row._replace(name=rows.name_of(row.name, kind))
        if renamed.name in result.get("intervals", {}):
            found[row.name] = Known(result[renamed.name], *result["intervals"][renamed.name],
                                    report.cell(renamed, result))
    return found


# A column: own and real are its and REAL's known numbers -------------------------------------


def nearer(own, real):
    """Whether a column is nearer to validation photos than photos are to each other."""
    return (real["aa_train"].beyond(own["aa_test"])
            or real["fid_validation"].beyond(own["fid_validation"]))


def quality(own, real, fd):
    """How far from photos, and what the spectrum says is wrong. fd: what the table calls FID."""
    told, photos = own["aa_test"], real["aa_train"]
    distance, floor = own["fid_validation"], real["fid_validation"]
    wrong = [text for text in (detail(own, real), grid(own, real)) if text]
    if nearer(own, real):
        lead = "Nearer to validation photos than photos are to each other, as copies of them are"
    elif not told.beyond(photos):
        lead = ("Not told from photos one by one, but as a whole" if distance.beyond(floor) else
                "No difference from photos is seen" + (" but in the spectrum" if wrong else ""))
    else:
        lead = "Far from photos" if told.low > 0.9 else "Can be told from photos"
    if floor.beyond(distance):
        far = "smaller than validation photos'"
    elif not distance.beyond(floor):
        far = "the same as validation photos' within the intervals"
    elif floor.low > 0:
        times = distance.value / floor.value
        far = f"{times:.{1 if times < 9.95 else 0}f} times validation photos'"
    else:
        far = "larger than validation photos'"
    text = (f"{lead}: a nearest-neighbour test tells {told.percent} of images and photos apart "
            f"(50% is guessing; validation photos {photos.percent}). {fd}, their distance from "
            f"photos, is {far}: {distance} and {floor}.")
    return " ".join([text, *([sentence("; ".join(wrong))] if wrong else [])])


def detail(own, real):
    """What fine detail has too much or too little of, or None."""
    if "spectrum_high" not in own or not own["spectrum_high"].beyond(real["spectrum_high"]):
        return None
    off, (signed, low, high, _) = own["spectrum_high"], own["spectrum_high_signed"]
    if low <= 0 <= high or abs(signed) < off.value / 2:
        return (f"the power in fine detail is off by a factor of {math.exp(off.value):.1f} on "
                "average, up and down")
    power, margin = math.exp(signed), (math.exp(high) - math.exp(low)) / 2
    if power >= 1.5:
        share = f"{power:.1f} ±{margin:.1f} times"
    elif math.exp(high) < 0.01:
        share = "less than 1% of"
    else:
        digits = 0 if power > 0.095 else 1
        share = f"{100 * power:.{digits}f}% ±{100 * margin:.{digits}f} of"
    return f"fine detail is too {'strong' if signed > 0 else 'weak'}, {share} its power in photos"


def grid(own, real):
    """A regular grid that is more than faint, or None; its period, where that shows."""
    whole = own.get("spectrum_grid")
    if not whole or not whole.beyond(real["spectrum_grid"]) or whole.value < FAINT:
        return None
    shown = [period for period in (8, 4, 2)
             if own[f"spectrum_grid_{period}"].beyond(real[f"spectrum_grid_{period}"])]
    grid = own[f"spectrum_grid_{shown[0]}"] if shown else whole
    power, low, high = map(math.exp, grid[:3])
    return (f"a regular grid{f' of {shown[0]} pixels' if shown else ''} shows, with {power:.1f} "
            f"±{(high - low) / 2:.1f} times the power around it")


def variety(own, real):
    """As varied as photos or not, and how many of the photos they cover."""
    number, photos = own["effective_images"], real["effective_images"]
    recall, reach = own.get("recall"), real.get("recall")
    if number.high < 1.1 < photos.low:
        lead = "Collapsed, nearly all of them are one image"
    elif number.high < min(2, (1 + photos.low) / 2):
        lead = "Collapsed, hardly any variety"
    elif number.high < photos.low / 2:
        lead = "Little variety, less than half of photos'"
    elif recall and recall.high < reach.low / 2:
        lead = ("Little of the photos' variety" if photos.beyond(number) else
                "Varied, but most photos are not covered")
    elif photos.beyond(number) or recall and reach.beyond(recall):
        lead = "Less varied than photos"
    elif number.beyond(photos):
        lead = "More varied than photos"
    else:
        lead = "As varied as photos, within the intervals"
    covered = (f"they cover {recall.percent} of the photos, validation photos {reach.percent}; "
               if recall and reach else "")
    return (f"{lead}: {covered}they vary as {number} images with nothing in common would, photos "
            f"as {photos}.")


class Traces(NamedTuple):
    """What copies leave: {what: a sentence with its number}."""

    signs: dict  # beyond chance
    odd: dict  # beyond chance, the other way: nearer to validation photos
    rest: dict  # within it


def traces(own, result, settings):
    """The Traces of suspects, pieces, privacy loss and the recovery gap."""
    by_chance, n = chance(settings["validation_photos"]), settings["n"]
    tests = [(COPIES[kind], suspected(found, kind, n, by_chance), by_chance, 0)
             for kind, found in result["suspects"].items()]
    tests += [("pieces", f"{own['pieces'].percent} of pieces are more like training than like "
               "validation photos (50% by chance)", 0.5, 0.5),
              ("privacy_loss", f"privacy loss is {own['privacy_loss']} (0 by chance)", 0, 0)]
    if "recovery_gap" in own:
        tests.append(("recovery_gap", "training photos are recovered better than validation photos "
                      f"by {own['recovery_gap']} (0 by chance)", 0, -math.inf))
    found = Traces({}, {}, {})
    for name, text, most, least in tests:  # what is usual
        number = own.get(name)
        above, below = number and number.low > most, number and number.high < least
        (found.signs if above else found.odd if below else found.rest)[name] = text
    return found


def copying(own, result, settings):
    """Signs of copying, or how small a share of copies would have shown."""
    signs, odd, rest = traces(own, result, settings)
    said = []
    if signs:
        lead = ("Parts may be copied, exact copies of whole photos are not seen"
                if [*signs] == ["pieces"] else "Photos may be copied")
        said.append(f"{lead}: {'; '.join(signs.values())}. Look at them in the figures.")
    if odd:
        said.append("Nearer to validation than to training photos: "
                    f"{'; '.join(odd.values())}. Trained on those?")
    if result["other_photos"]:
        said.append("It was trained on other photos than these." if said else
                    "Not tested, since it was trained on other photos.")
    return " ".join(said) or no_sign(own, rest, settings)


def no_sign(own, rest, settings):
    """That there is no sign of copying, and which copies would have shown."""
    text = f"No sign beyond chance: {'; '.join(rest.values())}."
    if own["aa_test"].low > 0.9:
        return f"{text} Copies as far from photos as these images would not show."
    if "copies" not in own:  # of more than 12,000 photos and samples
        return text
    n = settings["n"]
    share = noticed(n, settings["validation_photos"])
    return (f"{text} {math.ceil(share * n):,} exact copies ({100 * share:.0f}%) would most likely "
            "have shown, fewer may not.")


def suspected(found, kind, n, by_chance):
    """How many suspects there are by a distance, and the nearest of them."""
    by = "" if kind == "cosine" else f" by {kind.upper()}"
    names = ", ".join([suspect["name"] for suspect in found[:FEW]] + ["…"] * (len(found) > FEW))
    return (f"{len(found)} of {n:,} images {'lies' if len(found) == 1 else 'lie'} suspiciously "
            f"near to a training photo{by} ({by_chance * n:.1f} by chance)"
            + (f": {names}" if names else ""))


def chance(validation):
    """The mean share of suspects among samples that are drawn as validation photos are.

    Suspects are nearer than the 0.01 quantile of so many validation photos' distances: the place
    0.01 (validation - 1) in their order, and of validation + 1 gaps one more lies below it.
    """
    return (0.01 * (validation - 1) + 1) / (validation + 1)


def noticed(n, validation):
    """The share of copies among n samples that nine of ten draws show as a sign.

    A sign is an interval above chance's share; its standard error is that of a binomial share and
    of chance's own, which hangs on the few nearest validation photos.
    """
    usual = chance(validation)
    of_chance = usual**2 / (0.01 * (validation - 1) + 1)
    for share in (i / 1000 for i in range(1, 1000)):
        all_suspects = min(1, share + usual)
        error = math.sqrt(all_suspects * (1 - all_suspects) / n + of_chance)
        if share >= (1.96 + 1.28) * error:
            return share
    return 1


# Several columns -----------------------------------------------------------------------------


def best(columns, doubtful, fd):
    """Which column is nearest to the validation photos, or that none is beyond its interval.

    columns: {name: its known numbers}. doubtful: the names of those that may be copies.
    """
    far = {name: own["fid_validation"] for name, own in columns.items()}
    order = sorted(far, key=lambda name: far[name].value)
    first = [name for name in order if not far[name].beyond(far[order[0]])]
    number = {name: f"{far[name]}" + (" (but see copying)" if name in doubtful else "")
              for name in order}
    if len(first) == 1:
        text = (f"{order[0]} is best, beyond the intervals: {fd} {number[order[0]]}, next is "
                f"{order[1]} with {number[order[1]]}.")
    else:
        listed = [f"{name} {number[name]}" for name in first[:FEW]] + ["…"] * (len(first) > FEW)
        worse = len(order) - len(first)
        text = (f"Too close to call by {fd}: {', '.join(listed)}"
                + (f"; {worse} other{'s are' if worse > 1 else ' is'} worse." if worse else "."))
    told = {name: own["aa_test"] for name, own in columns.items()}
    other, ours = (min(names, key=lambda name: abs(told[name].value - 0.5))
                   for names in (told, first))
    if told[ours].beyond(told[other]):
        text += (f" The nearest-neighbour test prefers {other}: {told[other].percent} told apart, "
                 f"{ours} {told[ours].percent}.")
    return text


def progress(judged, columns, fd):
    """Whether more steps still helped, of each run with several; None without one."""
    runs = {}
    for result in judged:
        if "step" in result:
            run = result["model"], Path(result["path"]).parent.resolve()
            runs.setdefault(run, {})[result["step"]] = columns[result["name"]]["fid_validation"]
    said = []
    for (model, folder), found in runs.items():
        if len(found) < 2:
            continue
        unit = unit_of(model)
        *_, before, last = steps = sorted(found)
        lowest = min(steps, key=lambda step: found[step].value)
        since = next(step for step in steps if not found[step].beyond(found[last]))
        if found[last].beyond(found[lowest]):
            text = (f"it got worse after {unit} {lowest:,}: {fd} {found[lowest]}, at {unit} "
                    f"{last:,} {found[last]}")
        elif since == last:
            text = (f"more {unit}s still helped: {fd} {found[before]} at {unit} {before:,}, "
                    f"{found[last]} at {last:,}")
        else:
            text = (f"it is not certain that {unit}s after {since:,} helped: {fd} {found[since]}, "
                    f"at {unit} {last:,} {found[last]}")
        said.append(f"{folder.name}: {text}." if len(runs) > 1 else sentence(text))
    return " ".join(said) or None


def unit_of(model):
    """What a step of a model is."""
    return "step" if model == "fastgan" else "epoch"


# All -----------------------------------------------------------------------------------------


def verdict(results, settings):
    """{"columns": {name: {"quality", "variety", "copying": sentences}}, "best", "steps", "note"} of
    the columns that are judged; of these parts, those with something to say.

    results, settings: as in metrics.json; REAL is the first result.
    """
    n, kind = settings["n"], settings["features"]
    fd = rows.label_of("FID", kind)
    real = known(results[0], kind)
    judged = [result for result in results if result["kind"] == "judged"]
    if n < LEAST or "aa_train" not in real:
        note = (f"{n} images a set are too few for a verdict, which takes {LEAST} at least, and "
                "some hundreds for narrow intervals. Look at the images." if n < LEAST else
                f"Most rows have no interval with {n:,} images a set; --n 4000 gives a verdict.")
        by_chance = chance(settings["validation_photos"])
        named = {result["name"]: {"copying": sentence("; ".join(
            suspected(found, kind, n, by_chance) for kind, found in result["suspects"].items()))}
            for result in judged if any(result["suspects"].values())}
        return {"columns": named, "note": note}
    columns, doubtful, words = {}, set(), {"columns": {}}
    for result in judged:
        own = columns[result["name"]] = known(result, kind)
        words["columns"][result["name"]] = {
            "quality": quality(own, real, fd), "variety": variety(own, real),
            "copying": copying(own, result, settings)}
        found = traces(own, result, settings)
        if found.signs or found.odd or nearer(own, real):
            doubtful.add(result["name"])
    if len(judged) > 1:
        said = {"best": best(columns, doubtful, fd), "steps": progress(judged, columns, fd)}
        words |= {part: text for part, text in said.items() if text}
    return words


def sentence(text):
    """A capital first, and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def parts(words):
    """[(heading, {part: sentences})]: what is about all columns, then each of them."""
    whole = {part: words[part] for part in ("best", "steps", "note") if part in words}
    heading = "No verdict" if "note" in words else "Which is best?"
    return [*([(heading, whole)] if whole else []), *words["columns"].items()]


def markdown(words):
    """The verdict as lists in Markdown, for terminals, too."""
    return "\n\n".join(f"**{heading}**\n" + "\n".join(
        f"- {part}: {text}" for part, text in said.items()) for heading, said in parts(words))
