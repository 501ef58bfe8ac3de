"""Mistakes with generate.py and interactive.py: one line on standard error, exit status 2, nothing written or lost."""

import io
import shutil
import sys
from pathlib import Path

import generate
import interactive
import pytest
import torch

from lab.checkpoint import save
from tests.harness import one_line, snapshot
from tests.transformer.translation import make_checkpoint, make_data, write_text

# Flags after DATA --path MODEL; words in capitals stand for files and folders. And what the line says.
BOTH = [
    (["--path", "nowhere.pt"], "no such file: nowhere.pt"),
    (["--path", "CUT"], "not a readable checkpoint"),
    (["--path", "CLASSIFIER"], "is not a checkpoint of train.py"),
    (["--path", "LATER"], "format 99; this program reads format 1"),
    (["--path", "FOREIGN"], "is of another target vocabulary"),
    (["--path", "RESHAPED"], "of another network"),
    (["--beam", "0"], "--beam: must be an integer at least 1, not 0"),
    (["--beam", "two"], "not two"),
    (["--nbest", "6"], "--nbest 6 hypotheses cannot be had from --beam 5"),
    (["--sampling"], "give --nbest 5"),
    (["--sampling-topk", "3"], "--sampling-topk has no effect without --sampling"),
    (["--sampling", "--nbest", "5", "--sampling-topk", "3", "--sampling-topp", "0.5"], "give only one"),
    (["--sampling-topp", "1.5"], "at most 1"),
    (["--temperature", "0"], "above 0"),
    (["--min-len", "0"], "at least 1"),
    (["--min-len", "9", "--max-len-b", "8"], "--min-len 9 is above --max-len-b 8"),
    (["--path", "MODEL:nowhere.pt"], "no such file: "),
    (["--lenpen", "-1"], "at least 0"),
    (["--unkpen", "nan"], "must be a number"),
    (["--max-len-b", "-1"], "at least 0"),
    (["--rank-scale", "0.5"], "has rank scale 0.0, not 0.5"),
    (["--device", "cuda:77"], "is not there"),
    (["--device", "gpu"], "--device must be"),
    (["--cpu", "--device", "0"], "contradicts"),
    (["-s", "de", "-t", "fr"], "has no data of de and fr"),
    (["-s", "fr"], "name both with -s and -t"),
    (["--replace-unk", "nowhere.txt"], "cannot read nowhere.txt"),
    (["--replace-unk", "ONE_WORD"], "line 2: must be a source and a target word"),
    (["--replace-unk", "LATIN.de"], "line 2: not UTF-8"),
    (["--colour"], "unrecognized arguments: --colour"),
    (["--data", "nowhere"], "no such folder: nowhere"),
    (["--data", "NO_DICTIONARY"], "cannot read"),
    (["--data", "BAD_DICTIONARY"], "line 2: must be a word, a space and its count"),
]
GENERATE = [
    (["--gen-subset", "valid"], "has no valid in de: it has test, train of de-en"),
    (["--num-shards", "2", "--shard-id", "2"], "must be below --num-shards, 2"),
    (["--score-reference", "--prefix-size", "1"], "nothing is generated"),
    (["--prefix-size", "-1"], "at least 0"),
    (["--dump", "nowhere/bleu.log"], "a folder that exists"),
    (["--dump", "DATA"], "must be a file"),
    (["--replace-unk"], "has no text test.de"),
    (["--max-source-positions", "3"], "--skip-invalid-size-inputs-valid-test leaves them out"),
    (["--data", "UNEQUAL", "-s", "de", "-t", "en"], "sentences in de and"),
    (["--data", "LATIN_TEXT", "-s", "de", "-t", "en"], "test.de, line 2: not UTF-8"),
    (["--data", "NOTHING", "-s", "de", "-t", "en"], "has no sentences"),
    (["--data", "CUT_DATA"], "test.de-en.de"),
    (["--data", "SOURCE_ONLY", "-s", "de", "-t", "en", "--score-reference"], "has no text test.en"),
]
INTERACTIVE = [
    (["--input", "nowhere"], "cannot read nowhere: No such file"),
    (["--buffer-size", "-1"], "at least 0"),
    (["--dump", "bleu.log"], "--dump has no meaning here"),
    (["--score-reference"], "there are no references; generate.py scores them"),
    (["--bpe-codes", "nowhere"], "cannot read nowhere"),
    (["--bpe-codes", "ONE_WORD"], "is not a file of merges"),
    (["--tokenizer", "spacy"], "invalid choice: 'spacy'"),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    """Return what the words in capitals stand for."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("bad")
    data = make_data(folder)
    raw = make_data(folder, format="raw")
    found = {"DATA": data, "MODEL": make_checkpoint(folder / "model.pt", data)}
    state = torch.load(found["MODEL"], weights_only=True)

    def write(name: str, content) -> None:
        found[name] = folder / name.lower()
        if isinstance(content, bytes):
            found[name].write_bytes(content)
        else:
            save(found[name], content)

    def copy(name: str, original: Path) -> Path:
        found[name] = shutil.copytree(original, folder / name.lower())
        return found[name]

    write("CUT", found["MODEL"].read_bytes()[:3000])
    write("CLASSIFIER", {"state_dict": {}})
    write("LATER", {**state, "version": 99})
    write("FOREIGN", {**state, "target_dictionary": {"size": 7, "sha256": ""}})
    write("RESHAPED", {**state, "config": {**state["config"], "filter_size": 8}})
    write("ONE_WORD", b"a b\nc\n")
    write("LATIN.de", "ein wort\nfür all\n".encode("latin-1"))
    copy("NO_DICTIONARY", data).joinpath("dict.en.txt").unlink()
    copy("BAD_DICTIONARY", data).joinpath("dict.de.txt").write_text("eins 2\nzwei\n")
    (test,) = copy("CUT_DATA", data).glob("test.*.de.bin")
    test.write_bytes(test.read_bytes()[:-7])
    write_text(copy("UNEQUAL", raw), "test", {"de": ["eins", "zwei"], "en": ["one"]})
    write_text(copy("NOTHING", raw), "test", {"de": [], "en": []})
    copy("LATIN_TEXT", raw).joinpath("test.de").write_bytes(b"eins\nzw\xf6lf\n")
    copy("SOURCE_ONLY", raw).joinpath("test.en").unlink()
    return {name: str(path) for name, path in found.items()}


def complaint_of(program, paths, tmp_path, monkeypatch, capsys, flags, status=2) -> str:
    monkeypatch.chdir(tmp_path)
    words = [paths.get(word, word) for word in flags]
    data = words.pop(words.index("--data") + 1) if "--data" in words else paths["DATA"]
    words = [word for word in words if word != "--data"]
    path = [] if "--path" in words else ["--path", paths["MODEL"]]
    before = snapshot(Path(paths["DATA"]).parent, tmp_path)
    error = one_line(lambda: program.main([data, *path, *words]), "program", capsys, status)
    assert snapshot(Path(paths["DATA"]).parent, tmp_path) == before
    return error


@pytest.mark.parametrize(("flags", "complaint"), BOTH + GENERATE)
def test_generate(paths, tmp_path, monkeypatch, capsys, flags, complaint):
    assert complaint in complaint_of(generate, paths, tmp_path, monkeypatch, capsys, flags)


@pytest.mark.parametrize(("flags", "complaint"), BOTH + INTERACTIVE)
def test_interactive(paths, tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"eins\n")))
    assert complaint in complaint_of(interactive, paths, tmp_path, monkeypatch, capsys, flags)


@pytest.mark.parametrize(
    ("value", "complaint", "status"), [(torch.nan, "not finite", 2), (3e38, "the model's outputs are not numbers", 1)]
)
def test_a_model_that_is_not_a_number(paths, tmp_path, monkeypatch, capsys, value, complaint, status):
    state = torch.load(paths["MODEL"], weights_only=True)
    state["state_dict"]["decoder.output.weight"].fill_(value)
    save(tmp_path / "nan.pt", state)
    flags = ["--path", str(tmp_path / "nan.pt"), "--max-len-b", "3"]
    assert complaint in complaint_of(generate, paths, tmp_path, monkeypatch, capsys, flags, status=status)


def test_sentences_that_are_too_long_can_be_skipped(paths, capsys):
    flags = ["--max-source-positions", "3", "--skip-invalid-size-inputs-valid-test", "--max-len-b", "3"]
    with pytest.warns(UserWarning, match="left out"):
        generate.main([paths["DATA"], "--path", paths["MODEL"], *flags])
    found = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("H-")]
    assert found == ["H-1", "H-5", "H-6", "H-3"]
