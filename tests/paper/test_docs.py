"""Tables in documents are what the records give."""

import pytest

from lab.cli import UserError
from paper import docs, keep
from tests.paper.samples import SI, make_run

TEXT = """Before.

<!-- table: pytorch_resnet_cifar10 --from results --columns trials last -->
<!-- end of table -->

After.
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    for name, arguments, final in (("plain", {}, 70.0), ("si", SI, 80.0)):
        make_run(tmp_path / "runs" / name / "1", arguments, final=final)
    keep.main([str(tmp_path / "runs"), "--to", str(tmp_path / "results")])
    (tmp_path / "README.md").write_text(TEXT)
    return tmp_path


def test_the_tables_of_this_repository():
    docs.main(["--check"])


def test_tables_are_written_and_compared(repository, capsys):
    with pytest.raises(UserError, match=r"differ from what the records give in .*README.md; python -m paper docs"):
        docs.main(["--check"])
    assert (repository / "README.md").read_text() == TEXT
    docs.main([])
    text = (repository / "README.md").read_text()
    assert text.startswith(TEXT[:30]) and text.endswith("\n<!-- end of table -->\n\nAfter.\n")
    assert "| plain              |      1 |    70.00 |\n| SI                 |      1 |    80.00 |\n" in text
    docs.main(["--check"])
    record = repository / "results/si-1.json"
    record.write_text(record.read_text().replace('"final": 80.0', '"final": 81.0'))
    with pytest.raises(UserError, match="differ"):
        docs.main(["--check"])
    docs.main([])
    assert (repository / "README.md").read_text() == text.replace("80.00", "81.00")


@pytest.mark.parametrize("text, message", [
    (TEXT.replace("<!-- end of table -->\n", ""), "a table begins with .* and ends with"),
    (TEXT.replace("<!-- table", "<!-- tables"), "a table begins with"),
    (TEXT.replace(" --from results", ""), "say with --from which records"),
    (TEXT.replace("--from results", "--from nowhere"), "no such file or folder"),
    (TEXT.replace("trials last", "trials lost"), "there is no column lost"),
    (TEXT.replace("pytorch_resnet", "resnet"), "invalid choice"),
])  # fmt: skip
def test_mistakes(repository, text, message):
    (repository / "README.md").write_text(text)
    with pytest.raises(UserError, match=message):
        docs.main([])
    assert (repository / "README.md").read_text() == text


def test_no_row_is_lost_unseen(repository):
    (repository / "results/plain-1.json").write_text("{")
    with pytest.raises(UserError, match="plain-1.json is not JSON"):
        docs.main([])


def test_a_document_that_cannot_be_read(repository):
    (repository / "x.md").write_bytes(b"\xff")
    for name, why in (("x.md", "it is not text"), ("y.md", "No such file")):
        with pytest.raises(UserError, match=f"cannot read .*{name}: {why}"):
            docs.main([str(repository / name)])
