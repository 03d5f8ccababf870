"""The command: quick to answer, complete in its help, short in its errors."""

import json
import re
import shlex
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from redraft.server.cli import DEFAULT_TARGET, app
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.target.embedded import SMOLLM2
from redraft.server.engine.types import RedraftError
from redraft.server.launch import base_url, check_address, check_keys, example
from redraft.server.settings import ServerSettings

SERVE_OPTIONS = (
    "target",
    "draft",
    "draft-ngram",
    "draft-own-tokens",
    "revision",
    "offline",
    "dtype",
    "device",
    "gpu-memory-utilization",
    "max-model-len",
    "max-num-seqs",
    "max-num-batched-tokens",
    "prefix-caching",
    "cuda-graphs",
    "speculation",
    "max-nodes",
    "host",
    "port",
    "served-model-name",
    "page",
    "api-key",
    "api-key-file",
    "guard",
    "cors-origin",
    "max-queue",
    "request-timeout",
    "drain-seconds",
    "tool-parser",
    "reasoning-parser",
    "metrics-names",
    "price-per-hour",
    "log-format",
    "log-prompts",
    "otlp-endpoint",
)
runner = CliRunner()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom redraft.server.cli import app\n"
        "app(['serve', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'numpy', 'tokenizers', 'huggingface_hub', 'uvicorn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "")


@pytest.mark.parametrize("option", SERVE_OPTIONS)
def test_every_option_of_serve_has_its_variable(option: str) -> None:
    text = runner.invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert re.search(rf"--{option} .*\[env\s+var:\s+REDRAFT_{option.upper().replace('-', '_')}[;\]]", text, re.DOTALL)


def test_serve_has_no_option_without_a_variable() -> None:
    text = runner.invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert set(re.findall(r"^ +--([a-z-]+)", text, re.MULTILINE)) == {*SERVE_OPTIONS, "help"}


def test_the_variables_are_read() -> None:
    result = runner.invoke(app, ["serve", "--port", "0"], env={"REDRAFT_TARGET": "/no/such/folder"})
    assert "there is no folder /no/such/folder" in result.output


def test_the_default_target_is_the_embedded_one() -> None:
    assert SMOLLM2.alias == DEFAULT_TARGET


