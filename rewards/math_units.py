"""Units behind a number or an expression: what they are, and when two of them contradict each other."""

import re

_NAMES = {
    "$": "dollar dollars usd buck bucks",
    "cent": "cent cents",
    "euro": "euro euros eur",
    "degree": "degree degrees deg",
    "radian": "rad radian radians",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm cms centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kms kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yds yard yards",
    "mile": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gm gram grams",
    "kg": "kg kgs kilogram kilograms",
    "pound": "lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "gallon": "gal gallon gallons",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "am": "am",
    "pm": "pm",
    "unit": "unit units",
}
_MEASURES = {word: name for name, words in _NAMES.items() for word in words.split()} | {"$": "$"}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_RATES = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}
_TOKEN = re.compile(r"([a-z]+|\$)|(/)|\^\s*\{?\s*([23])\s*\}?")
_PIECE = re.compile(
    r"[a-z]{2,}\.?(?:\^\{?[23]\}?)?(?:/[a-z]+(?:\^\{?[23]\}?)?)?|[a-z]/[a-z](?:\^\{?[23]\}?)?|/"
)

Unit = frozenset[str]
"""Canonical words: "cm^2" for square centimetres, "per" and what follows for a rate, other nouns as they are."""


def unit_of(text: str) -> Unit:
    """The unit that words behind a number name; "units" names none."""
    named: list[str] = []
    power = ""
    for word, slash, raised in _TOKEN.findall(text.lower()):
        if raised or (named and word in ("squared", "cubed")):
            named[-1:] = [f"{name}^{raised or _POWERS[word]}" for name in named[-1:]]
        elif slash or word == "per":
            named.append("per")
        elif word in _POWERS:
            power = f"^{_POWERS[word]}"
        else:
            first, *rate = _RATES.get(word, (_MEASURES.get(word, word.rstrip("s")),))
            named += [first + power, *(part for name in rate for part in ("per", name))]
            power = ""
    return frozenset(name for name in named if name.partition("^")[0] != "unit")


def contradict(left: Unit, right: Unit) -> bool:
    """Whether both are given and do not go together: other measures, or other things counted."""
    if not left or not right:
        return False
    measured_left, measured_right = _measures(left), _measures(right)
    if measured_left and measured_right and measured_left != measured_right:
        return True
    rest_left, rest_right = left - measured_left, right - measured_right
    return left.isdisjoint(right) or bool(rest_left and rest_right and rest_left.isdisjoint(rest_right))


def split_unit(text: str) -> tuple[str, Unit]:
    r"""An expression and the measure behind it: `12\pi cm^2` gives `12\pi` and {"cm^2"}; no unit, no change."""
    if text.startswith("\\$"):
        return text[2:].strip(), frozenset({"$"})
    pieces = re.sub(r"\s*\^\s*", "^", text).split()
    start = len(pieces)
    while start > 1 and _is_unit(pieces[start - 1].lower()):
        start -= 1
    if start == len(pieces) or pieces[start].lower() in ("/", "per", "squared", "cubed"):
        return text, frozenset()
    return " ".join(pieces[:start]), unit_of(" ".join(pieces[start:]))


def _is_unit(piece: str) -> bool:
    words = re.findall("[a-z]+", piece)
    known = (word in _MEASURES or word in _POWERS or word in _RATES or word == "per" for word in words)
    return _PIECE.fullmatch(piece) is not None and all(known)


def _measures(unit: Unit) -> Unit:
    return frozenset(name for name in unit if name == "per" or name.partition("^")[0] in _NAMES)
