"""What files of language models say about themselves; nothing is loaded."""

import math
import os
from collections import Counter
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from qbtc import _core
from qbtc.errors import ModelError

__all__ = ["EmbedderSummary", "ModelSummary", "summarize_embedder", "summarize_model"]


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a GGUF file."""

    architecture: str
    name: str
    context_tokens: int
    vocabulary: int
    parameters: int
    quantization: str
    """The kind that most of its bytes have, e.g. ``Q4_1``."""
    bytes: int


def summarize_model(path: str | os.PathLike[str]) -> ModelSummary:
    """Check a GGUF file's head and tensor table, and read the facts for people.

    Raises
    ------
    ModelError
        It is not a GGUF file of a language model, damaged, or of an unsupported kind.
    """
    try:
        return msgspec.convert(_core.language_model_summary(path), ModelSummary)
    except (_core.CoreModelError, OSError) as error:
        raise ModelError(f"{path}: {error}") from None


class EmbedderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a sentence embedder's folder."""

    architecture: str
    context_tokens: int
    vocabulary: int
    parameters: int
    quantization: str
    bytes: int


class _BertConfig(msgspec.Struct):
    model_type: str
    vocab_size: int
    max_position_embeddings: int


class _SentenceConfig(msgspec.Struct):
    max_seq_length: int


def summarize_embedder(folder: str | os.PathLike[str]) -> EmbedderSummary:
    """Read the facts of a folder in the form that ``sentence-transformers`` writes.

    Raises
    ------
    ModelError
        A file is missing or damaged.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_BertConfig)
        context = config.max_position_embeddings
        sentences = folder / "sentence_bert_config.json"
        if sentences.is_file():
            told = msgspec.json.decode(sentences.read_bytes(), type=_SentenceConfig)
            context = min(context, told.max_seq_length)
        with safe_open(weights, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
            parameters = sum(math.prod(each.get_shape()) for each in shapes)
            kinds = Counter(each.get_dtype() for each in shapes)
        size = weights.stat().st_size
    except OSError as error:
        raise ModelError(f"{folder}: {error}; is it an embedder's folder?") from None
    except (msgspec.MsgspecError, SafetensorError) as error:
        raise ModelError(f"{folder}: {error}; get the folder again") from None
    return EmbedderSummary(
        architecture=config.model_type,
        context_tokens=context,
        vocabulary=config.vocab_size,
        parameters=parameters,
        quantization=kinds.most_common(1)[0][0] if kinds else "",
        bytes=size,
    )
