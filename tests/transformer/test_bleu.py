"""BLEU against known lines, against counting n-grams by hand, and the command line of score.py."""

import io
import math
import random
import sys
from collections import Counter

import pytest
import sacrebleu
import score
from fairseq.bleu import detokenize, sacre_bleu, sacre_line, tokenized_bleu

from lab.cli import UserError
from tests.harness import one_line

CAT = ["the cat sat on the mat today", "a b c d e f"], ["the cat sat on the red mat today", "a b c d e f g"]


@pytest.mark.parametrize(
    ("system", "references", "line"),
    [
        (*CAT, "BLEU4 = 72.28, 100.0/90.9/77.8/71.4 (BP=0.857, ratio=0.867, syslen=13, reflen=15)"),
        (
            ["a b c d e f g h i j"],
            ["a b c d e f"],
            "BLEU4 = 51.70, 60.0/55.6/50.0/42.9 (BP=1.000, ratio=1.667, syslen=10, reflen=6)",
        ),
        (
            ["the the the the the"],
            ["the cat the mat is here"],
            "BLEU4 = 0.00, 40.0/0.0/0.0/0.0 (BP=0.819, ratio=0.833, syslen=5, reflen=6)",
        ),
        # an empty line has no length
        (
            ["", "v w x y z"],
            ["a b c d", "v w x y z"],
            "BLEU4 = 44.93, 100.0/100.0/100.0/100.0 (BP=0.449, ratio=0.556, syslen=5, reflen=9)",
        ),
        ([""], ["a b c d"], "BLEU4 = 0.00, 0.0/0.0/0.0/0.0 (BP=0.000, ratio=0.000, syslen=0, reflen=4)"),
        (["a b c d"], [""], "BLEU4 = 0.00, 0.0/0.0/0.0/0.0 (BP=1.000, ratio=0.000, syslen=4, reflen=0)"),
        (["a b c"], ["a b c"], "BLEU4 = 0.00, 100.0/100.0/100.0/0.0 (BP=1.000, ratio=1.000, syslen=3, reflen=3)"),
    ],
)
def test_lines(system, references, line):
    assert tokenized_bleu(system, references).line() == line


def ngrams(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n))))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_tokenized_bleu_by_counting(order):
    generator = random.Random(order)
    system, references = ([generator.choices("ab", k=generator.randint(3, 9)) for _ in range(20)] for _ in range(2))
    logs = []
    for n in range(1, order + 1):
        pairs = [(ngrams(ours, n), ngrams(theirs, n)) for ours, theirs in zip(system, references)]
        matches = sum((ours & theirs).total() for ours, theirs in pairs)
        logs.append(math.log(matches / sum(ours.total() for ours, _ in pairs)))
    ratio = sum(map(len, references)) / sum(map(len, system))
    expected = 100 * math.exp(sum(logs) / order + min(0, 1 - ratio))
    found = tokenized_bleu([" ".join(line) for line in system], [" ".join(line) for line in references], order)
    assert found.score == pytest.approx(expected)
    assert len(found.precisions) == order


def test_sacre_bleu_is_that_of_the_detokenized_text():
    tokenized = ["he said : &quot; it &apos;s two o&apos;clock , &quot; and left .", "well @-@ known &amp; new !"]
    text = ["He said: \"It's two o'clock, \" and left.", "well-known & new!"]
    detokenized = detokenize(tokenized, "en")
    assert detokenized == ["he said: \"it's two o'clock,\" and left.", "well-known & new!"]
    found = sacre_bleu(detokenized, text)
    expected = sacrebleu.corpus_bleu(detokenized, [text])
    assert found.score == expected.score
    assert 0 < found.score < 100
    assert "tok:13a" in found.signature and "case:mixed" in found.signature
    assert "version:" + sacrebleu.__version__ in found.signature
    assert sacre_line(found) == f"sacreBLEU = {expected.score:.2f} ({found.signature})"
    lower = sacre_bleu(detokenized, text, ignore_case=True)
    assert lower.score > found.score and "case:lc" in lower.signature


# Languages without spaces between words

CHINESE = (
    ["我 爱 北京 天安们 。", "他们 住 在 Berlin ， 很 大 。"],
    ["我 爱 北京 天安门 。", "他们 住 在 Berlin ， 很 小 。"],
)


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_Hans", "cmn"])
def test_chinese_is_tokenized_as_sacre_bleu_does(language):
    system, references = (detokenize(side, language) for side in CHINESE)
    assert system == ["我爱北京天安们。", "他们住在 Berlin，很大。"]
    found = sacre_bleu(system, references, language=language)
    assert found.score == sacrebleu.corpus_bleu(system, [references], tokenize="zh").score
    assert "tok:zh" in found.signature
    # with or without spaces
    assert sacre_bleu(*CHINESE, language="zh").score == found.score
    assert sacre_bleu(system, references, language="en").score != found.score


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_words_of_japanese_and_korean(language):
    text = {"ja": ["私 は 東京 に 住んで いる 。"], "ko": ["나는 서울에 산다 ."]}[language]
    system = detokenize(text, language)
    assert system == {"ja": ["私は東京に住んでいる。"], "ko": ["나는 서울에 산다."]}[language]
    try:
        sacrebleu.BLEU(trg_lang=language)
    except RuntimeError:
        with pytest.warns(UserWarning, match=rf'over characters, .* pip install "sacrebleu\[{language}\]"'):
            found = sacre_bleu(system, system, language=language)
        assert "tok:char" in found.signature
    else:
        found = sacre_bleu(system, system, language=language)
        assert f"tok:{language}-mecab" in found.signature
    assert found.score == pytest.approx(100)


