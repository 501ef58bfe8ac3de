"""generate.py: what it prints, against the model and the references; its flags; its dump."""

import json
import os
import re
import shutil
from pathlib import Path

import generate
import pytest
import sacrebleu
import torch
from fairseq import checkpoint, generation
from fairseq.binarize import Settings, write_numbered
from fairseq.bleu import detokenize
from fairseq.corpus import load_dictionaries
from fairseq.dictionary import Dictionary
from fairseq.generation import Wording
from fairseq.search import Hypothesis

from tests.transformer.translation import LANGUAGES, TEST, make_checkpoint, make_data, write_text

SHORT = ["--max-len-b", "6", "--device", "cpu"]


class Translations:
    """The tiny corpus with two models, and calls of generate.py on it."""

    def __init__(self, folder: Path):
        torch.manual_seed(1)
        self.folder, self.data, self.raw = folder, make_data(folder), make_data(folder, format="raw")
        self.path = make_checkpoint(folder / "model.pt", self.data)
        self.other = make_checkpoint(folder / "other.pt", self.data, rank_scale=0.5, position="timing")
        self.dictionaries = load_dictionaries(self.data, *LANGUAGES)

    def model(self, path: Path):
        return checkpoint.load_model(path, LANGUAGES, self.dictionaries)

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of the words of a hypothesis; an untrained model also brings the placeholder."""
        return [*map(self.dictionaries[1].symbols.index, text.split()), Dictionary.eos]

    def run(self, capsys, *flags, data=None, path=None) -> dict[str, list]:
        """Return the fields of the printed lines by what they begin with; of final lines the text under `end`."""
        paths = [path or self.path] if not isinstance(path, list) else path
        paths = [word for each in paths for word in ("--path", str(each))]
        generate.main([str(data or self.data), *paths, *SHORT, *map(str, flags)])
        found: dict[str, list] = {kind: [] for kind in ("S", "T", "H", "P", "A", "end")}
        for line in capsys.readouterr().out.splitlines():
            if match := re.match(r"([STHPA])-(\d+)\t", line):
                found[match[1]].append((int(match[2]), *line.split("\t")[1:]))
            else:
                found["end"].append(line)
        return found


@pytest.fixture(scope="module")
def translations(tmp_path_factory) -> Translations:
    return Translations(tmp_path_factory.mktemp("translation"))


def scores(lines: list) -> dict[int, tuple]:
    """Return (score, text) by sentence, of H- lines with one hypothesis each."""
    assert len({number for number, *_ in lines}) == len(lines)
    return {number: (pytest.approx(float(score), abs=2e-4), text) for number, score, text in lines}


def log_probs(model, source: list[int], words: list[int]) -> list[float]:
    """Return the log-probability of each of `words`, from one pass over all."""
    logits = model(torch.tensor([source]), torch.tensor([[Dictionary.eos, *words[:-1]]]))[0]
    return logits.log_softmax(-1)[range(len(words)), words].tolist()


def test_lines_of_every_sentence(translations, capsys):
    found = translations.run(capsys)
    order = sorted(range(7), key=lambda number: -len(TEST["de"][number].split()))
    for kind in "STHPA":
        assert [number for number, *_ in found[kind]] == order
    sources, references = (dict(found[kind]) for kind in "ST")
    assert sources[0] == "eins zwei drei" and sources[2] == "sechs sie@@ ben <unk> eins"
    assert references[2] == "six sev@@ en \u2047 one"
    model, source_words = translations.model(translations.path), translations.dictionaries[0]
    for (number, score, text), (_, each), (_, alignment) in zip(found["H"], found["P"], found["A"]):
        words = translations.numbers(text)
        source = source_words.encode(TEST["de"][number]).tolist()
        each = [float(value) for value in each.split()]
        assert each == pytest.approx(log_probs(model, source, words), abs=1e-4)
        assert float(score) == pytest.approx(sum(each) / len(words), abs=1e-4)
        assert len(alignment.split()) == len(words)
        assert all(0 <= int(position) < len(source) for position in alignment.split())


def test_last_lines_and_dump(translations, capsys, tmp_path):
    dump = tmp_path / "bleu.log"
    flags = ["--remove-bpe", "--dump", dump]
    lines = translations.run(capsys, *flags)
    found = translations.run(capsys, "--quiet", *flags)
    assert not any(found[kind] for kind in "STHPA")
    sacre, done, score = found["end"]
    tokens = sum(len(words.split()) for _, words in lines["P"])
    assert re.fullmatch(rf"\| Translated 7 sentences \({tokens} tokens\) in \d+\.\ds \(\d+\.\d\d tokens/s\)", done)
    assert dump.read_text() == f"{done}\n{score}\n"

    system = [text for _, _, text in lines["H"]]
    references = [text for _, text in lines["T"]]
    assert "six seven \u2047 one" in references
    counted = sacrebleu.corpus_bleu(system, [references], tokenize="none", smooth_method="none", force=True)
    precisions = "/".join(f"{value:.1f}" for value in counted.precisions)
    assert score == (
        f"| Generate test with beam=5: BLEU4 = {counted.score:.2f}, {precisions} (BP={counted.bp:.3f}, "
        f"ratio={counted.sys_len / counted.ref_len:.3f}, syslen={counted.sys_len}, reflen={counted.ref_len})"
    )
    ordinary = [[text.replace(" &apos;", "'") for text in side] for side in (system, references)]
    expected = sacrebleu.corpus_bleu(ordinary[0], [ordinary[1]])
    signature = "(nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    assert sacre.startswith(f"| sacreBLEU = {expected.score:.2f} {signature}")

    fields = json.loads((tmp_path / "bleu.log.json").read_text())
    assert (fields["subset"], fields["beam"], fields["sentences"], fields["tokens"]) == ("test", 5, 7, tokens)
    assert fields["path"] == [str(translations.path)]
    assert fields["tokenized BLEU"]["score"] == pytest.approx(counted.score)
    assert fields["tokenized BLEU"]["system_length"] == counted.sys_len
    assert fields["sacreBLEU"]["score"] == pytest.approx(expected.score)
    assert fields["sacreBLEU"]["signature"] in sacre
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bleu.log", "bleu.log.json"]


@pytest.mark.parametrize("flags", [[], ["--skip-invalid-size-inputs-valid-test"], ["--prefix-size", "1"]])
def test_empty_lines_have_an_answer_and_are_scored(translations, capsys, tmp_path, flags):
    german, english = ["eins zwei", "", "drei", ""], ["one two", "four", "", ""]
    data = shutil.copytree(translations.raw, tmp_path / "data")
    write_text(data, "test", {"de": german, "en": english})
    found = translations.run(capsys, *flags, "-s", "de", "-t", "en", data=data)
    answers = {number: text for number, _, text in found["H"]}
    assert sorted(answers) == [0, 1, 2, 3] and sorted(number for number, *_ in found["T"]) == [0, 1, 2, 3]
    assert answers[1] == answers[3] == "" and answers[0] and answers[2]
    assert [score for number, score, _ in found["H"] if number in (1, 3)] == ["0.0000", "0.0000"]
    system = [answers[number] for number in range(4)]
    expected = sacrebleu.corpus_bleu(detokenize(system, "en"), [english], force=True)
    sacre, done, score = found["end"]
    assert f"sacreBLEU = {expected.score:.2f} " in sacre and "Translated 4 sentences" in done
    assert f"syslen={sum(len(text.split()) for text in system)}, reflen=3" in score


def test_pieces_of_sentencepiece_are_joined(tmp_path, capsys):
    words = "\u2581ei ns \u2581zw ei"
    splits = {
        name: str(write_text(tmp_path / "text", name, {"de": [words, words], "en": [words, words]}))
        for name in ("train", "test")
    }
    write_numbered(Settings(*LANGUAGES, splits, tmp_path / "data"))
    path = make_checkpoint(tmp_path / "model.pt", tmp_path / "data")
    generate.main([str(tmp_path / "data"), "--path", str(path), *SHORT, "--remove-bpe", "sentencepiece"])
    out = capsys.readouterr().out
    assert "S-0\teins zwei\n" in out and "T-0\teins zwei\n" in out and "reflen=4" in out
    assert "\u2581" not in out


def test_a_sentence_does_not_depend_on_its_batch(translations, capsys):
    together = translations.run(capsys, "--no-early-stop")
    for flags in (["--batch-size", "1"], ["--max-tokens", "8"]):
        assert scores(translations.run(capsys, *flags, "--no-early-stop")["H"]) == scores(together["H"])


def test_batches_hold_what_was_asked_for(translations, capsys, monkeypatch):
    sizes = []
    search = generate.Translator.translate

    def translate(self, batch):
        sizes.append(len(batch))
        return search(self, batch)

    monkeypatch.setattr(generate.Translator, "translate", translate)
    disturbed = make_checkpoint(translations.folder / "disturbed.pt", translations.data, cross_mask=False)
    for path, flags, expected in (
        (translations.path, [], [7]),
        (translations.path, ["--batch-size", "2"], [2, 2, 2, 1]),
        (translations.path, ["--max-tokens", "12"], [4, 2, 1]),
        (disturbed, [], [1, 3, 2, 1]),  # by padding
        (disturbed, ["--max-tokens", "6"], [1, 2, 1, 1, 1, 1]),
        ([translations.path, disturbed], ["--batch-size", "2"], [1, 2, 1, 2, 1]),
    ):
        sizes.clear()
        translations.run(capsys, "--quiet", *flags, path=path)
        assert sizes == expected


def test_shards_are_parts_of_the_whole(translations, capsys):
    whole = scores(translations.run(capsys)["H"])
    sharding = ["--batch-size", 1, "--num-shards", 3]
    parts = [translations.run(capsys, *sharding, "--shard-id", shard)["H"] for shard in range(3)]
    assert [number for part in parts for number, *_ in part] != sorted(whole)
    assert scores([line for part in parts for line in part]) == whole
    nothing = translations.run(capsys, "--num-shards", 9, "--shard-id", 8)
    assert nothing["end"] == ["| Translated 0 sentences (0 tokens) in 0.0s (0.00 tokens/s)"]


def test_more_than_one_hypothesis(translations, capsys):
    best = translations.run(capsys)["H"]
    several = translations.run(capsys, "--nbest", 3)["H"]
    assert len(several) == 3 * len(best)
    for place, first in enumerate(best):
        same = several[3 * place : 3 * place + 3]
        assert same[0] == first and len({text for *_, text in same}) == 3
        values = [float(score) for _, score, _ in same]
        assert values == sorted(values, reverse=True)


def test_several_models(translations, capsys):
    alone = scores(translations.run(capsys)["H"])
    assert scores(translations.run(capsys, path=[translations.path] * 2)["H"]) == alone
    found = translations.run(capsys, path=[translations.path, translations.other])
    joined = f"{translations.path}{os.pathsep}{translations.other}"
    assert translations.run(capsys, path=joined)["H"] == found["H"]
    models = [translations.model(path) for path in (translations.path, translations.other)]
    for (number, _, text), (_, each) in zip(found["H"], found["P"]):
        source = translations.dictionaries[0].encode(TEST["de"][number]).tolist()
        words = translations.numbers(text)
        one, two = (torch.tensor(log_probs(model, source, words)).exp() for model in models)
        assert [float(value) for value in each.split()] == pytest.approx(((one + two) / 2).log().tolist(), abs=1e-4)


def test_references_are_scored(translations, capsys):
    found = translations.run(capsys, "--score-reference")
    model, (source_words, target_words) = translations.model(translations.path), translations.dictionaries
    assert len(found["H"]) == 7 and not found["A"]
    for (number, score, text), (_, each) in zip(found["H"], found["P"]):
        words = target_words.encode(TEST["en"][number]).tolist()
        expected = log_probs(model, source_words.encode(TEST["de"][number]).tolist(), words)
        assert text == target_words.string(words)
        assert [float(value) for value in each.split()] == pytest.approx(expected, abs=1e-4)
        assert float(score) == pytest.approx(sum(expected) / len(words), abs=1e-4)


def test_a_prefix_of_the_reference(translations, capsys):
    found = translations.run(capsys, "--prefix-size", 2)
    for number, _, text in found["H"]:
        wanted = translations.dictionaries[1].string(translations.dictionaries[1].encode(TEST["en"][number])).split()
        assert text.split()[:2] == wanted[:2]


def test_samples_follow_the_seed(translations, capsys):
    flags = ["--sampling", "--beam", 4, "--nbest", 4]
    one, same, two = (translations.run(capsys, *flags, "--seed", seed)["H"] for seed in (1, 1, 2))
    assert one == same != two
    assert len(one) == 4 * 7


def test_length_and_unknown_words(translations, capsys):
    longest = max(len(text.split()) for *_, text in translations.run(capsys, "--unkpen", -9)["H"])
    assert longest == 6
    found = translations.run(capsys, "--unkpen", 1000, "--max-len-a", 0.5, "--max-len-b", 0)["H"]
    for number, _, text in found:
        assert len(text.split()) <= (len(TEST["de"][number].split()) + 1) // 2
        assert "<unk>" not in text


def test_unknown_words_are_replaced(translations, capsys, tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("acht eight 17\nzwei two\n")
    flags = ["--unkpen", -9, "-s", "de", "-t", "en"]
    plain = translations.run(capsys, *flags, data=translations.raw)
    assert dict(plain["S"])[6] == "neun acht" and dict(plain["T"])[6] == "nine eight"
    for file, table in (([], {}), ([lexicon], {"acht": "eight", "zwei": "two"})):
        replaced = translations.run(capsys, *flags, "--replace-unk", *file, data=translations.raw)
        for (number, _, before), (_, alignment), (_, _, after) in zip(plain["H"], plain["A"], replaced["H"]):
            source = TEST["de"][number].split()
            aligned = [source[int(position)] if int(position) < len(source) else None for position in alignment.split()]
            expected = [
                table.get(word, word) if old == "<unk>" and word else old for old, word in zip(before.split(), aligned)
            ]
            assert after.split() == expected
    assert any("<unk>" in text for *_, text in plain["H"])


def test_wording():
    dictionary = Dictionary(["sev@@", "en", "one@@"])
    hypothesis = Hypothesis([4, 5, 3, 3, 3, 6, 2], 0.0, [0.0] * 7, [0, 1, 2, 3, 1, 0, 3])
    assert Wording(dictionary).text(hypothesis) == "sev@@ en <unk> <unk> <unk> one@@"
    wording = Wording(dictionary, "@@ ", {"c": "see"})
    assert wording.text(hypothesis, ["a", "b", "c"]) == "seven see <unk> b one"


@pytest.mark.parametrize("flags", [["--rank-scale", "0.5"], [], ["--rank-scale", "0.50", "--amp", "bf16"]])
def test_the_architecture_is_that_of_the_checkpoint(translations, capsys, flags):
    assert len(translations.run(capsys, *flags, path=translations.other)["H"]) == 7
    assert len(translations.run(capsys, "--rank-scale", "0.0", "--cpu")["H"]) == 7


@pytest.mark.parametrize("name", ["path", "other"])
def test_matrices_are_converted_once_to_the_same_end(translations, capsys, monkeypatch, name):
    path = getattr(translations, name)
    types = []

    def translate(self, batch, original=generate.Translator.translate):
        types.append({parameter.dtype for parameter in self.models[0].parameters() if parameter.dim() > 1})
        return original(self, batch)

    monkeypatch.setattr(generate.Translator, "translate", translate)
    once = translations.run(capsys, "--amp", "bf16", path=path)
    monkeypatch.setattr(generation, "shorten", lambda model, dtype: None)
    every_time = translations.run(capsys, "--amp", "bf16", path=path)
    assert torch.bfloat16 in types[0] and types[-1] == {torch.float32}
    if name == "path":
        assert [once[kind] for kind in "HPA"] == [every_time[kind] for kind in "HPA"]
    else:  # layers as small as these compose their weights
        values = [[float(score) for _, score, _ in found["H"]] for found in (once, every_time)]
        assert values[0] == pytest.approx(values[1], rel=0.01)


@pytest.mark.parametrize("flag", ["--spectral", "--wd2fd-quekey"])
def test_flags_of_training_have_no_effect(translations, capsys, flag):
    with pytest.warns(UserWarning, match=f"{flag} only has an effect in training"):
        translations.run(capsys, flag, "--quiet", "--no-beamable-mm", "--no-progress-bar")


@pytest.mark.gpu
def test_on_a_gpu(translations, capsys):
    found = translations.run(capsys, "--device", "cuda")
    assert scores(found["H"]) == scores(translations.run(capsys)["H"])
