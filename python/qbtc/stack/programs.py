"""Our own programs in the background: ``qbtc worker``, ``qbtc serve``.

They are looked after as the servers are: a folder with the log, the port and the process id.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qbtc.stack.servers import Server

__all__ = ["Program"]

ASK_S = 0.2


class Program(Server):
    """One program in a folder, of the user who starts it.

    Parameters
    ----------
    folder
        Made if absent.
    name
        For people.
    command
        Program and arguments; not needed to stop it or look at it.
    variables
        Added to the environment, which it otherwise inherits.
    answers
        Whether it does its work now; an ``OSError`` is a no.
    port
        As a server's; for programs that listen.
    """

    package = "qbtc"
    users = ("root",)

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        command: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        answers: Callable[[], bool] = lambda: True,
        port: int | None = None,
    ) -> None:
        self.name = name
        super().__init__(folder, port=port)
        self._words = list(command)
        self._variables = dict(variables or {})
        self._ready = answers

    @property
    def url(self) -> str:
        """Where it answers HTTP, if it does."""
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        return

    def _command(self) -> Sequence[str | Path]:
        return self._words

    def _answers(self) -> bool:
        # Asking costs more than asking a server does, and loading a model takes seconds.
        time.sleep(ASK_S)
        return self._ready()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._variables}
