"""The files of a corpus, at hand or downloaded."""

import gzip
import hashlib
import math
import tarfile
import urllib.request
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from lab.checkpoint import write_whole
from lab.cli import RunError, UserError
from lab.record import progress

from ..text import decoded

_CHUNK = 1 << 16
_PATIENCE = 60  # seconds without an answer


@dataclass
class Files:
    """Where the files of a corpus come from.

    Args:
        at_hand: a folder that has them, or None to download them.
        mirrors: addresses of folders on the web; the first that has a file is taken.
        kept: where downloaded files are kept, and found the next time.
        checksums: SHA-256 in hexadecimal by file name, of files that must have it.
    """

    at_hand: Path | None
    mirrors: Iterable[str]
    kept: Path
    checksums: dict[str, str] = field(default_factory=dict)

    def get(self, *names: str) -> Path:
        """Return the path of the first of `names` that is at hand, or of the last one, downloaded.

        Raises:
            UserError: if none of them is at hand, or its checksum is another.
            RunError: if no mirror has it.
        """
        folder = self.at_hand or self.kept
        path = next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])
        if not path.is_file():
            if self.at_hand:
                raise UserError(f"{folder} has none of {', '.join(names)}")
            self._download(path)
        wanted = self.checksums.get(path.name)
        if wanted and wanted.lower() != (found := _checksum(path)):
            raise UserError(f"{path} has the SHA-256 {found}, not {wanted}; remove it and get it again")
        return path

    def _download(self, path: Path) -> None:
        failures = []
        for mirror in self.mirrors:
            address = f"{mirror.rstrip('/')}/{path.name}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with urllib.request.urlopen(address, timeout=_PATIENCE) as answer:
                    write_whole(path, lambda file: _copy(answer, file, path.name))  # noqa: B023, called at once
                print(f"{address}: SHA-256 {_checksum(path)}")
                return
            except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address
                failures.append(f"{address} ({error})")
        raise RunError(f"cannot download {'; '.join(failures)}; name a mirror with --url, or a folder with --from")


def _copy(answer: HTTPResponse, file: BinaryIO, name: str) -> None:
    length = int(answer.headers.get("Content-Length") or 0)
    chunks = iter(lambda: answer.read(_CHUNK), b"")
    received = sum(file.write(chunk) for chunk in progress(chunks, math.ceil(length / _CHUNK), name, is_main=True))
    if length and received != length:
        raise OSError(f"ended after {received} of {length} bytes")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(path: Path, member: str = "") -> list[str]:
    """Return the lines of a text, which may be packed (`.gz`) or be the file `member` of an archive (`.tgz`).

    Raises:
        UserError: if it cannot be read, is damaged, or is not UTF-8.
    """
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                return list(decoded(archive.extractfile(member), f"{path}: {member}"))
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return list(decoded(file, path))
    except KeyError:
        raise UserError(f"{path} has no {member}") from None
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read, or is damaged ({error}); remove it and get it again") from None