# score.py


def files(folder, system: str, references: str) -> list[str]:
    (folder / "system").write_bytes(system.encode())
    (folder / "references").write_bytes(references.encode())
    return ["-s", str(folder / "system"), "-r", str(folder / "references")]


def test_score_prints_both_scores(tmp_path, capsys):
    arguments = files(tmp_path, "the cat sat on the mat .\n", "the cat sat on the mat .\r\n")
    score.main(arguments)
    tokenized, sacre = capsys.readouterr().out.splitlines()
    assert tokenized == "BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=7, reflen=7)"
    assert sacre.startswith("sacreBLEU = 100.00 (nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    score.main([*arguments, "--order", "2"])
    assert capsys.readouterr().out.startswith("BLEU2 = 100.00, 100.0/100.0 (BP")


def test_score_ignores_case_only_when_asked(tmp_path, capsys):
    arguments = files(tmp_path, "The Cat sat on the mat\nA b c d e\n", "the cat sat on the mat\na B c d e\n")
    score.main([*arguments, "--ignore-case"])
    out = capsys.readouterr().out
    assert "BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=11, reflen=11)" in out
    assert "sacreBLEU = 100.00" in out and "case:lc" in out
    score.main(arguments)
    assert "63.6" in capsys.readouterr().out  # 7 of 11 words


def test_score_detokenizes_unless_told_not_to(tmp_path, capsys):
    arguments = files(tmp_path, "the cat &apos;s mat is red , she said .\n", "the cat's mat is red, she said.\n")
    score.main(arguments)
    assert "sacreBLEU = 100.00" in capsys.readouterr().out
    score.main([*arguments, "--lang", "none"])
    assert "sacreBLEU = 100.00" not in capsys.readouterr().out


def test_score_in_the_language(tmp_path, capsys):
    arguments = files(tmp_path, *("\n".join(side) for side in CHINESE))
    score.main([*arguments, "--lang", "zh"])
    expected = sacrebleu.corpus_bleu(CHINESE[0], [CHINESE[1]], tokenize="zh")
    assert f"sacreBLEU = {expected.score:.2f} (nrefs:1|case:mixed|eff:no|tok:zh|" in capsys.readouterr().out


def test_score_joins_subwords(tmp_path, capsys):
    arguments = files(
        tmp_path, "\u2581the \u2581cat \u2581s at \u2581on\n", "\u2581the \u2581c at \u2581sat \u2581on\n"
    )
    score.main([*arguments, "--remove-bpe", "sentencepiece"])
    out = capsys.readouterr().out
    assert out.startswith("BLEU4 = 100.00") and "syslen=4" in out and "sacreBLEU = 100.00" in out
    score.main([*arguments])
    assert "100.00," not in capsys.readouterr().out


@pytest.mark.parametrize("mark", ["<unk>", "\u2047"])
def test_unknown_words_match_nothing(tmp_path, capsys, mark):
    arguments = files(tmp_path, f"a b {mark} d e\n", f"a b {mark} d e\n")
    score.main(arguments)
    assert "80.0/50.0/0.0/0.0" in capsys.readouterr().out
    score.main([*arguments, "--lang", "none"])
    assert "sacreBLEU = 100.00" not in capsys.readouterr().out
    score.main(files(tmp_path, f"a{mark} b c d\n", f"a{mark} b c d\n"))  # part of a word
    assert "BLEU4 = 100.00" in capsys.readouterr().out


def test_byte_order_marks_are_not_scored(tmp_path, capsys):
    score.main(files(tmp_path, "\ufeffthe cat sat on\n", "the cat sat on\n"))
    assert capsys.readouterr().out.startswith("BLEU4 = 100.00")


def test_score_of_a_closed_standard_input(tmp_path, monkeypatch):
    arguments = files(tmp_path, "", "a b c d\n")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        score.main(arguments[2:])


def test_score_reads_standard_input(tmp_path, capsys, monkeypatch):
    arguments = files(tmp_path, "", "a b c d\n\nä\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a b c d\n\nä\n".encode())))
    score.main(["--sys", "-", *arguments[2:]])
    assert capsys.readouterr().out.startswith("BLEU4 = 100.00,")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-s", "SYSTEM", "-r", "LONGER"], "2 translations with 3 references"),
        (["-s", "EMPTY", "-r", "EMPTY"], "nothing to score"),
        (["-s", "SYSTEM", "-r", "nowhere"], "cannot read nowhere"),
        (["-s", "SYSTEM", "-r", "LATIN"], "line 2: not UTF-8"),
        (["-s", "WIDE", "-r", "SYSTEM"], "is UTF-16, not UTF-8; convert it: iconv"),
        (["-s", "LATIN", "-r", "SYSTEM"], "line 2: not UTF-8"),
        (["-s", "SYSTEM"], "required: -r"),
        (["-s", "SYSTEM", "-r", "SYSTEM", "--order", "5"], "at most 4"),
        (["-s", "SYSTEM", "-r", "SYSTEM", "--order", "0"], "at least 1"),
        (["-s", "-", "-r", "-"], "both"),
    ],
)
def test_bad_input_of_score(tmp_path, capsys, arguments, complaint):
    contents = {"SYSTEM": b"a b\nc d\n", "LONGER": b"a b\nc d\ne\n", "EMPTY": b"", "LATIN": b"a b\n\xe4\n"}
    contents["WIDE"] = "a b\nc d\n".encode("utf-16")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    argv = [str(tmp_path / word) if word in contents else word for word in arguments]
    assert complaint in one_line(lambda: score.main(argv), "score.py", capsys)