@pytest.mark.parametrize("arguments", [["serve", "--port", "0"], ["generate", "Hello"]])
def test_what_can_be_mended_is_one_line(arguments: list[str]) -> None:
    result = runner.invoke(app, [*arguments, "--target", "/no/such/folder"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"redraft: there is no folder /no/such/folder;[^\n]*\n", result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dtype", "int4"],
        ["--device", "tpu"],
        ["--gpu-memory-utilization", "1.5"],
        ["--max-queue", "-1"],
        ["--request-timeout", "0"],
        ["--request-timeout", "nan"],
        ["--drain-seconds", "inf"],
        ["--drain-seconds", "-1"],
        ["--guard", "some"],
        ["--max-num-seqs", "0"],
        ["--max-num-batched-tokens", "9"],
        ["--speculation", "on"],
        ["--tool-parser", "mistral"],
        ["--reasoning-parser", "harmony"],
        ["--speculation", ""],
        ["--speculation", "64"],
        ["--speculation", "-1"],
        ["--speculation", "1.5"],
        ["--speculation", "٣"],
        ["--speculation", "9" * 5000],
        ["--port", "70000"],
        ["--metrics-names", "sglang"],
        ["--price-per-hour", "-1"],
        ["--price-per-hour", "inf"],
        ["--log-format", "xml"],
        ["--unknown", "1"],
    ],
    ids=" ".join,
)
def test_wrong_values_are_refused(arguments: list[str]) -> None:
    result = runner.invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--temperature", "nan"], ["--temperature", "inf"], ["--top-p", "nan"], ["--gpu-memory-utilization", "nan"]],
    ids=" ".join,
)
def test_numbers_must_be_finite(arguments: list[str]) -> None:
    result = runner.invoke(app, ["generate", "Hello", "--target", "/no/such/folder", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert "/no/such/folder" not in result.stderr


def test_a_port_in_use_is_refused_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = runner.invoke(app, ["serve", "--port", str(port), "--target", "/no/such/folder"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"redraft: cannot listen on 127.0.0.1:{port} (")
    check_address("127.0.0.1", port)


def test_an_empty_key_is_refused() -> None:
    assert check_keys(["one", "two"]) == ("one", "two")
    with pytest.raises(RedraftError, match="--api-key is empty"):
        check_keys(["one", ""])


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_does_not_open_the_server(value: str) -> None:
    arguments = ["serve", "--port", "0", "--target", "/no/such/folder"]
    result = runner.invoke(app, arguments, env={"REDRAFT_API_KEY": value})
    assert result.exit_code == 2
    assert result.stderr.startswith("redraft: an --api-key is empty;")
    given = runner.invoke(app, [*arguments, "--api-key", "secret"], env={"REDRAFT_API_KEY": value})
    assert "there is no folder" in given.stderr


def test_an_empty_file_variable_does_not_open_the_server() -> None:
    arguments = ["serve", "--port", "0", "--target", "/no/such/folder"]
    result = runner.invoke(app, arguments, env={"REDRAFT_API_KEY_FILE": ""})
    assert (result.exit_code, "REDRAFT_API_KEY_FILE is empty" in result.stderr) == (2, True)


def test_keys_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\ntwo\n")
    assert check_keys(["zero"], file) == ("zero", "one", "two")
    for content, reason in ((b"", "has no keys"), (b" \n", "has no keys"), (b"\xff\xfe", "it is not text")):
        file.write_bytes(content)
        with pytest.raises(RedraftError, match=f"--api-key-file .*{reason}"):
            check_keys([], file)
    arguments = ["serve", "--port", "0", "--target", "/no/such/folder"]
    missing = runner.invoke(app, [*arguments, "--api-key-file", str(tmp_path / "absent")])
    assert (missing.exit_code, "absent cannot be read: No such file" in missing.stderr) == (2, True)


def test_a_guard_needs_keys() -> None:
    result = runner.invoke(app, ["serve", "--port", "0", "--target", "/no/such/folder", "--guard", "all"])
    assert (result.exit_code, "--guard all asks for keys" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "origin", ["", "example.org", "https://example.org/", "https://a.example/x", "null", "https://"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    result = runner.invoke(app, ["serve", "--port", "0", "--target", "/no/such/folder", "--cors-origin", origin])
    assert (result.exit_code, "is no origin" in result.stderr) == (2, True)


def test_settings_of_http_are_those_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("two")
    served: list[ServerSettings] = []
    monkeypatch.setattr("redraft.server.launch.serve", lambda config, settings: served.append(settings))
    monkeypatch.setattr("redraft.server.cli.engine_config", lambda context: EngineConfig("/target", "toy", "sha"))
    given = ["--host", "127.0.0.2", "--api-key", "one", "--api-key-file", str(tmp_path / "keys"), "--guard", "metrics"]
    given += ["--cors-origin", "https://a.example:8443", "--cors-origin", "*", "--max-queue", "7"]
    given += ["--request-timeout", "1.5", "--drain-seconds", "2", "--served-model-name", "name", "--no-page"]
    assert runner.invoke(app, ["serve", "--port", "0", *given]).exit_code == 0
    assert runner.invoke(app, ["serve", "--port", "0"]).exit_code == 0
    expected = ServerSettings(
        "name", "127.0.0.2", 0, ("one", "two"), "metrics", ("https://a.example:8443", "*"), 7, 1.5, 2.0, page=False
    )
    assert served == [expected, ServerSettings("toy", port=0)]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("example.test", "http://example.test:80"),
    ],
)
def test_the_url_is_one_that_a_client_can_use(host: str, url: str) -> None:
    assert base_url(host, 80) == url


def test_the_example_is_a_request_that_the_shell_passes_on_whole() -> None:
    settings = ServerSettings(served_model_name='it\'s a "model"', port=1, api_keys=("secret",))
    words = shlex.split(example(settings, 81, chat=True))
    assert words[:2] == ["curl", "http://127.0.0.1:81/v1/chat/completions"]
    assert "Authorization: Bearer YOUR_KEY" in words
    assert "secret" not in " ".join(words)
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == settings.served_model_name
    assert body["messages"][0]["role"] == "user"
    assert "prompt" in json.loads(shlex.split(example(settings, 81, chat=False))[-1])


def test_bench_is_loaded_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = types.ModuleType("redraft.benchmarks.cli")
    commands = typer.Typer()

    @commands.command()
    def speed(limit: int = 1) -> None:
        typer.echo(f"measured {limit}")

    @commands.callback()
    def root() -> None:
        """Measurements."""

    vars(benchmarks)["app"] = commands
    monkeypatch.setitem(sys.modules, "redraft.benchmarks.cli", benchmarks)
    assert runner.invoke(app, ["bench", "speed", "--limit", "3"]).stdout == "measured 3\n"
    assert "redraft bench speed [OPTIONS]" in runner.invoke(app, ["bench", "speed", "--help"]).stdout
    failed = runner.invoke(app, ["bench", "speed", "--nothing", "3"])
    assert (failed.exit_code, "--nothing" in failed.stderr) == (2, True)


def test_the_makefile_lists_its_targets(repository: Path) -> None:
    help_text = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    for target in ("install", "serve", "test", "test-slow", "docs-check", "soak", "lint", "format", "clean"):
        assert f"make {target} " in help_text
