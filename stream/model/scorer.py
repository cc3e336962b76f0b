"""The model as a worker sees it: its ONNX graphs, and how a micro-batch goes through them.

A session may have several clicks in a batch, and each needs the state that the one before left.
So the k-th steps of all sessions make up wave k, which is one call of ``encode``. Ranking needs no
order and costs far more than a step: the steps that publish a list are ranked together at the end.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import onnxruntime
from jaxtyping import Float32, Int32, Int64
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from stream.errors import StreamError
from stream.live.rules import bias_of
from stream.model.bundle import ENCODE, MIN_OVERLAP, RANK, RANK_INT8, Bundle, Manifest

# ONNX Runtime's exceptions have no base of their own below Exception.
_OnnxError = (
    onnx_errors.Fail,
    onnx_errors.InvalidArgument,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf,
    onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
    RuntimeError,  # of its file system calls
)
_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"

FLOAT32, INT8 = "float32", "int8"
"""The variants of ranking: rank.onnx and rank_int8.onnx."""
_FILES = {FLOAT32: RANK, INT8: RANK_INT8}
_ROWS = (1, 16, 32, 64)
"""Rows of the calls that are timed: a click alone, and parts of a batch. Scores of more rows leave
the processor's cache: 122 us a row at 256 and 85 at 16 (43,000 items, H = 100)."""
_ROUNDS, _TIMING_SECONDS = 6, 0.5
"""Of the timing, without the first round; a large catalogue ends it after one round."""
_PROBES = 256
"""Queries on which int8 must list what float32 lists."""
_ITEMS_AT_ONCE = 1024


