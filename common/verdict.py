"""The verdict in words: what the numbers say of quality, variety and copying, and what is best.

    words = verdict(results, settings)     # as in metrics.json, REAL first
    print(markdown(words))

A sentence says what the 95% intervals of its numbers bear, and names these numbers: two differ if
their intervals don't overlap. Numbers without an interval are not spoken of.
"""

import math
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binom

from common import report, rows

LEAST = 24  # images a set: intervals of fewer were not tested (docs/metrics.md)
CHANCE = 0.01  # of a sample to be a suspect: metrics.suspected_copies
FEW = 5  # names a sentence


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


def quality(own, real, fd):
    """How far from photos, and what the spectrum says is wrong. fd: what the table calls FID."""
    told, photos = own["aa_test"], real["aa_train"]
    distance, floor = own["fid_validation"], real["fid_validation"]
    if photos.beyond(told):
        lead = "Nearer to validation photos than photos are to each other, as copies of them are"
    elif not told.beyond(photos):
        lead = ("No difference from photos is seen" if not distance.beyond(floor) else
                "Not told from photos one by one, but as a whole")
    else:
        lead = "Far from photos" if told.low > 0.9 else "Can be told from photos"
    if distance.beyond(floor):
        times = distance.value / floor.value
        far = f"{times:.1f} times" if times < 9.95 else f"{times:.0f} times"
    else:
        far = "below" if floor.beyond(distance) else "no more than"
    text = (f"{lead}: a nearest-neighbour test tells {told.percent} of the images apart (photos "
            f"{photos.percent}, ideal 50%), and the distance from photos is {far} that of other "
            f"photos ({fd} {distance}; {floor}).")
    wrong = [text for text in (detail(own, real), grid(own, real)) if text]
    return " ".join([text, *([sentence("; ".join(wrong))] if wrong else [])])


def detail(own, real):
    """What fine detail has too much or too little of, or None."""
    if "spectrum_high" not in own or not own["spectrum_high"].beyond(real["spectrum_high"]):
        return None
    signed, off = own["spectrum_high_signed"], own["spectrum_high"]
    numbers = f"(spectrum, high {off}; photos {real['spectrum_high']})"
    if signed.low <= 0 <= signed.high or abs(signed.value) < off.value / 2:
        return (f"the power in fine detail is off by a factor of {math.exp(off.value):.1f} on "
                f"average, up and down {numbers}")
    return f"fine detail has {ratio(math.exp(signed.value))} the power of photos {numbers}"


def ratio(x):
    """A ratio as one says it."""
    names = ["half", "a third of", "a quarter of", "a fifth of", "a sixth of", "a seventh of",
             "an eighth of", "a ninth of", "a tenth of"]
    if x >= 1.5:
        return f"{x:.1f} times" if x < 9.95 else f"{x:.0f} times"
    if x > 2 / 3:
        return f"{100 * x:.0f}% of"
    parts = round(1 / x)
    return (names[parts - 2] if parts <= 10 else f"1/{parts} of" if parts < 100 else
            "less than a hundredth of")


def grid(own, real):
    """A regular grid, or None; its period, where that shows."""
    if "spectrum_grid" not in own or not own["spectrum_grid"].beyond(real["spectrum_grid"]):
        return None
    shown = [period for period in (8, 4, 2)
             if own[f"spectrum_grid_{period}"].beyond(real[f"spectrum_grid_{period}"])]
    pixels = f" of {shown[0]} pixels" if shown else ""
    return (f"a regular grid{pixels} shows (spectrum, grid {own['spectrum_grid']}; photos "
            f"{real['spectrum_grid']})")


def variety(own, real):
    """As varied as photos or not, and how many of the photos they cover."""
    number, photos = own["effective_images"], real["effective_images"]
    recall, reach = own.get("recall"), real.get("recall")
    less = photos.beyond(number)
    if number.high < min(2, (1 + photos.low) / 2):
        lead = "Collapsed, nearly all of them are one image"
    elif number.high < photos.low / 2:
        lead = "Little variety, less than half of photos'"
    elif less:
        lead = "Less varied than photos"
    elif number.beyond(photos):
        lead = "More varied than photos, as images far from them often are"
    else:
        lead = "As varied as photos"
    text = f"{lead}: {number} effective images, photos {photos}"
    if recall and reach:
        fewer = reach.beyond(recall)
        text += (", but of other kinds" if fewer and not less else "") + (
            f"; {recall.percent} of the photos lie among them, among as many other photos "
            f"{reach.percent}")
    return f"{text}."


def copying(own, result, n):
    """Signs of copying, or how small a share of copies would have shown."""
    if result["other_photos"]:
        return "Not tested, since it was trained on other photos."
    near, loss, gap = suspected(result, n), own["privacy_loss"], own.get("recovery_gap")
    if "copies" not in own:  # above 12,000 photos and samples
        return sentence(near)
    pieces = own["pieces"]
    telling = (f"{pieces.percent} of pieces are nearer to training than to validation photos (50% "
               "by chance)")
    lost = f"privacy loss is {loss} (0 by chance)"
    learnt = f"it recovers training photos better than validation photos, by {gap}"
    whole = own["copies"].low > CHANCE
    signs = [text for text, shows in [(near, whole), (telling, pieces.low > 0.5),
                                      (lost, loss.low > 0), (learnt, gap and gap.low > 0)] if shows]
    odd = [text for text, shows in [(telling, pieces.high < 0.5), (lost, loss.high < 0)] if shows]
    if signs:
        lead = ("Parts of training photos may be copied, whole ones are not seen to be"
                if signs == [telling] else "Photos may be copied")
        others = [] if whole else [sentence(near)]
        return " ".join([f"{lead}: {'; '.join(signs)}.", *others, "Look at the figures."])
    if odd:
        return (f"Nearer to validation than to training photos: {'; '.join(odd)}. Was it trained "
                "on those?")
    return (f"No sign of it: {near}; {telling}; {lost}. Had {100 * noticed(n):.0f}% of the images "
            "been copies, they would have shown nine times in ten.")


