"""The OpenAPI schema against the server, engine and all: whatever schemathesis sends, good or bad, is answered as
documented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.app import create_app
from redraft.server.settings import ServerSettings


def described(**options: Any) -> Any:
    """The schema of an app with these settings; no engine is asked for it."""
    app = create_app(cast("Any", None), cast("Any", None), ServerSettings("tiny", **options))
    # what parameters say together, and what fits the model, JSON Schema cannot express: 400 is right for some of that
    checks = {"positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404]}}
    config = schemathesis.Config.from_dict({"seed": 1, "checks": checks})
    return schemathesis.openapi.from_dict(app.openapi(), config=config)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server whose context is short, so that no reply takes long."""
    folder = tmp_path_factory.mktemp("schema")
    make_tiny_target(folder / "tiny", tokenizer=True)
    options = ["--target", str(folder / "tiny"), "--device", "cpu", "--max-model-len", "64", "--max-queue", "0"]
    with ServedProcess(options, folder / "output") as process:
        yield process.url
        assert process.stop() == 0
        assert "Traceback" not in process.printed, process.printed


@pytest.fixture(scope="module")
def guarded(running, canned):
    with running(canned.engine("fine"), api_keys=("first",), guard="metrics") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def answered():
    """Statuses by operation; in the end every operation was answered well, and what takes a body refused some."""
    seen: dict[str, Counter[int]] = {}
    yield seen
    for name, statuses in seen.items():
        assert statuses[200] > (10 if name.startswith("POST") else 0) or "{name}" in name, seen
        assert statuses[400] > 10 or not name.startswith("POST"), seen


def quick(examples: int) -> Any:
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@described().parametrize()
@quick(40)
def test_replies_are_as_documented(case, url, answered):
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        # any other name would be all that is ever complained about
        case.body = {**case.body, "model": "tiny"}
    reply = case.call_and_validate(base_url=url)
    answered.setdefault(case.operation.label, Counter())[reply.status_code] += 1
    assert reply.status_code < 500, "nothing that a client sends is the server's fault"


@described(api_keys=("first",), guard="metrics").include(method="GET").parametrize()
@quick(3)
def test_keys_are_as_documented(case, guarded):
    case.call_and_validate(base_url=guarded.url, headers={"Authorization": "Bearer first"})
