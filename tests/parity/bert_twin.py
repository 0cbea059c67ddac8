"""The sentence embedder, written again in NumPy: float64, one text at a time, from the definition.

BERT (Devlin et al. 2018) with post-norm layers and exact GELU; the vector of a text is the mean of
its tokens' last layer, of unit length (``sentence-transformers``' mean pooling and normalisation).
"""

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

F64 = npt.NDArray[np.float64]

_erf = np.vectorize(math.erf)


class BertTwin:
    """A folder in the form that ``sentence-transformers`` writes, held in float64."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        self._weights = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
        config = json.loads((folder / "config.json").read_bytes())
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        read = json.loads((folder / "sentence_bert_config.json").read_bytes())
        self._tokenizer.enable_truncation(read["max_seq_length"])

    def embed(self, text: str) -> F64:
        """The vector of a text, (dim)."""
        tokens = self._tokenizer.encode(text).ids
        stream = self._weights["embeddings.word_embeddings.weight"][tokens]
        stream = stream + self._weights["embeddings.position_embeddings.weight"][: len(tokens)]
        stream = stream + self._weights["embeddings.token_type_embeddings.weight"][0]
        stream = self._norm("embeddings.LayerNorm", stream)
        for layer in range(self._layers):
            stream = self._layer(f"encoder.layer.{layer}", stream)
        mean = stream.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def _layer(self, name: str, stream: F64) -> F64:
        mixed = self._linear(f"{name}.attention.output.dense", self._attention(name, stream))
        stream = self._norm(f"{name}.attention.output.LayerNorm", stream + mixed)
        hidden = self._linear(f"{name}.intermediate.dense", stream)
        hidden = hidden * (1 + _erf(hidden / math.sqrt(2))) / 2
        mixed = self._linear(f"{name}.output.dense", hidden)
        return self._norm(f"{name}.output.LayerNorm", stream + mixed)

    def _attention(self, name: str, stream: F64) -> F64:
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", stream)
            .reshape(len(stream), self._heads, -1)
            .swapaxes(0, 1)  # (heads, tokens, numbers)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[2])
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return np.asarray((weights @ value).swapaxes(0, 1).reshape(stream.shape))

    def _linear(self, name: str, rows: F64) -> F64:
        weights, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return np.asarray(rows @ weights.T + bias)

    def _norm(self, name: str, rows: F64) -> F64:
        scale, shift = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        centred = rows - rows.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self._epsilon)
        return np.asarray(centred / spread * scale + shift)
