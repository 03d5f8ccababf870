"""A target and a draft by hub id: the hub's real client against a server that speaks its protocol on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from redraft.benchmarks.tiny import HIDDEN, INTERMEDIATE, LAYERS, VOCAB, make_tiny_target
from redraft.drafts.checkpoint import write_draft
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.module import DFlashModule

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = DFlashConfig(
    layers=1, hidden=HIDDEN, intermediate=INTERMEDIATE, heads=4, kv_heads=2, head_dim=16, vocab=VOCAB, norm_eps=1e-6,
    rope_theta=10000.0, block_size=4, mask_token_id=0, taps=(0, 1), target_layers=LAYERS,
)  # fmt: skip


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories are the folders ``owner/name`` under ``root``."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            folder = self.root / parts[2] / parts[3]
            if not folder.is_dir():
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                return
            if "tree" in parts:
                files = [
                    {"type": "file", "path": p.name, "oid": COMMIT, "size": p.stat().st_size} for p in folder.iterdir()
                ]
                self._send(200, json.dumps(files).encode(), {}, body)
                return
            siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self._send(
                200, json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode(), {}, body
            )
            return
        if len(parts) != 5:
            self._send(404, b"", {}, body)
            return
        owner, name, _, _, file = parts
        path = self.root / owner / name / file
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"}, body)
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file}-1"'}
        self._send(200, path.read_bytes(), headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "hub"
    make_tiny_target(root / "acme" / "tiny", tokenizer=True)
    torch.manual_seed(0)
    write_draft(root / "acme" / "tiny-draft", CONFIG, DFlashModule(CONFIG).state_dict(), None, {})
    handler = type("Here", (Hub,), {"root": root})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def generate(tmp_path: Path, endpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from redraft.server.cli import main; main()",
        "generate",
        "hello",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [*command, "--max-tokens", "6", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_target_and_draft_come_from_the_hub_and_stay(hub: str, tmp_path: Path) -> None:
    names = ["--target", "acme/tiny", "--draft", "acme/tiny-draft"]
    fetched = generate(tmp_path, hub, *names)
    assert fetched.returncode == 0, fetched.stderr
    assert "draft acme/tiny-draft+ngram-" in fetched.stderr
    again = generate(tmp_path, "http://127.0.0.1:9", *names, "--offline")
    assert (again.returncode, again.stdout) == (0, fetched.stdout), again.stderr


def test_what_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    missing = generate(tmp_path, hub, "--target", "acme/tiny", "--draft", "acme/nothing")
    assert missing.returncode == 2
    assert "no such model on the hub" in missing.stderr
    assert len(missing.stderr.strip().splitlines()[-1]) < 300
    wrong = generate(tmp_path, hub, "--target", "acme/tiny", "--draft", "acme/tiny")
    assert wrong.returncode == 2
    assert "DFlashDraftModel" in wrong.stderr
