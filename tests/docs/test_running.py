"""The documents' commands do what they say: page by page, in order, as a reader would, but on a tiny target."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target

LAYERS = 8
"""Of the target: drafts read three of them."""
MODEL = "smollm2-135m"
"""What documents call the model."""
PROMPTS = ("prompts", "mine", "written", "gsm8k", "humaneval", "mt-bench")
TEXTS = ("answers", "held-out", "gsm8k-answers")
KEY = "a-key"
PLACES = {"TARGET": "$TARGET", "FOLDER": "$TARGET", "DRAFT": "run/draft", "DIR": "out", "PROMPTS": "gsm8k.jsonl"}
"""Words that stand for a reader's own, and what stands for them here."""


@dataclass
class Reader:
    """Somebody who follows a page: a folder, a shell, and files that the page takes for granted."""

    folder: Path
    repository: Path
    environment: dict[str, str]
    draft: Callable[[], Path]
    url: str = ""
    """Of a server that runs already."""

    def follow(self, commands: list[Any]) -> None:
        for command in commands:
            begun = time.monotonic()
            if command.rule.way == "serve":
                self.serve(command)
            else:
                self.run(command)
            print(f"{time.monotonic() - begun:6.1f} s  {command}", flush=True)

    def arguments(self, command: Any) -> dict[str, Any]:
        """Of the process that ``command`` is."""
        text = command.text
        if self.url:
            text = re.sub(r"http://127\.0\.0\.1:800[01]", self.url, text)
        words = [sys.executable, "-c", text]
        if command.language == "sh":
            for word, place in PLACES.items():
                text = re.sub(rf"(?<= ){word}\b(?!=)", place, text)
            self.provide(shlex.split(text, comments=True) + shlex.split(command.rule.add))
            # the end of the last line may be a comment
            *lines, last = text.split("\n")
            last = re.sub(r"\s+#.*$", "", last)
            words = ["bash", "-euo", "pipefail", "-c", "\n".join([*lines, f"{last} {command.rule.add}"])]
        folder = copied(self.repository, self.folder) if command.rule.copy else self.folder
        return {"args": words, "cwd": folder, "env": self.environment, "text": True, "stderr": subprocess.STDOUT}

    def provide(self, words: list[str]) -> None:
        """Files that ``words`` read and nobody has written."""
        read = {word for before, word in zip(["", *words], words, strict=False) if before != "--out"}
        for name in read:
            path = self.folder / name
            if path.exists():
                continue
            if path.stem in PROMPTS:
                lines: list[dict[str, Any]] = [{"turns": [f"Count to {n}, {path.stem}."]} for n in (3, 4, 5)]
                path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            elif path.stem in TEXTS:
                path.write_text("".join(json.dumps(text(path.stem, number)) + "\n" for number in range(24)))
            elif name == "run/draft":
                shutil.copytree(self.draft(), path)
        (self.folder / "keys").write_text(KEY + "\n")

    def run(self, command: Any) -> None:
        """To its end, which has to be good."""
        done = subprocess.run(**self.arguments(command), stdout=subprocess.PIPE, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        # in a stream it comes behind status 200
        assert '{"error"' not in done.stdout, f"{command}\n{done.stdout[-4000:]}"

    def serve(self, command: Any) -> None:
        """Until it serves; what it prints as an example has to work, and SIGINT to end it."""
        output = self.folder / "served"
        with output.open("w") as log:
            process = subprocess.Popen(**self.arguments(command), stdout=log, start_new_session=True)
        try:
            while "curl " not in output.read_text():
                assert process.poll() is None, f"{command}\n{output.read_text()}"
                time.sleep(0.1)
            example = output.read_text().splitlines()[-1].replace("YOUR_KEY", KEY)
            asked = subprocess.run([*shlex.split(example), "--silent", "--fail"], capture_output=True, check=True)
            assert json.loads(asked.stdout)["choices"]
            os.killpg(process.pid, signal.SIGINT)
            # make itself ends by the signal
            assert process.wait(60) == 0 or command.words[0] == "make", output.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def text(name: str, number: int) -> dict[str, Any]:
    """A row of a file of texts; no two files have a prompt in common."""
    ids = [(number * 7 + place * place) % 90 + 3 for place in range(24)]
    prompt = [*name.encode(), 100 + number]
    return {"prompt_ids": prompt, "response_ids": ids, "temperature": 0.0, "seed": number}


def copied(repository: Path, folder: Path) -> Path:
    """A copy of the repository in ``folder``, without what is large and without what was built."""
    copy = folder / "copy"
    if not copy.exists():
        left_out = shutil.ignore_patterns(
            ".*", "__pycache__", "node_modules", "build", "*.safetensors", "*.png", "shared"
        )
        shutil.copytree(repository, copy, ignore=left_out)
    return copy


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / MODEL
    return make_tiny_target(folder, tokenizer=True, layers=LAYERS)


@pytest.fixture(scope="session")
def shell(target: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> dict[str, str]:
    """Variables of a reader's shell, in which the tiny target is the default one."""
    folder = tmp_path_factory.mktemp("shell")
    for name, words in (("redraft", "-m redraft.server.cli"), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    tools = Path(sys.executable).parent
    for name in ("ruff", "mypy", "lint-imports"):
        if (tools / name).exists():
            (folder / name).symlink_to(tools / name)
    return environment | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "BIN": str(folder),
        "TARGET": str(target),
        "REDRAFT_TARGET": str(target),
        "REDRAFT_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "REDRAFT_DEVICE": "cpu",
        "REDRAFT_DTYPE": "fp32",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def served(shell: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a tiny target is being served."""
    options = ["--served-model-name", MODEL]
    with ServedProcess(options, tmp_path_factory.mktemp("served") / "output", shell) as process:
        yield process.url


@pytest.fixture(scope="session")
def draft(shell: dict[str, str], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Trains a draft for the tiny target, once."""
    folder = tmp_path_factory.mktemp("draft")

    def train() -> Path:
        if not (folder / "run").exists():
            reader = Reader(folder, repository, shell, train)
            reader.provide(["answers.jsonl"])
            sizes = "--steps 2 --batch 2 --anchors 4 --vocab 64 --block-size 4 --layers 1"
            words = ["bash", "-c", f"redraft train sft --data answers.jsonl --out run {sizes}"]
            subprocess.run(words, cwd=folder, env=shell, check=True, capture_output=True)
        return folder / "run" / "draft"

    return train


def test_quick_commands(quick_commands, served, shell, repository, tmp_path):
    port = served.rpartition(":")[2]
    if any(command.words[:1] == ["promtool"] for command in quick_commands) and shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    Reader(tmp_path, repository, shell | {"REDRAFT_PORT": port}, pytest.fail, served).follow(quick_commands)


@pytest.mark.docs
@pytest.mark.timeout(1200)
def test_slow_commands(slow_commands, draft, shell, repository, tmp_path):
    Reader(tmp_path, repository, shell, draft).follow(slow_commands)
