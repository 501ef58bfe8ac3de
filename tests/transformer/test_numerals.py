"""Number words against spellings from dictionaries, and the corpus made of them."""

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from fairseq.corpus import find_languages, load_dictionaries, load_split
from fairseq.preparation.numerals import draw, english, english_date, german, german_date

from tests.harness import load_program, one_line, snapshot

make_numbers = load_program("Transformer-PyTorch/data/make-numbers.py")

SPELLINGS = {
    0: ("null", "zero"),
    1: ("eins", "one"),
    7: ("sieben", "seven"),
    12: ("zwölf", "twelve"),
    16: ("sechzehn", "sixteen"),
    17: ("siebzehn", "seventeen"),
    18: ("achtzehn", "eighteen"),
    20: ("zwanzig", "twenty"),
    21: ("einundzwanzig", "twenty-one"),
    30: ("dreißig", "thirty"),
    40: ("vierzig", "forty"),
    66: ("sechsundsechzig", "sixty-six"),
    77: ("siebenundsiebzig", "seventy-seven"),
    99: ("neunundneunzig", "ninety-nine"),
    100: ("einhundert", "one hundred"),
    101: ("einhunderteins", "one hundred and one"),
    111: ("einhundertelf", "one hundred and eleven"),
    342: ("dreihundertzweiundvierzig", "three hundred and forty-two"),
    1000: ("eintausend", "one thousand"),
    1001: ("eintausendeins", "one thousand and one"),
    1100: ("eintausendeinhundert", "one thousand one hundred"),
    12345: ("zwölftausenddreihundertfünfundvierzig", "twelve thousand three hundred and forty-five"),
    21000: ("einundzwanzigtausend", "twenty-one thousand"),
    100000: ("einhunderttausend", "one hundred thousand"),
    101001: ("einhunderteintausendeins", "one hundred and one thousand and one"),
    999999: (
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
        "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
    ),
}

DATES = {
    (1749, 8, 28): ("der achtundzwanzigste August siebzehnhundertneunundvierzig",
                    "the twenty-eighth of August seventeen forty-nine"),
    (1989, 11, 9): ("der neunte November neunzehnhundertneunundachtzig", "the ninth of November nineteen eighty-nine"),
    (1500, 1, 1): ("der erste Januar fünfzehnhundert", "the first of January fifteen hundred"),
    (1805, 5, 3): ("der dritte Mai achtzehnhundertfünf", "the third of May eighteen hundred and five"),
    (1101, 3, 12): ("der zwölfte März elfhunderteins", "the twelfth of March eleven hundred and one"),
    (2000, 12, 31): ("der einunddreißigste Dezember zweitausend", "the thirty-first of December two thousand"),
    (2007, 7, 7): ("der siebte Juli zweitausendsieben", "the seventh of July two thousand and seven"),
    (2024, 2, 29): ("der neunundzwanzigste Februar zweitausendvierundzwanzig",
                    "the twenty-ninth of February twenty twenty-four"),
    (1616, 4, 20): ("der zwanzigste April sechzehnhundertsechzehn", "the twentieth of April sixteen sixteen"),
    (1918, 10, 8): ("der achte Oktober neunzehnhundertachtzehn", "the eighth of October nineteen eighteen"),
    (1901, 6, 22): ("der zweiundzwanzigste Juni neunzehnhunderteins",
                    "the twenty-second of June nineteen hundred and one"),
    (1950, 9, 5): ("der fünfte September neunzehnhundertfünfzig", "the fifth of September nineteen fifty"),
}  # fmt: skip


@pytest.mark.parametrize("number", SPELLINGS)
def test_spelling(number):
    assert (german(number), english(number)) == SPELLINGS[number]


@pytest.mark.parametrize("date", DATES)
def test_dates(date):
    assert (german_date(datetime.date(*date)), english_date(datetime.date(*date))) == DATES[date]


def test_all_numbers_are_told_apart():
    """English read back by its values, German because no two numbers are spelled alike."""
    values = {english(number): number for number in [*range(20), *range(20, 100, 10)]}
    for number in [*range(10000), *range(10000, 1000000, 9973)]:
        total = group = 0
        for word in english(number).replace("-", " ").replace(" and ", " ").split():
            if word == "thousand":
                total, group = 1000 * group, 0
            else:
                group = 100 * group if word == "hundred" else group + values[word]
        assert total + group == number
    assert len({german(number) for number in range(100000)}) == 100000


