"""What the container's health check asks and says."""

import os
import subprocess
import sys

import pytest

from redraft.server.healthcheck import complaint

COMMAND = [sys.executable, "-P", "-m", "redraft.server.healthcheck"]


def variables(server, **more):
    """The server's own variables, as the image and its operator set them."""
    return {"REDRAFT_HOST": "0.0.0.0", "REDRAFT_PORT": server.url.rpartition(":")[2], **more}


def test_a_server_that_takes_requests_is_healthy(serve, canned):
    server = serve(canned.engine("ok"))
    assert complaint(variables(server)) is None
    result = subprocess.run(COMMAND, env={**os.environ, **variables(server)}, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_loading_draining_and_dead_are_not(serve, canned):
    engine = canned.engine("ok")
    info, engine.info = engine.info, None
    server = serve(engine)
    assert complaint(variables(server)) == '503 {"status":"loading"}'
    engine.info, server.service.draining = info, True
    assert complaint(variables(server)) == '503 {"status":"draining"}'
    server.service.draining, engine.alive = False, False
    assert complaint(variables(server)) == '503 {"status":"dead"}'
    result = subprocess.run(COMMAND, env={**os.environ, **variables(server)}, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (1, b'not ready: 503 {"status":"dead"}\n')


@pytest.mark.parametrize("variable", ["REDRAFT_API_KEY", "REDRAFT_API_KEY_FILE"])
def test_guarded_probes_are_asked_with_the_operators_key(serve, canned, tmp_path, variable):
    server = serve(canned.engine("ok"), api_keys=("secret", "other"), guard="all")
    file = tmp_path / "keys"
    file.write_text("secret\nother\n")
    given = {"REDRAFT_API_KEY": "secret other", "REDRAFT_API_KEY_FILE": str(file)}[variable]
    assert complaint(variables(server, **{variable: given})) is None
    reason = complaint(variables(server))
    assert reason is not None
    assert reason.startswith("401 ")


def test_nobody_there_and_nonsense_are_told(serve, canned):
    server = serve(canned.engine("ok"))
    address = variables(server, REDRAFT_API_KEY_FILE="/nowhere/keys")
    assert "/nowhere/keys" in str(complaint(address))
    assert "ValueError" in str(complaint({"REDRAFT_PORT": "many"}))
    assert "refused" in str(complaint({"REDRAFT_PORT": "1"}))


def test_it_loads_the_standard_library_alone():
    code = (
        "import sys\nbefore = set(sys.modules)\nimport redraft.server.healthcheck\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert loaded - set(sys.stdlib_module_names) == {'redraft'}, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
