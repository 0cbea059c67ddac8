"""Run a command that ends by itself, and keep how it ended: ``python -m qbtc.stack.once FILE CMD``.

Whoever started a background process cannot ask for its exit code once they are gone themselves.
"""

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

__all__ = ["ended", "main"]


def main(file: Path, command: list[str]) -> int:
    """Run the command, pass SIGTERM on to it, and write its exit code to the file."""
    file.unlink(missing_ok=True)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def stop(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    code = child.wait()
    temporary = file.with_suffix(".tmp")
    temporary.write_text(f"{code}\n", encoding="ascii")
    temporary.replace(file)
    return code


def ended(file: Path) -> int | None:
    """Return the exit code in a file; None: the command did not end by itself."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(abs(main(Path(sys.argv[1]), sys.argv[2:])))