@runtime_checkable  # the tests' runtime type check asks for it
class Scorer(Protocol):
    """What a batch needs of a model: S numbers of state, D of query, F context fields, N items.

    K is ``n_candidates``: where lists learn from the stream, more than are published.
    """

    @property
    def state_size(self) -> int: ...
    @property
    def query_size(self) -> int: ...
    @property
    def n_candidates(self) -> int: ...

    def encode(
        self,
        item_index: Int64[np.ndarray, "B"],
        context: Int32[np.ndarray, "B F"],
        state: Float32[np.ndarray, "B S"],
    ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B S"]]:
        """Advance B sessions by one click each: the query for their next list, and the state.

        Row b of every argument is the same session. ``context`` is that of the click itself, not
        of the one to come. ``state`` is zeros for a new session; it is not changed in place.
        """
        ...

    def rank(
        self, query: Float32[np.ndarray, "B D"], bias: Float32[np.ndarray, "N"] | None = None
    ) -> tuple[Int32[np.ndarray, "B K"], Float32[np.ndarray, "B K"]]:
        """The K best items of B sessions and their scores, best first; ties: lower index first.

        ``bias`` is added to all sessions' scores before the best are taken, and is in what is
        returned; None: zeros. To give one to a model that takes none is the caller's bug.
        """
        ...


class Ranking(NamedTuple):
    """How lists are made: the fastest way on this processor.

    variant: FLOAT32 or INT8. rows: most of a call; larger batches are cut. us_a_row: the fastest
    call's CPU time, by variant and rows of a call; other processes can only make it longer.
    int8_overlap: the share of float32's items that int8 listed too, None without that graph; below
    .999 it is not taken.
    """

    variant: str
    rows: int
    us_a_row: dict[str, dict[int, float]]
    int8_overlap: float | None


class OnnxScorer:
    """A bundle's graphs in ONNX Runtime on the CPU.

    The start takes up to a second more for finding out which graph ranks fastest on this processor
    (``ranking``); that one makes all lists. A call blocks for passes through a graph, with the
    interpreter's lock released, and may be made from any thread. Row b of a result depends on row b
    of the arguments, and on the bias, alone. Raises ``StreamError`` if a graph does not have the
    shapes of the manifest, keeps weights outside its file, or makes NaN or an infinite number of an
    item.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        manifest = bundle.manifest
        self.state_size, self.query_size = manifest.state_size, manifest.query_size
        self.n_candidates = k = manifest.n_candidates
        self._n_fields = len(manifest.context)
        query, state = f"float[B,{self.query_size}]", f"float[B,{self.state_size}]"
        context = {"context": f"int32[B,{self._n_fields}]"} if self._n_fields else {}
        self._encode = _open_graph(
            bundle.folder / ENCODE,
            bundle.encode(),
            threads,
            {"item_index": "int64[B]", **context, "state": state},
            {"query": query, "state_out": state},
        )
        top = {"top_index": f"int32[B,{k}]", "top_score": f"float[B,{k}]"}
        bias = probe_bias(manifest)
        inputs = {"query": query}
        inputs |= {} if bias is None else {"bias": f"float[{manifest.n_items}]"}
        self._no_bias = None if bias is None else np.zeros_like(bias)
        reads = {FLOAT32: bundle.rank, INT8: bundle.rank_int8}
        graphs = {
            variant: _open_graph(bundle.folder / _FILES[variant], read(), threads, inputs, top)
            for variant, read in reads.items()
            if read
        }
        self._check_encode(bundle)
        probes = self._probes(bundle)
        biases = [None] if bias is None else [bias, self._no_bias]
        lists = {v: _check_rank(bundle, v, graph, probes, biases) for v, graph in graphs.items()}
        self.ranking = _fastest(graphs, probes, lists, bias)
        self._rank = graphs[self.ranking.variant]

    def encode(
        self,
        item_index: Int64[np.ndarray, "B"],
        context: Int32[np.ndarray, "B F"],
        state: Float32[np.ndarray, "B S"],
    ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B S"]]:
        """As ``Scorer.encode``; an ``item_index`` outside the catalogue is the caller's bug."""
        inputs = {"item_index": item_index, "state": state}
        if self._n_fields:
            inputs["context"] = context
        query, advanced = self._encode.run(["query", "state_out"], inputs)
        assert isinstance(query, np.ndarray) and isinstance(advanced, np.ndarray)
        return query, advanced

    def rank(
        self, query: Float32[np.ndarray, "B D"], bias: Float32[np.ndarray, "N"] | None = None
    ) -> tuple[Int32[np.ndarray, "B K"], Float32[np.ndarray, "B K"]]:
        """As ``Scorer.rank``."""
        bias = self._no_bias if bias is None else bias
        return _rank_in_parts(self._rank, query, self.ranking.rows, bias)

    def _check_encode(self, bundle: Bundle) -> None:
        """Try the last item with each field's last value, then each item as a first click."""
        path, n_items = bundle.folder / ENCODE, bundle.manifest.n_items
        sizes = np.array([field.size for field in bundle.manifest.context], np.int32)
        new = np.zeros((_ITEMS_AT_ONCE, self.state_size), np.float32)
        last = sizes - 1
        try:
            self.encode(np.array([n_items - 1]), last[None], new[:1])
        except _OnnxError as error:
            raise StreamError(
                f"{path} failed on item_index {n_items - 1} and context {last.tolist()}, which "
                f"the manifest allows (n_items={n_items}): {_first_line(error)}"
            ) from error
        for first in range(0, n_items, _ITEMS_AT_ONCE):
            item_index = np.arange(first, min(first + _ITEMS_AT_ONCE, n_items))
            context = (item_index[:, None] % sizes).astype(np.int32)
            results = self.encode(item_index, context, new[: len(item_index)])
            finite = np.isfinite(np.hstack(results)).all(axis=1)
            if not finite.all():
                index = item_index[finite.argmin()]
                raise StreamError(f"{path} outputs NaN or infinity for item_index {index}")

    def _probes(self, bundle: Bundle) -> Float32[np.ndarray, "P D"]:
        """Queries of random sessions of two clicks, the same at each start."""
        random = np.random.default_rng(0)
        sizes = np.array([field.size for field in bundle.manifest.context], np.int32)
        state = np.zeros((_PROBES, self.state_size), np.float32)
        for _ in range(2):
            item_index = random.integers(bundle.manifest.n_items, size=_PROBES)
            context = random.integers(sizes, size=(_PROBES, len(sizes)), dtype=np.int32)
            query, state = self.encode(item_index, context, state)
        return query


def probe_bias(manifest: Manifest) -> Float32[np.ndarray, "N"] | None:
    """A bias for trying graphs: a few items have most of the clicks. None where none is taken."""
    if not (manifest.live and manifest.takes_bias):
        return None
    clicks = 1000 / (1 + np.random.default_rng(0).permutation(manifest.n_items))
    return bias_of(clicks, manifest.live.bias).astype(np.float32)


def overlap(listed: Int32[np.ndarray, "B K"], other: Int32[np.ndarray, "B K"]) -> float:
    """The share of listed items that the other's row lists too."""
    return float((listed[:, :, None] == other[:, None, :]).any(axis=2).mean())


def _check_rank(
    bundle: Bundle,
    variant: str,
    graph: onnxruntime.InferenceSession,
    probes: Float32[np.ndarray, "P D"],
    biases: Sequence[Float32[np.ndarray, "N"] | None],
) -> Int32[np.ndarray, "R K"]:
    """The lists of a graph that makes items of the catalogue and finite scores of the probes.

    Those with each of the biases (R lists, in their order).
    """
    path, n_items = bundle.folder / _FILES[variant], bundle.manifest.n_items
    try:
        # One row first: from small to large, ONNX Runtime's arena took 80 MB less (300,000 items).
        _run_rank(graph, probes[:1], biases[0])
        lists = [_rank_in_parts(graph, probes, max(_ROWS), bias) for bias in biases]
    except _OnnxError as error:
        raise StreamError(f"{path} failed to run: {_first_line(error)}") from error
    top_index, top_score = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    if not 0 <= top_index.min() <= top_index.max() < n_items:
        raise StreamError(
            f"{path} returned item_index values from {top_index.min()} to {top_index.max()}, "
            f"but the manifest says n_items={n_items}"
        )
    if not np.isfinite(top_score).all():
        raise StreamError(f"{path} returned scores that are NaN or infinite")
    return top_index


def _fastest(
    graphs: Mapping[str, onnxruntime.InferenceSession],
    probes: Float32[np.ndarray, "P D"],
    lists: Mapping[str, Int32[np.ndarray, "R K"]],
    bias: Float32[np.ndarray, "N"] | None = None,
) -> Ranking:
    """The way to make lists, of graphs by variant; ``lists`` are those of the probes.

    One variant for batches of every size: scores differ between variants in their last bits, and a
    list must not depend on how many clicks came at the same time.
    """
    shared = None
    if INT8 in graphs:
        shared = overlap(lists[FLOAT32], lists[INT8])
        if shared < MIN_OVERLAP:
            graphs = {FLOAT32: graphs[FLOAT32]}
    seconds: dict[str, dict[int, list[float]]] = {v: {n: [] for n in _ROWS} for v in graphs}
    began = perf_counter()
    for n_round in range(_ROUNDS + 1):
        for rows in _ROWS:
            for variant, graph in graphs.items():
                called = process_time()
                _run_rank(graph, probes[:rows], bias)
                seconds[variant][rows].append(process_time() - called)
        if n_round and perf_counter() - began > _TIMING_SECONDS:
            break
    us_a_row = {
        variant: {rows: round(1e6 * min(s[1:]) / rows, 1) for rows, s in of.items()}
        for variant, of in seconds.items()
    }
    variant = min(us_a_row, key=lambda variant: prod(us_a_row[variant].values()))
    rows = min(_ROWS[1:], key=us_a_row[variant].__getitem__)
    return Ranking(variant, rows, us_a_row, shared)


def _rank_in_parts(
    graph: onnxruntime.InferenceSession,
    query: Float32[np.ndarray, "B D"],
    rows: int,
    bias: Float32[np.ndarray, "N"] | None,
) -> tuple[Int32[np.ndarray, "B K"], Float32[np.ndarray, "B K"]]:
    """Lists of as few calls of at most so many rows as it takes, all about as large."""
    if len(query) <= rows:
        return _run_rank(graph, query, bias)
    parts = np.array_split(query, -(-len(query) // rows))
    top_index, top_score = zip(*(_run_rank(graph, part, bias) for part in parts), strict=True)
    return np.concatenate(top_index), np.concatenate(top_score)


def _run_rank(
    graph: onnxruntime.InferenceSession,
    query: Float32[np.ndarray, "B D"],
    bias: Float32[np.ndarray, "N"] | None = None,
) -> tuple[Int32[np.ndarray, "B K"], Float32[np.ndarray, "B K"]]:
    inputs = {"query": query} if bias is None else {"query": query, "bias": bias}
    top_index, top_score = graph.run(["top_index", "top_score"], inputs)
    assert isinstance(top_index, np.ndarray) and isinstance(top_score, np.ndarray)
    return top_index, top_score


def _open_graph(
    path: Path, content: bytes, threads: int, inputs: dict[str, str], outputs: dict[str, str]
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # the default is one for each core of the machine
    options.inter_op_num_threads = 1
    # A waiting thread that spins would take the core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; stderr need not repeat them
    # Weights outside the file, which no hash covers, would be read from the working directory.
    options.add_session_config_entry(_EXTERNAL_DATA, os.devnull)
    try:
        graph = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _OnnxError as error:
        raise StreamError(f"{path} cannot be opened: {_first_line(error)}") from error
    graph._model_bytes = None  # it would keep them, beside the weights it has made of them
    for found, expected in ((graph.get_inputs(), inputs), (graph.get_outputs(), outputs)):
        signature = {argument.name: _shape(argument) for argument in found}
        if signature != expected:
            raise StreamError(f"{path} has {signature}, but the manifest says {expected}")
    return graph


def _shape(argument: onnxruntime.NodeArg) -> str:
    """Such as ``float[2,B,100]``: a size that is not a number is the batch."""
    sizes = ",".join(str(size) if isinstance(size, int) else "B" for size in argument.shape)
    return f"{argument.type.removeprefix('tensor(').removesuffix(')')}[{sizes}]"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model computed, and how long each graph took.

    state: of all sessions after their last step. top_index, top_score: a row per ranked step (R).
    """

    state: Float32[np.ndarray, "sessions S"]
    top_index: Int32[np.ndarray, "R K"]
    top_score: Float32[np.ndarray, "R K"]
    encode_seconds: float
    rank_seconds: float


@dataclass(slots=True)
class _Wave:
    """The k-th step of every session that has one; rank_row -1: no list is wanted.

    contexts: the fields' numbers of all steps, one step after the other.
    """

    rows: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    rank_rows: list[int] = field(default_factory=list)


class Waves:
    """Collects the steps of a batch while it is planned, then runs them."""

    def __init__(self) -> None:
        self._waves: list[_Wave] = []
        self._stored: list[Float32[np.ndarray, S] | None] = []
        self._depth: list[int] = []
        self._n_ranks = 0

    def add_session(self, state: Float32[np.ndarray, "S"] | None) -> int:
        """Return the row of a session that begins at ``state``; None is all zeros."""
        self._stored.append(state)
        self._depth.append(0)
        return len(self._stored) - 1

    def step(self, row: int, item_index: int, context: Sequence[int], *, ranked: bool) -> int:
        """Advance a session by a click, its item and its number in every context field.

        Returns the row of its list, or -1 if not ``ranked``.
        """
        depth = self._depth[row]
        self._depth[row] = depth + 1
        if depth == len(self._waves):
            self._waves.append(_Wave())
        wave = self._waves[depth]
        wave.rows.append(row)
        wave.items.append(item_index)
        wave.contexts.extend(context)
        rank_row = self._n_ranks if ranked else -1
        self._n_ranks += ranked
        wave.rank_rows.append(rank_row)
        return rank_row

    def score(self, scorer: Scorer, bias: Float32[np.ndarray, "N"] | None = None) -> Scores:
        """Run everything, with one bias for all lists, as ``Scorer.rank`` takes it.

        Blocks; the interpreter's lock is released inside ONNX Runtime.
        """
        started = perf_counter()
        new = np.zeros(scorer.state_size, np.float32)
        states = [new if state is None else state for state in self._stored]
        # As bytes: 15 us for 256 sessions, and 41 a row at a time.
        stored = bytearray().join(states)  # type: ignore[arg-type] # numpy's stubs: no Buffer
        state = np.frombuffer(stored, np.float32).reshape(len(self._stored), scorer.state_size)
        queries = np.empty((self._n_ranks, scorer.query_size), np.float32)
        for wave in self._waves:
            rows = np.array(wave.rows, np.int64)
            context = np.array(wave.contexts, np.int32).reshape(len(rows), -1)
            items = np.array(wave.items, np.int64)
            before = state[rows]
            if not (finite := np.isfinite(before)).all():
                before[~finite.all(axis=1)] = 0  # the model's memory of this session begins anew
            query, state[rows] = scorer.encode(items, context, before)
            rank_rows = np.array(wave.rank_rows, np.int64)
            ranked = rank_rows >= 0
            queries[rank_rows[ranked]] = query[ranked]
        encoded = perf_counter()
        if self._n_ranks:
            top_index, top_score = scorer.rank(queries, bias)
        else:
            top_index = np.empty((0, scorer.n_candidates), np.int32)
            top_score = np.empty((0, scorer.n_candidates), np.float32)
        return Scores(state, top_index, top_score, encoded - started, perf_counter() - encoded)
