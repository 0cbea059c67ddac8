"""`qbtc serve` as a process of its own, with the scripted engine in the place of a model.

Run as ``python -m tests.clients.scripted_process`` with the options of ``qbtc serve``.
"""

import sys

from tests.clients.scripts import Talk
from tests.support.scripted_engine import ScriptedEngine

import qbtc_gateway.server
from qbtc.cli import main
from qbtc.llm.engine import Engine
from qbtc_gateway.settings import Settings


async def load(_: Settings) -> Engine:
    return ScriptedEngine(Talk())


if __name__ == "__main__":
    real = qbtc_gateway.server.run

    def run(settings: Settings, *, as_json: bool) -> None:
        real(settings, as_json=as_json, load=load)

    qbtc_gateway.server.run = run
    sys.argv[1:] = ["serve", *sys.argv[1:]]
    main()
