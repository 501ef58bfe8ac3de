"""German and English words for numbers and dates, and a parallel text of them: a small corpus that needs no download.

What makes it a translation task is the order: German writes a number below a million as one word, the ones before the
tens (`einundzwanzig`), and hundreds of years (`neunzehnhundert`); English writes several words (`twenty-one`).
"""

import datetime

import numpy

from .corpora import LANGUAGES, Text

_GERMAN_SMALL = "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf".split()
_GERMAN_SMALL += "dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn".split()
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
_GERMAN_MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
_GERMAN_ORDINALS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}

_ENGLISH_SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()
_ENGLISH_SMALL += "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ENGLISH_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth"}
_ENGLISH_ORDINALS |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
_ENGLISH_MONTHS = "January February March April May June July August September October November December".split()


def german(number: int) -> str:
    """Return `number`, 0 to 999,999, in German: 21 is einundzwanzig."""
    word = _german(number)
    return word + "s" if number % 100 == 1 else word  # eins, hunderteins; but einundzwanzig, eintausend


def _german(number: int) -> str:
    """Return `number` as it is in front of another part of the word."""
    if number < 20:
        return _GERMAN_SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{_GERMAN_SMALL[ones]}und" if ones else "") + _GERMAN_TENS[tens - 2]
    size, name = (1000, "tausend") if number >= 1000 else (100, "hundert")
    many, rest = divmod(number, size)
    return _german(many) + name + (_german(rest) if rest else "")


def english(number: int) -> str:
    """Return `number`, 0 to 999,999, in English: 121 is one hundred and twenty-one."""
    if number < 20:
        return _ENGLISH_SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH_SMALL[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, size)
    joint = " and " if rest < 100 else " "
    return f"{english(many)} {name}" + (f"{joint}{english(rest)}" if rest else "")


def german_date(date: datetime.date) -> str:
    """Return a date of the years 1100 to 2099 in German: der dritte Mai neunzehnhundertsieben."""
    century, year = divmod(date.year, 100)
    hundreds = f"{_german(century)}hundert{german(year) if year else ''}"
    ordinal = _GERMAN_ORDINALS.get(date.day) or german(date.day) + ("te" if date.day < 20 else "ste")
    return f"der {ordinal} {_GERMAN_MONTHS[date.month - 1]} {hundreds if date.year < 2000 else german(date.year)}"


def english_date(date: datetime.date) -> str:
    """Return a date of the years 1100 to 2099 in English: the third of May nineteen hundred and seven."""
    century, year = divmod(date.year, 100)
    if year >= 10:
        words = f"{english(century)} {english(year)}"
    elif date.year >= 2000:
        words = english(date.year)
    else:
        words = f"{english(century)} hundred" + (f" and {english(year)}" if year else "")
    start, hyphen, last = english(date.day).rpartition("-")
    ordinal = _ENGLISH_ORDINALS.get(last) or last.removesuffix("y") + ("ieth" if last.endswith("y") else "th")
    return f"the {start}{hyphen}{ordinal} of {_ENGLISH_MONTHS[date.month - 1]} {words}"


def draw(pairs: dict[str, int], seed: int) -> Text:
    """Return a text of `pairs` different pairs in each split: three quarters numbers of 2 to 6 digits, the rest dates.

    Every number of digits is equally likely as long as there are new ones, of which there are few with 2 and 3.
    """
    # This generator's numbers are fixed for good, so a seed means the same text on every machine.
    random = numpy.random.RandomState(seed)
    days = datetime.date(1100, 1, 1).toordinal(), datetime.date(2100, 1, 1).toordinal()
    drawn: dict[tuple[str, str], None] = {}
    while len(drawn) < sum(pairs.values()):
        if random.randint(4):
            digits = random.randint(2, 7)
            number = random.randint(10 ** (digits - 1), 10**digits)
            drawn[german(number), english(number)] = None
        else:
            date = datetime.date.fromordinal(random.randint(*days))
            drawn[german_date(date), english_date(date)] = None
    found = list(drawn)
    order = iter(random.permutation(len(found)))  # else the first split would have nearly all the short numbers
    text = {}
    for split, count in pairs.items():
        chosen = [found[next(order)] for _ in range(count)]
        text[split] = {language: [pair[side] for pair in chosen] for side, language in enumerate(LANGUAGES)}
    return text
