import random

from benchmarks.structured import run, schema_cases, shipped_model, tool_cases

from qbtc import _core


def test_answers_of_the_shipped_model_fit_their_schemas_and_tools() -> None:
    rng = random.Random(7)
    cases = [*schema_cases(8, rng), *tool_cases(2, rng)]
    engine = _core.LanguageEngine(shipped_model(), threads=1)
    try:
        run(engine, cases, 7)
    finally:
        engine.close()
    assert [case.verdict for case in cases] == [""] * len(cases)