def test_no_pair_is_in_two_splits():
    text = draw({"train": 3000, "valid": 200, "test": 300}, seed=3)
    pairs = {split: list(zip(sides["de"], sides["en"])) for split, sides in text.items()}
    assert {split: len(part) for split, part in pairs.items()} == {"train": 3000, "valid": 200, "test": 300}
    assert len({pair for part in pairs.values() for pair in part}) == 3500
    for side in range(2):  # nor is one side of a pair
        assert len({pair[side] for part in pairs.values() for pair in part}) == 3500
    dates = {split: sum(german.startswith("der ") for german, _ in part) / len(part) for split, part in pairs.items()}
    assert all(0.15 < share < 0.4 for share in dates.values()), dates


def test_the_seed_decides():
    pairs = {"train": 50, "valid": 5, "test": 5}
    assert draw(pairs, seed=1) == draw(pairs, seed=1) != draw(pairs, seed=2)
    # Written down once: the text is the same with every version of Python and NumPy.
    assert draw(pairs, seed=1)["train"]["de"][:2] == ["vierundsechzig", "fünfundachtzig"]


def test_data_for_training(tmp_path):
    flags = ["--train", "200", "--valid", "10", "--test", "20", "--merges", "50"]
    make_numbers.main([*flags, "--destdir", str(tmp_path / "one")])
    data = tmp_path / "one" / "data-bin" / "numbers.de-en"
    pair = find_languages(data)
    assert pair == ("de", "en")
    dictionaries = load_dictionaries(data, *pair)
    text = draw({"train": 200, "valid": 10, "test": 20}, seed=0)
    for split, sides in text.items():
        corpus = load_split(data, split, *pair, dictionaries)
        assert [dictionaries[0].string(ids, "@@ ") for ids in corpus.source] == sides["de"]
        assert [dictionaries[1].string(ids, "@@ ") for ids in corpus.target] == sides["en"]
    code = (tmp_path / "one" / "data" / "numbers.de-en" / "code").read_text().splitlines()
    assert len(code) == 51 and code[0].startswith("#version")

    before = snapshot(tmp_path / "one")
    make_numbers.main([*flags, "--destdir", str(tmp_path / "one")])
    make_numbers.main([*flags, "--destdir", str(tmp_path / "two")])
    assert snapshot(tmp_path / "one") == before
    assert {path.relative_to(tmp_path / "two"): content for path, content in snapshot(tmp_path / "two").items()} == {
        path.relative_to(tmp_path / "one"): content for path, content in before.items()
    }


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--train 0", "--train: must be an integer at least 1, not 0"),
        ("--train many", "--train: must be an integer"),
        ("--train 200000", "must be 200000 pairs together, at most"),
        ("--seed -1", "--seed: must be an integer at least 0"),
        ("--merges 0", "--merges: must be an integer at least 1"),
        ("--destdir FILE", "file"),
        ("--destdir MADE --seed 1", "was made with"),
        ("--destdir MADE --merges 20", "remove it, or use another --destdir"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, complaint):
    (tmp_path / "file").write_text("")
    small = ["--train", "20", "--valid", "2", "--test", "2", "--merges", "9"]
    make_numbers.main([*small, "--destdir", str(tmp_path / "made")])
    before = snapshot(tmp_path)
    words = flags.replace("FILE", str(tmp_path / "file")).replace("MADE", str(tmp_path / "made")).split()
    if "--destdir" not in words:
        words += ["--destdir", str(tmp_path / "new")]
    assert complaint in one_line(lambda: make_numbers.main([*small, *words]), "make-numbers.py", capsys)
    assert snapshot(tmp_path) == before


def test_as_a_program(tmp_path):
    command = [sys.executable, make_numbers.__file__, "--train", "20", "--valid", "2", "--test", "2", "--merges", "9"]
    done = subprocess.run([*command, "--destdir", "here"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(tmp_path / "here" / "data-bin" / "numbers.de-en" / "train.de-en.de.idx").is_file()
