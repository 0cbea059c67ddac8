"""The compiled core: numerics in Rust. This stub is its manual.

Wrong arguments raise :class:`CoreInputError`, a model file that does not fit raises
:class:`CoreModelError`, a file that cannot be read raises ``OSError``; each message names the
field. ``qbtc.core`` turns them into the errors of ``qbtc.errors``.
"""

from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import Any, Literal, Protocol, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CoreBusyError",
    "CoreContextError",
    "CoreInputError",
    "CoreModelError",
    "Embedder",
    "FeatureEngine",
    "ForwardTimer",
    "LanguageEngine",
    "ReplaySession",
    "Signal",
    "SignalBuffer",
    "SignalModel",
    "SignalSession",
    "build_info",
    "bulk_features",
    "bulk_signals",
    "check_constraint",
    "feature_notation",
    "feature_schema_sha256",
    "feature_table",
    "int8_peak",
    "language_fidelity",
    "language_model_summary",
    "read_bandwidth",
    "simulate_market",
    "time_events",
    "time_inference",
    "tiny_language_model",
    "train_logistic",
    "train_mlp",
    "train_mps",
]

class CoreBusyError(RuntimeError):
    """A queue of the core is full; nothing was queued."""

    retry_after_s: float
    """When to try again."""

class CoreInputError(ValueError):
    """A number from outside is not finite, out of range, or of the wrong sign."""

class CoreContextError(CoreInputError):
    """A prompt leaves no room for an answer in the model's context."""

class CoreModelError(ValueError):
    """A model file is damaged or does not fit; the message names the tensor or metadata key."""

def build_info() -> dict[str, str]:
    """Return ``version``, cargo ``profile`` and ``source_hash`` of this binary."""

def check_constraint(kind: str, text: str = "", /) -> None:
    """Refuse what an answer cannot be constrained to; needs no model, and the GIL is released.

    Parameters
    ----------
    kind
        ``json_object``, ``json_schema`` or ``lark``.
    text
        The schema or the grammar.

    Raises
    ------
    CoreInputError
        It is not valid, too large, cannot be met, or asks for what is not supported.
    """

