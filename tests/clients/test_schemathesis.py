"""Schemathesis reads our own description of the interface and tries to break it.

No request may end in a 5xx, and every answer must be what the description says: its status, its
content type, its headers, its body. Over a real connection, through the whole application.
"""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.clients.served import serving
from tests.support.scripted_engine import EMBEDDING_MODEL, MODEL, ScriptedEngine, end, text

from qbtc_gateway.settings import Limits

EXAMPLES = 25
ANSWER_S_MAX = 60
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    engine = ScriptedEngine([*text("Hello ", "there"), end()])
    limits = Limits(requests_per_minute_max=0, drain_s_max=1)
    with serving(engine, tmp_path_factory.mktemp("keys"), limits=limits) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=ANSWER_S_MAX)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_as_described(
    described: schemathesis.BaseSchema, mode: schemathesis.GenerationMode
) -> None:
    tried = set()
    for result in described.get_all_operations():
        operation = result.ok()
        tried.add(operation.label)
        try:
            attempt(operation, mode)
        except Unsatisfiable:
            # Nothing can be wrong about a request without parameters.
            assert mode is schemathesis.GenerationMode.NEGATIVE
    assert {"POST /v1/chat/completions", "GET /v1/models", "GET /health/ready"} <= tried


def attempt(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode) -> None:
    """Send one endpoint many requests, and hold every answer to its description."""
    served = EMBEDDING_MODEL if operation.path == "/v1/embeddings" else MODEL

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            # No name made by chance is one that is served.
            case.body["model"] = served
        case.call_and_validate(checks=CHECKS, timeout=ANSWER_S_MAX)

    each()
