"""The teacher made of torchvision's trained WRN-50-2."""

from pathlib import Path

import import_teacher
import pytest
import torch
import torchvision
from deficient import teacher

from lab.cli import UserError


def write_classes(folder: Path, count: int) -> Path:
    for index in range(count):
        (folder / "train" / f"n{index:04}").mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_the_imported_teacher_is_torchvisions(tmp_path):
    weights, data, folder = tmp_path / "weights.pth", write_classes(tmp_path / "imagenet", 1000), tmp_path / "t"
    theirs = torchvision.models.wide_resnet50_2().eval()
    torch.save(theirs.state_dict(), weights)
    flags = ["-t", str(folder), "--imagenet_loc", str(data), "--weights", str(weights)]
    import_teacher.main(flags)
    found = teacher.read(folder)
    teacher.check_classes(found, tuple(path.name for path in sorted((data / "train").iterdir())))
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(found.network()(images), theirs(images))
    with pytest.raises(UserError, match="already holds a run"):
        import_teacher.main(flags)


@pytest.mark.parametrize(
    ("classes", "content", "complaint"),
    [(0, None, "it has 0"), (3, None, "it has 3"), (1000, {"conv1.weight": torch.zeros(1)}, "another network")],
)
def test_what_cannot_be_imported(tmp_path, classes, content, complaint):
    write_classes(tmp_path / "imagenet", classes)
    torch.save(content, tmp_path / "weights.pth")
    flags = ["--imagenet_loc", str(tmp_path / "imagenet"), "--weights", str(tmp_path / "weights.pth")]
    with pytest.raises(UserError, match=complaint):
        import_teacher.main(["-t", str(tmp_path / "t"), *flags])
    assert not (tmp_path / "t").exists()


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(type(import_teacher.WEIGHTS), "get_state_dict", offline)
    with pytest.raises(UserError, match=r"no network.*--weights FILE"):
        import_teacher.main(["-t", str(tmp_path / "t"), "--imagenet_loc", str(write_classes(tmp_path, 1000))])