def language_fidelity(
    path: str | PathLike[str],
    texts: list[str],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """Hold the engine's forward pass against the same weights in plain f32.

    Slow: the reference reads tens of tokens a second. The GIL is released between calls of
    ``progress(done, total)``.

    Returns
    -------
    list
        One entry a text, losses and divergences in nats: ``tokens`` (foreseen), ``loss``,
        ``reference_loss``, ``kl_mean``, ``kl_p99``, ``kl_max``, ``agreement`` (share of positions
        with the same most likely token).
    """

def language_model_summary(path: str | PathLike[str], /) -> dict[str, Any]:
    """Read what a GGUF file says about itself; only its head is read, and the GIL is released.

    Returns
    -------
    dict
        ``architecture``, ``name``, ``context_tokens``, ``vocabulary``, ``parameters``,
        ``quantization`` (the kind most of its bytes have, e.g. ``Q4_1``) and ``bytes``.
    """

def tiny_language_model(
    *, architecture: str = "llama", kind: str = "Q4_1", context: int = 512, seed: int = 1
) -> bytes:
    """Make a small GGUF file with random weights, for tests.

    Parameters
    ----------
    architecture
        ``llama`` or ``qwen2``.
    kind
        How the weights are packed, by ggml's name.
    context
        Longest sequence in tokens.
    seed
        Different seeds give different weights.
    """

def simulate_market(
    *,
    seed: int,
    duration_s: float,
    start_ns: int,
    edge: float = 1.0,
    price: float = 60_000.0,
    price_increment: float = 0.1,
    size_increment: float = 0.001,
) -> dict[str, NDArray[Any]]:
    """Generate a synthetic limit order book market.

    Hawkes order flow on a book of integer ticks, two volatility regimes, and informed flow that
    follows a hidden signal. The model and its calibration: ``docs/synthetic-market.md``. The GIL
    is released. Memory is proportional to the rows: about 1500 rows a second, 42 bytes each.

    Parameters
    ----------
    seed
        0 or more. Equal arguments give equal bits, on every platform.
    duration_s
        Simulated seconds, above 0 and at most 21 600 (and 60 million rows).
    start_ns
        UNIX nanoseconds of the first row.
    edge
        Strength of the informed flow: 0 (the future is independent of the signal), 1
        (calibrated), at most 2.
    price
        Start price, 5 000 to 1e9 increments; snapped to the grid.
    price_increment, size_increment
        The grids. Sizes are drawn in multiples of ``size_increment``.

    Returns
    -------
    dict
        The columns of ``EventColumns``, one entry per row: ``ts`` (int64 ns, non-decreasing),
        ``kind`` (uint8: 0 quote, 1 trade, 2 depth level, 3 depth clear), ``side`` (uint8: trade 0
        buy aggressor, 1 sell; depth 0 bid, 1 ask), ``a``, ``b``, ``c``, ``d`` (float64: quote
        bid, bid size, ask, ask size; trade and depth price, size, 0, 0; a depth size of 0 removes
        the level). The first rows are a depth clear, the book, and a quote; later rows of one
        time stamp come as trade, levels changed by it, new top of book. And ``latent`` (float32,
        one entry per *quote* row): the hidden signal, an Ornstein-Uhlenbeck process of variance 1
        and decay time 3 s, for tests of what can be predicted. It depends on the seed only, so
        ``edge=0`` shares it.

    Raises
    ------
    CoreInputError
        An argument is not finite or out of its limits; the message names it.
    """

class _Columns(Protocol):
    @property
    def ts(self) -> NDArray[np.int64]: ...
    @property
    def kind(self) -> NDArray[np.uint8]: ...
    @property
    def side(self) -> NDArray[np.uint8]: ...
    @property
    def a(self) -> NDArray[np.float64]: ...
    @property
    def b(self) -> NDArray[np.float64]: ...
    @property
    def c(self) -> NDArray[np.float64]: ...
    @property
    def d(self) -> NDArray[np.float64]: ...
    @property
    def price_increment(self) -> float: ...
    @property
    def size_increment(self) -> float: ...

@final
class LanguageEngine:
    """A language model and the thread that answers requests with it.

    The thread never takes the GIL. It gathers news of all requests and makes the descriptor
    ``wake_fd`` readable; ``drain`` takes them. Everything may be called from any thread.

    Parameters
    ----------
    path
        A GGUF file; mapped, checked and repacked without the GIL.
    threads
        Of a step; default: the machine's.
    isa
        ``avx512``, ``avx2`` or ``scalar`` at most; default: the best, or ``QBTC_ISA``.
    kv_bytes_max
        Memory for keys and values, the prefix cache included; taken as it is used.
    active_max, queue_max
        Requests in work, and waiting.
    speculation
        Whether to guess tokens by prompt lookup; answers are the same either way.
    snapshot
        File that keeps the prefix cache: read now, written by ``close`` and ``save_snapshot``.
    """

    def __new__(
        cls,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        isa: str | None = None,
        kv_bytes_max: int | None = None,
        active_max: int = 64,
        queue_max: int = 256,
        speculation: bool = True,
        snapshot: str | PathLike[str] | None = None,
    ) -> LanguageEngine: ...
    def info(self) -> dict[str, Any]:
        """Return what ``language_model_summary`` does, and how the model runs here.

        ``sha256``, ``isa``, ``threads``, ``reads_tools`` (whether the template shows tools),
        ``suffix`` (whether it can fill in the middle), ``bos``
        (token id or None) and ``end_tokens``.
        """

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; ``special`` reads control tokens such as ``<|im_end|>`` as such."""

    def decode(self, tokens: Sequence[int], *, keep_control: bool = False) -> bytes:
        """Bytes of tokens; not every token is a whole character."""

    def render(
        self,
        messages_json: str,
        tools_json: str | None,
        *,
        add_generation_prompt: bool,
        now_unix_s: int,
    ) -> str:
        """Write a conversation with the file's own template; the GIL is released.

        Parameters
        ----------
        messages_json, tools_json
            Arrays as in an OpenAI request, with string contents.
        add_generation_prompt
            Begin the answer.
        now_unix_s
            What the template is told when it asks for the date.

        Raises
        ------
        CoreModelError
            The file has no template that can be used.
        CoreInputError
            The template refuses the messages, or exceeds a limit.
        """

    def submit(
        self,
        prompt: Sequence[int],
        new_tokens_max: int,
        *,
        pinned: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int = 0,
        stop: Sequence[str] = ...,
        constraint: tuple[str, str] | None = None,
        logprobs: int | None = None,
        ignore_end: bool = False,
    ) -> int:
        """Queue a request and return its number; a constraint is compiled here, without the GIL.

        Parameters
        ----------
        prompt, new_tokens_max
            Token ids, at least one; most tokens to generate.
        pinned
            Leading tokens of the prompt to keep in the prefix cache before all others.
        constraint
            ``("json_object", "")``, ``("json_schema", schema)`` or ``("lark", grammar)``.
        logprobs
            Send each token's log-probability and those of this many alternatives.
        ignore_end
            Go on past the model's end-of-answer token.

        Raises
        ------
        CoreInputError
            Names the field at fault.
        CoreContextError
            The prompt leaves no room for an answer.
        CoreBusyError
            The queue is full.
        """

    def cancel(self, request: int, /) -> None:
        """End a request; its last news say so. Unknown numbers are ignored."""

    def drain(self, skip: Collection[int] | None = None, /) -> list[tuple[Any, ...]]:
        """Take all news but those of the requests in ``skip``; reset ``wake_fd``; never wait.

        Returns
        -------
        list
            ``(request, "prefill", done, total, cached)``,
            ``(request, "text", text, tokens, logprobs)`` with a list of
            ``(id, bytes, logprob, [(id, bytes, logprob), ...])`` or None, and
            ``(request, "finished", reason, stop, error, usage)`` where the reason is ``stop``,
            ``length``, ``cancelled`` or ``failed`` and usage the counts of prompt, cached,
            generated and drafted tokens, then queued, first-token and total time in ns.
        """

    def wake_fd(self) -> int:
        """Descriptor that is readable while ``drain`` has something; the engine owns it."""

    def stats(self) -> dict[str, int]:
        """Return counters since the start and gauges of the last step."""

    def restored(self) -> tuple[int, str | None]:
        """Pages that the snapshot gave back, and why it was ignored, if it was."""

    def save_snapshot(self) -> int:
        """Write the prefix cache to its file without the GIL, and return the file's bytes."""

    def close(self) -> None:
        """End all requests as cancelled, keep the snapshot, stop the thread, free the model."""

@final
class Embedder:
    """A sentence embedder (BERT, mean pooling, unit length) and its threads.

    Calls from several threads take turns; the GIL is released.

    Parameters
    ----------
    folder
        With ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
    threads
        Default: the machine's.
    """

    def __new__(cls, folder: str | PathLike[str], *, threads: int | None = None) -> Embedder: ...
    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""

    @property
    def context_tokens(self) -> int:
        """Most tokens of a text that are read, the two around it included."""

    def count_tokens(self, texts: list[str], /) -> list[int]:
        """Tokens of each text, the two around it included, before any are cut off."""

    def embed(self, texts: list[str], /) -> tuple[NDArray[np.float32], list[int], list[bool]]:
        """Vectors (n, dimensions), tokens read of each text, and whether its end was not read."""

@final
class FeatureEngine:
    """The 26 features of one instrument, one call per market event.

    Every call is O(1) and allocates nothing (``on_depth_batch`` copies its list, ``values``
    makes its array). Events must come in the order of ``ts``; equal times are fine. A refused
    event raises ``CoreInputError`` naming the field and changes nothing.
    """

    def __new__(cls, price_increment: float, size_increment: float) -> FeatureEngine: ...
    def on_quote(self, ts: int, bid: float, bid_size: float, ask: float, ask_size: float) -> None:
        """Take a new best bid and offer."""

    def on_trade(self, ts: int, price: float, size: float, aggressor_side: int) -> None:
        """Take a trade; ``aggressor_side`` 0 where the buyer took liquidity, 1 the seller."""

    def on_depth(self, ts: int, book_side: int, price: float, size: float) -> None:
        """Set the size of one price level (``book_side`` 0 bid, 1 ask); size 0 removes it."""

    def on_depth_batch(self, ts: int, levels: Sequence[tuple[int, float, float]]) -> None:
        """Set several levels ``(side, price, size)``; all or, at an error, none."""

    def on_depth_clear(self, ts: int) -> None:
        """Forget all levels; depth features are missing until new ones come."""

    def on_lead_quote(self, ts: int, bid: float, ask: float) -> None:
        """Take a quote of the lead venue, on its own grid."""

    def is_warm(self) -> bool:
        """Say whether quotes have been heard for the warm-up time and are not silent now."""

    def values(self) -> NDArray[np.float32]:
        """Return the features as of the last event, (26,), NaN where missing; changes nothing."""

    @property
    def now(self) -> int:
        """Time of the last event; 0 before the first."""

    @property
    def mid(self) -> float:
        """Mid of the last quote; NaN before the first."""

    @property
    def far_levels(self) -> int:
        """Level changes ignored because they lay too far from the market."""

def bulk_features(
    columns: _Columns,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Compute the features at every quote of ``columns`` on two threads, without the GIL.

    Returns ``X`` (n, 26), ``ts`` (n,), ``mid`` (n,), ``warm`` (n,), bit for bit as the event
    path. A refused event raises ``CoreInputError`` naming field and row.
    """

def feature_table() -> list[tuple[str, str, str, str, str, float, float]]:
    """Return name, group, unit, formula, update class, warm-up and stale seconds per feature."""

def feature_notation() -> str:
    """Return the notation of the formulas."""

def feature_schema_sha256() -> str:
    """Return the hash of the table's meaning."""

def time_events(columns: _Columns, *, block_events: int, read: bool) -> NDArray[np.float64]:
    """Time the event path in Rust, for the benchmarks.

    Feeds the events to a fresh engine on one thread, without the GIL, and returns ns per event of
    each full block of ``block_events``; with ``read``, the row of features is also written at
    every quote. A refused event raises ``CoreInputError``.
    """

def time_inference(
    model: SignalModel, x: NDArray[np.float32], *, blocks: int, block_calls: int
) -> NDArray[np.float64]:
    """Time single-row inference in Rust, for the benchmarks.

    Infers ``blocks`` blocks of ``block_calls`` rows, going round in ``x`` (n, 26), on one thread
    without the GIL, each call waiting for the result before it; returns ns per call, (blocks,).
    """

@final
class ForwardTimer:
    """A language model's forward pass alone, for the benchmarks: no tokenizer, no engine.

    Any tokens will do; all methods release the GIL and return ns.
    """

    def __new__(
        cls, path: str | PathLike[str], *, threads: int, tokens_max: int = 8192
    ) -> ForwardTimer:
        """Load a GGUF file with room for one sequence of ``tokens_max`` tokens."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that decoding one token reads."""

    @property
    def prompt_operations(self) -> int:
        """8-bit multiplications and additions of one token of a prompt, two a product."""

    def prompt(self, tokens: int) -> float:
        """Read a prompt from the start, logits of its last token."""

    def decode(self, depth: int, steps: int) -> NDArray[np.float64]:
        """Take ``steps`` steps of one token each after ``depth`` tokens; ns of each, (steps,)."""

    def verify(self, depth: int, rows: int, repeats: int) -> NDArray[np.float64]:
        """Take steps of ``rows`` tokens with all their logits after ``depth``, (repeats,)."""

def read_bandwidth(*, threads: int, bytes: int, seconds: float = 0.2) -> float:
    """Return the best rate of reading ``bytes`` in sequence with ``threads``, bytes per second."""

def int8_peak(*, threads: int, seconds: float = 0.2) -> float:
    """Return the best rate of 8-bit multiplications and additions, operations per second."""

@type_check_only
class TrainRecipe(TypedDict):
    """How a network is fitted: AdamW, 100 warm-up steps, cosine rate, gradient clipped at 1."""

    epochs: int
    """Passes over the training rows at most."""
    batch_size: int
    learning_rate: float
    decay: float
    """Towards the warm start (MPS) or zero (MLP), per unit of rate."""
    ema: float
    """Share of the past in the moving average of the weights; the average is what is kept."""
    patience: int
    """Epochs without a better validation loss before a fit ends."""
    seeds: Sequence[int]
    """One fit each."""
    threads: int
    """Fits at a time; the result does not depend on it."""

@type_check_only
class LogisticFit(TypedDict):
    """A converged multinomial logistic regression."""

    weight: NDArray[np.float64]
    """(26, 3)"""
    bias: NDArray[np.float64]
    """(3,)"""
    steps: int
    """Newton steps."""
    gradient_max: float
    """Largest entry of the final gradient."""

@type_check_only
class NetworkFit(TypedDict):
    """The averaged weights that were best on the validation rows."""

    tensors: dict[str, NDArray[np.float32]]
    """MPS: A (26, 2, bond, bond), W (3, bond, bond), l, r (bond,), b (3,). MLP: w1 (26, h),
    b1 (h,), w2 (h, h), b2 (h,), w3 (h, 3), b3 (3,)."""
    best_epoch: int
    """Epoch they are from; 0 is the start."""
    curve: list[tuple[float, float]]
    """Train and validation cross-entropy (nats) by epoch; the first is the start, train NaN."""

def train_logistic(u: NDArray[np.float32], y: NDArray[np.uint8], *, l2: float) -> LogisticFit:
    """Fit multinomial logistic regression to convergence by Newton's method in float64.

    Minimises mean cross-entropy + l2/2 |weight|². The GIL is released; Ctrl-C is honoured between
    steps. About 0.1 s a step at 50 000 rows.

    Parameters
    ----------
    u
        (n, 26) squashed features, |u| <= 1, contiguous.
    y
        (n,) classes 0 down, 1 flat, 2 up.
    l2
        Above 0.

    Raises
    ------
    CoreInputError
        Shapes or values that do not fit, or no convergence.
    """

def train_mlp(
    u: NDArray[np.float32],
    y: NDArray[np.uint8],
    u_validation: NDArray[np.float32],
    y_validation: NDArray[np.uint8],
    *,
    hidden: int,
    recipe: TrainRecipe,
    progress: Callable[[int, int, float, float], object] | None = None,
) -> list[NetworkFit]:
    """Fit a 26-hidden-hidden-3 ReLU network once per seed, in parallel threads.

    The result depends on the seeds, not on the threads. Rows as in :func:`train_logistic`.
    ``progress(fit, epoch, train_loss, validation_loss)`` is called on this thread after each
    epoch of each fit; what it raises, and Ctrl-C, stops every fit and comes out here.

    Raises
    ------
    CoreInputError
        Shapes or values that do not fit, or a loss that diverged.
    """

def train_mps(
    u: NDArray[np.float32],
    y: NDArray[np.uint8],
    u_validation: NDArray[np.float32],
    y_validation: NDArray[np.uint8],
    *,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    perm: NDArray[np.int32],
    bond: int,
    noise: float,
    recipe: TrainRecipe,
    progress: Callable[[int, int, float, float], object] | None = None,
) -> list[NetworkFit]:
    """Fit a matrix product state once per seed, warm-started exactly from logistic regression.

    ``weight`` (26, 3) by feature and ``bias`` (3,) are the logistic model, ``perm`` (26,) the
    feature of each site, ``bond`` 8 or 16, ``noise`` the standard deviation of the entries
    outside the logistic block: it does not change the first logits. Otherwise as
    :func:`train_mlp`.
    """

@final
class SignalModel:
    """A checked model file on the Rust core; read-only, may be shared between threads.

    Parameters
    ----------
    path
        safetensors file.
    isa
        ``scalar``, ``avx2`` or ``avx512``; default: ``QBTC_ISA``, else the best available.

    Raises
    ------
    CoreModelError
        Naming the tensor or metadata key at fault.
    CoreInputError
        If ``isa`` is unknown or not available.
    OSError
        If the file cannot be read.
    """

    def __new__(cls, path: PathLike[str] | str, *, isa: str | None = None) -> SignalModel: ...
    @property
    def kind(self) -> Literal["mps", "logistic", "mlp"]:
        """Which mathematics the file holds."""

    @property
    def isa(self) -> str:
        """Instruction set in use."""

    @property
    def metadata(self) -> dict[str, str]:
        """All strings of the file's metadata."""

    def infer(self, x: NDArray[np.float32]) -> tuple[float, float, float]:
        """Probabilities (down, flat, up) of one contiguous row, shape (26,). NaN = missing."""

    def logits(self, x: NDArray[np.float32]) -> tuple[float, float, float]:
        """Logits of one row, before the temperature."""

    def ood(self, x: NDArray[np.float32]) -> float:
        """Share of training rows nearer to the centre, 0 to 1 (1: farther out than all)."""

    def explain(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logit changes, shape (26, 3), when one feature alone is set to its training mean."""

    def infer_batch(
        self, x: NDArray[np.float32], *, threads: int | None = None
    ) -> NDArray[np.float32]:
        """Probabilities (n, 3) of C-contiguous rows (n, 26); releases the GIL.

        The same bits as :meth:`infer`, on any number of ``threads`` (default: all cores).
        """

@final
class SignalBuffer:
    """A model and the row it reads: write features into ``x``, then call ``infer()``.

    The quickest way to infer from Python: nothing is passed, checked or copied but the row.
    All features are missing (NaN) at first.
    """

    def __new__(cls, model: SignalModel) -> SignalBuffer: ...
    @property
    def x(self) -> NDArray[np.float32]:
        """The row (26,), the buffer's own memory: keep the array and write into it."""

    def infer(self) -> tuple[float, float, float]:
        """Probabilities (down, flat, up) of the row as it stands."""

@final
class Signal:
    """The answer of a :class:`SignalSession`; frozen.

    Everything beyond the probabilities is computed when it is read.
    """

    @property
    def ts_event(self) -> int:
        """Time of the event as it was given, UNIX ns."""

    @property
    def mid(self) -> float:
        """Mid price of the last quote, quote currency."""

    @property
    def p_down(self) -> float:
        """P(mid falls by more than the label's threshold over its horizon)."""

    @property
    def p_flat(self) -> float:
        """P(neither)."""

    @property
    def p_up(self) -> float:
        """P(mid rises by more than the threshold)."""

    @property
    def entropy(self) -> float:
        """Shannon entropy of the three, nats: 0 certain, 1.0986 knows nothing."""

    @property
    def margin(self) -> float:
        """Largest probability minus the second largest."""

    @property
    def ood(self) -> float:
        """Share of training rows nearer to the centre, 0 to 1. About 0.5 µs."""

    @property
    def features(self) -> NDArray[np.float32]:
        """The row (26,) the signal follows from; NaN = missing."""

    def explain(self) -> NDArray[np.float32]:
        """Logit changes (26, 3) when one feature alone is set to its training mean."""

@final
class SignalSession:
    """Features and model of one instrument: one call per market event.

    Times are UNIX ns and never decrease: pass the time at which the event became known
    (``ts_init``). A refused event raises ``CoreInputError``, is counted, and changes nothing.
    A signal comes with every quote once the features are warm.

    Parameters
    ----------
    model
        Shared, not copied.
    price_increment, size_increment
        The instrument's grid.
    keep_from_ns
        Keep every signal given at or after this time until ``drain``; None keeps nothing.
    """

    def __new__(
        cls,
        model: SignalModel,
        price_increment: float,
        size_increment: float,
        keep_from_ns: int | None = None,
    ) -> SignalSession: ...
    def on_quote(
        self, ts: int, bid: float, bid_size: float, ask: float, ask_size: float, /
    ) -> Signal | None:
        """Take a quote; the signal, or None while not warm."""

    def on_quote_tick(self, tick: object, /) -> Signal | None:
        """Take a Nautilus ``QuoteTick``: the same, reading its attributes from Rust."""

    def on_trade(self, ts: int, price: float, size: float, aggressor_side: int, /) -> None:
        """Take a trade; the aggressor is 0 buyer, 1 seller."""

    def on_trade_tick(self, tick: object, /) -> None:
        """Take a Nautilus ``TradeTick``."""

    def on_depth(self, ts: int, book_side: int, price: float, size: float, /) -> None:
        """Take one level change; side 0 bid, 1 ask; size 0 removes the level."""

    def on_depth_batch(self, ts: int, levels: Sequence[tuple[int, float, float]], /) -> None:
        """Take level changes ``(side, price, size)`` of one moment: all or none."""

    def on_depth_clear(self, ts: int, /) -> None:
        """All levels are void; a snapshot follows."""

    def on_book_deltas(self, deltas: object, /) -> None:
        """Take Nautilus ``OrderBookDeltas``."""

    def on_lead_quote(self, ts: int, bid: float, ask: float, /) -> None:
        """Take a quote of the lead venue."""

    def signal(self) -> Signal | None:
        """Return the signal as of the last event, None while not warm."""

    def drain(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], float | None]:
        """Hand over the signals kept so far: probabilities (n, 3), ts (n), mid (n).

        The fourth is the out-of-distribution score of the last, None where there are none.
        """

    def is_warm(self) -> bool:
        """Return True once quotes were heard for the warm-up time and have not gone silent."""

    @property
    def mid(self) -> float:
        """Mid price of the last quote; NaN before the first."""

    @property
    def counts(self) -> dict[str, int]:
        """Events taken by kind, events ``rejected``, ``signals`` given.

        Kinds: ``quotes``, ``trades``, ``depth`` (level changes and clears), ``lead_quotes``.
        """

@final
class ReplaySession:
    """A :class:`SignalSession` that knows its events beforehand: for replays of a catalog.

    The events are read from columns, up to and with the quote that the host is at and never
    beyond; reading them out of host objects costs several times the features and the model. The
    same bits as a :class:`SignalSession` that is given every event.

    Parameters
    ----------
    model
        Shared, not copied.
    columns
        Everything the host will replay of the instrument, in its order; copied, 48 bytes each.
    keep_from_ns
        As in :class:`SignalSession`.
    """

    def __new__(
        cls, model: SignalModel, columns: _Columns, keep_from_ns: int | None = None
    ) -> ReplaySession: ...
    def on_quote_tick(self, tick: object, /) -> Signal | None:
        """Take all events up to this Nautilus ``QuoteTick``; the signal, or None while not warm.

        Only its ``ts_init`` is read (every 256th is compared in full). A quote that is not the
        next one of the columns raises ``CoreInputError``.
        """

    def drain(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], float | None]:
        """As :meth:`SignalSession.drain`."""

    @property
    def counts(self) -> dict[str, int]:
        """As :attr:`SignalSession.counts`."""

def bulk_signals(
    columns: _Columns, model: SignalModel
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Return probabilities (n, 3), ts (n) and mid (n) at every quote; see ``qbtc.core``."""