def suspected(result, n):
    """How many suspects there are, and the nearest of them, by each distance."""
    said = []
    for kind, found in result["suspects"].items():
        by = "" if kind == "cosine" else f" by {kind.upper()}"
        names = ", ".join([suspect["name"] for suspect in found[:FEW]] + ["…"] * (len(found) > FEW))
        said.append(f"{len(found)} of {n} images {'lies' if len(found) == 1 else 'lie'} "
                    f"suspiciously near to a training photo{by} ({CHANCE * n:.1f} by chance)"
                    + (f": {names}" if names else ""))
    return "; ".join(said)


def noticed(n, power=0.9):
    """The share of copies among n samples at which suspects are a sign with this probability.

    Suspects are then a binomial number, chance's 1% among them, and a sign if its 95% interval is
    above 1%.
    """
    shares = [k / n for k in range(1, n + 1)]
    fewest = 1 + next(k for k, share in enumerate(shares) if share == 1 or
                      share - 1.96 * math.sqrt(share * (1 - share) / n) > CHANCE)
    return next((share / 1000 for share in range(1, 1000)
                 if binom.sf(fewest - 1, n, min(1, share / 1000 + CHANCE)) >= power), 1)


# Several columns -----------------------------------------------------------------------------


def best(columns, fd):
    """Which column is nearest to the validation photos, or that none is beyond its interval.

    columns: {name: its known numbers}.
    """
    far = {name: own["fid_validation"] for name, own in columns.items()}
    order = sorted(far, key=lambda name: far[name].value)
    first = [name for name in order if not far[name].beyond(far[order[0]])]
    if len(first) == 1:
        text = (f"{order[0]} is best, beyond its interval: {fd} {far[order[0]]}, next {order[1]} "
                f"with {far[order[1]]}.")
    else:
        listed = [f"{name} {far[name]}" for name in first[:FEW]] + ["…"] * (len(first) > FEW)
        worse = len(order) - len(first)
        text = (f"No column is best beyond its interval by {fd}: {', '.join(listed)}"
                + (f"; the {'others are' if worse > 1 else 'other is'} worse." if worse else "."))
    told = {name: own["aa_test"] for name, own in columns.items()}
    other, ours = (min(names, key=lambda name: abs(told[name].value - 0.5))
                   for names in (told, first))
    if told[ours].beyond(told[other]):
        text += (f" The nearest-neighbour test prefers {other}, of which it tells "
                 f"{told[other].percent} apart, of {ours} {told[ours].percent}.")
    return text


def progress(judged, columns, fd):
    """Whether more steps still helped, of each run with several; None without one."""
    runs = {}
    for result in judged:
        if "step" in result:
            run = result["model"], Path(result["path"]).parent.name
            runs.setdefault(run, {})[result["step"]] = columns[result["name"]]["fid_validation"]
    said = []
    for (_, folder), found in runs.items():
        if len(found) < 2:
            continue
        *_, before, last = steps = sorted(found)
        lowest = min(steps, key=lambda step: found[step].value)
        since = next(step for step in steps if not found[step].beyond(found[last]))
        if found[last].beyond(found[lowest]):
            text = (f"it was best at step {lowest:,}, {fd} {found[lowest]}, and is worse at step "
                    f"{last:,}, {found[last]}")
        elif since == last:
            text = (f"more steps still helped, {fd} {found[before]} at step {before:,}, "
                    f"{found[last]} at {last:,}")
        else:
            text = (f"no gain beyond the interval from step {since:,} to {last:,}, {fd} "
                    f"{found[since]} and {found[last]}")
        said.append(f"{folder}: {text}." if len(runs) > 1 else sentence(text))
    return " ".join(said) or None


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
                f"{n:,} images a set have no intervals here; --n 4000 gives a verdict.")
        named = {result["name"]: {"copying": sentence(suspected(result, n))} for result in judged
                 if any(result["suspects"].values())}
        return {"columns": named, "note": note}
    columns = {result["name"]: known(result, kind) for result in judged}
    words = {"columns": {}}
    for result in judged:
        own = columns[result["name"]]
        said = {"quality": quality(own, real, fd), "variety": variety(own, real),
                "copying": copying(own, result, n)}
        words["columns"][result["name"]] = {part: text for part, text in said.items() if text}
    if len(judged) > 1:
        said = {"best": best(columns, fd), "steps": progress(judged, columns, fd)}
        words |= {part: text for part, text in said.items() if text}
    return words


def sentence(text):
    """A capital first, and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def parts(words):
    """[(heading, {part: sentences})]: a column each, then what is about all of them."""
    whole = {part: words[part] for part in ("best", "steps", "note") if part in words}
    heading = "No verdict" if "note" in words else "Which is best?"
    return [*words["columns"].items(), *([(heading, whole)] if whole else [])]


def markdown(words):
    """The verdict as lists in Markdown, for terminals, too."""
    return "\n\n".join(f"**{heading}**\n" + "\n".join(
        f"- {part}: {text}" for part, text in said.items()) for heading, said in parts(words))
