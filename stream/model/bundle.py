"""The model bundle: the one contract between training and serving, owned by its consumer.

A bundle is an immutable folder: two or three ONNX graphs, the catalogue, and a manifest with the
hash of each. Export writes it through ``write_bundle``; a worker reads it through ``load_bundle``,
each file once: what it serves are the bytes whose hash it has checked.
"""

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from stream.contract.context import MAX_FIELDS, MAX_VALUE_BYTES, RESERVED, ContextField, column_key
from stream.errors import StreamError
from stream.live.rules import PREFIXES, Rules

T = TypeVar("T")

FORMAT = 2
ENCODE, RANK, ITEMS, MANIFEST = "encode.onnx", "rank.onnx", "items.txt", "manifest.json"
RANK_INT8 = "rank_int8.onnx"
"""A faster rank.onnx for some processors; a bundle may be without it."""
MIN_OVERLAP = 0.999
"""Of the items that rank.onnx lists, the share that rank_int8.onnx must list too."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
"""Up to 68 years."""


class TrainingData(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the model has seen, after filtering.

    ``max_session_length``: longer sessions were left out; 0, and then left out of the JSON: none.
    """

    first_timestamp_ms: Count
    last_timestamp_ms: Count
    clicks: Count
    sessions: Count
    items: Count
    max_session_length: Count = 0


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Offline figures, such as ``recall_at_20``, and the protocol they were measured under."""

    protocol: str
    figures: dict[str, float]


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a replay through the ONNX graphs compares with PyTorch; all 0 if there was none.

    ``max_error``: the largest difference of a state's or a query's number from the model's in
    float64, as a share of it where it is larger than 1; ``max_error_pytorch``: that of PyTorch in
    float32. ``top_k_equal`` counts the clicks whose lists are equal position by position; in the
    others only ties swapped places. ``int8_overlap``: the share of the items that rank.onnx listed
    which rank_int8.onnx listed too; left out where it is 0, in a bundle without that graph.
    """

    sessions: Count
    clicks: Count
    max_error: float
    max_error_pytorch: float
    top_k_equal: Count
    int8_overlap: float = 0.0


class PopularItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the list for sessions the model cannot answer."""

    item_index: Count
    score: float


class Live(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How lists learn from the stream (stream/live).

    time_scale_s, popularity_half_life_s, excludes_seen: as in ``stream.live.rules.Rules``.
    n_candidates: how many items rank.onnx lists, the published ones or more. bias: what the
    logarithm of an item's decayed clicks counts beside its score; above 0 that is an input of
    rank.onnx. sharpness: what its scores are multiplied by before the softmax.
    weights: of each source, the network last, by class of prefix (``stream.live.blend.Blend``).
    """

    time_scale_s: Seconds
    popularity_half_life_s: Seconds
    excludes_seen: bool
    n_candidates: Size
    bias: Weight
    weights: Annotated[list[list[Weight]], msgspec.Meta(min_length=PREFIXES, max_length=PREFIXES)]
    sharpness: Weight = 1.0

    @property
    def rules(self) -> Rules:
        return Rules(
            1000 * self.time_scale_s, 1000 * self.popularity_half_life_s, self.excludes_seen
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything training and serving must agree on.

    ``bundle_id`` is the start of the sha256 over all other fields; as ``sha256`` is one of them,
    it names the content of the whole folder. ``idle_timeout_s`` None: a session never expires.
    ``allowed_lateness_s``: how much longer than that the partition may go on before it does.
    ``event_types``: the types of event that advance a session; empty: all.
    ``live`` None: lists are the network's alone.
    ``state_size``: numbers the model remembers of a session, zeros at first; ``query_size``: those
    that a list is made from. ``architecture``, ``hidden_size`` and ``n_layers`` are for people.
    """

    format: int = FORMAT
    bundle_id: str = ""
    architecture: str
    hidden_size: Size
    n_layers: Size
    state_size: Count
    query_size: Size
    n_items: Size
    n_recommendations: Size
    idle_timeout_s: Size | None
    allowed_lateness_s: Count = 600
    event_types: tuple[str, ...] = ()
    live: Live | None = None
    context: list[ContextField] = []
    opset: Size
    sha256: dict[str, str] = {}
    training: TrainingData
    metrics: Metrics | None
    parity: Parity
    popular: list[PopularItem]

    @property
    def n_candidates(self) -> int:
        """How many items rank.onnx lists."""
        return self.live.n_candidates if self.live else self.n_recommendations

    @property
    def takes_bias(self) -> bool:
        """Whether rank.onnx has the input ``bias``, which it adds to the items' scores."""
        return self.live is not None and self.live.bias > 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files agree with its manifest; row n of ``item_ids`` is item_index n.

    encode, rank, rank_int8: return the graphs' bytes, read at that moment, as they are large.
    Those of a folder raise ``StreamError`` if their hash is not the manifest's.
    """

    manifest: Manifest
    item_ids: list[str]
    item_index: dict[str, int]
    encode: Callable[[], bytes]
    rank: Callable[[], bytes]
    rank_int8: Callable[[], bytes] | None = None
    folder: Path = Path()


def load_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, hashes and counts checked against its manifest.

    ``OnnxScorer``, which opens the graphs, checks their hashes, inputs and outputs. Raises
    ``StreamError``. The folder's own name does not matter, so a bundle may be mounted anywhere;
    where it is a symbolic link, all is read from the folder that it names now.
    """
    try:
        folder = folder.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise StreamError(f"{folder} cannot be read: {error}") from error
    manifest = _parse_manifest(folder / MANIFEST, _read(folder / MANIFEST))
    if sorted({*manifest.sha256} - {RANK_INT8}) != sorted((ENCODE, RANK, ITEMS)):
        found, expected = sorted(manifest.sha256), sorted((ENCODE, RANK, ITEMS))
        raise StreamError(f"{folder / MANIFEST} lists {found}, expected {expected}")
    # Hidden files are a file system's or a mount's own; nothing reads them.
    if further := {p.name for p in folder.glob("[!.]*")} - {*manifest.sha256, MANIFEST}:
        raise StreamError(f"{folder} holds {sorted(further)}, which its manifest does not list")
    read = {n: partial(_read_verified, folder / n, says) for n, says in manifest.sha256.items()}
    item_ids = _parse_items(folder / ITEMS, read[ITEMS](), manifest.n_items)
    check_context(folder / MANIFEST, manifest.context)
    _check_lists(folder / MANIFEST, manifest)
    _check_live(folder / MANIFEST, manifest)
    item_index = {item_id: index for index, item_id in enumerate(item_ids)}
    graphs = read[ENCODE], read[RANK], read.get(RANK_INT8)
    return Bundle(manifest, item_ids, item_index, *graphs, folder)


def write_bundle(
    root: Path,
    manifest: Manifest,
    item_ids: Sequence[str],
    encode: bytes,
    rank: bytes,
    rank_int8: bytes | None = None,
) -> Path:
    """The folder ``root/<bundle_id>`` that now holds the bundle; one of the same content stays.

    ``bundle_id`` and ``sha256`` are filled in here. A bundle that a worker would refuse raises
    ``StreamError`` and leaves nothing behind.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".bundle-", dir=root))
    except OSError as error:
        raise StreamError(f"{root} cannot be written: {error.strerror}") from error
    try:
        staged.chmod(0o755)  # mkdtemp makes 0700, which a worker of another user cannot read
        items = "".join(f"{item_id}\n" for item_id in item_ids).encode()
        files = {ENCODE: encode, RANK: rank, ITEMS: items}
        files |= {RANK_INT8: rank_int8} if rank_int8 else {}
        for name, content in files.items():
            (staged / name).write_bytes(content)
        sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = msgspec.structs.replace(manifest, sha256=sha256, bundle_id="")
        # Through JSON once before hashing: a figure given as 1 is read back as 1.0.
        manifest = _decode(staged / MANIFEST, msgspec.json.encode(manifest), Manifest)
        manifest = msgspec.structs.replace(manifest, bundle_id=content_id(manifest))
        text = msgspec.json.format(encode_manifest(manifest), indent=2)
        (staged / MANIFEST).write_bytes(text + b"\n")
        folder = root / manifest.bundle_id
        bundle = load_bundle(folder if folder.exists() else staged)
        for read in (bundle.encode, bundle.rank, bundle.rank_int8):
            if read:
                read()
        if not folder.exists():
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def check_context(path: Path, fields: Sequence[ContextField]) -> None:
    """Raise StreamError if fields cannot be served; ``path`` is the file that declares them."""
    if len(fields) > MAX_FIELDS:
        raise StreamError(f"{path} has {len(fields)} context fields, expected at most {MAX_FIELDS}")
    names = Counter((f.kind, f.name) for f in fields)
    keys = Counter(column_key(f.name) for f in fields if f.kind == "column")
    for f in fields:
        is_column, texts = f.kind == "column", [value.encode() for value in f.values]
        if names[f.kind, f.name] > 1:
            wrong = "is declared twice"
        elif is_column and f.name in RESERVED:
            wrong = f"has a reserved name; {', '.join(RESERVED)} are standard fields of every click"
        elif is_column and keys[column_key(f.name)] > 1:
            wrong = "has a name with the same CRC-32 as another column's; rename it"
        elif len({t for t in texts if 1 <= len(t) <= MAX_VALUE_BYTES}) < len(texts):
            wrong = f"must have values that are distinct strings of 1 to {MAX_VALUE_BYTES} bytes"
        elif any(a >= b for a, b in pairwise(f.edges_s)):
            wrong = "must have strictly increasing edges_s"
        else:
            continue
        raise StreamError(f"{path}: context field {f.name!r} of kind {f.kind} {wrong}")


class _Version(msgspec.Struct):
    format: int


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    # The format is read alone first: the fields of another format are unknown here.
    version = _decode(path, text, _Version)
    if version.format != FORMAT:
        raise StreamError(
            f"{path} has format {version.format}, but this version reads {FORMAT}; "
            "export the checkpoint again"
        )
    manifest = _decode(path, text, Manifest)
    bundle_id, expected = manifest.bundle_id, content_id(manifest)
    if bundle_id != expected:
        raise StreamError(
            f"{path} has content {expected}, but the manifest says bundle_id={bundle_id}"
        )
    return manifest


def _decode(path: Path, text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StreamError(f"{path} is not a valid manifest: {error}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's JSON: always the same bytes for the same content.

    A field that version 0.1.0 did not know is left out at its default, so that the bundles
    of that version keep their bundle_id, and a bundle that needs no such field is readable by it.
    """
    fields = msgspec.to_builtins(manifest, order="deterministic")
    if manifest.allowed_lateness_s == 600:
        del fields["allowed_lateness_s"]
    if not manifest.event_types:
        del fields["event_types"]
    if manifest.live is None:
        del fields["live"]
    return msgspec.json.encode(fields)


def content_id(manifest: Manifest) -> str:
    """Return the bundle_id that belongs to the manifest's other fields."""
    content = msgspec.structs.replace(manifest, bundle_id="")
    return hashlib.sha256(encode_manifest(content)).hexdigest()[:16]


def _check_lists(path: Path, manifest: Manifest) -> None:
    popular, n_items, k = manifest.popular, manifest.n_items, manifest.n_recommendations
    listed = {item.item_index for item in popular}
    if k > n_items:
        wrong = f"n_recommendations={k}, expected at most n_items={n_items}"
    elif not len(listed) == len(popular) == k:
        wrong = (
            f"{len(listed)} popular items in {len(popular)} entries, expected n_recommendations={k}"
        )
    elif max(listed) >= n_items:
        wrong = f"popular item_index {max(listed)}, expected less than n_items={n_items}"
    else:
        return
    raise StreamError(f"{path} has {wrong}")


def _check_live(path: Path, manifest: Manifest) -> None:
    if (live := manifest.live) is None:
        return
    k, n_items = manifest.n_recommendations, manifest.n_items
    n_sources = len(live.rules.sources) + 1
    lengths = sorted({len(weights) for weights in live.weights})
    if not k <= live.n_candidates <= n_items:
        wrong = (
            f"live n_candidates={live.n_candidates}, "
            f"expected n_recommendations={k} to n_items={n_items}"
        )
    elif lengths != [n_sources]:
        wrong = f"live weights in rows of {lengths}, expected one of each of {n_sources} sources"
    else:
        return
    raise StreamError(f"{path} has {wrong}; export the checkpoint again")


def _parse_items(path: Path, text: bytes, n_items: int) -> list[str]:
    try:
        *item_ids, rest = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise StreamError(f"{path} is not UTF-8: {error}") from error
    if rest:
        raise StreamError(f"{path} ends with {rest[:80]!r}, expected a newline")
    if len(item_ids) != n_items:
        raise StreamError(
            f"{path} has {len(item_ids)} lines, but the manifest says n_items={n_items}"
        )
    if (n_distinct := len(set(item_ids) - {""})) != n_items:
        raise StreamError(f"{path} has {n_distinct} distinct item ids, expected {n_items}")
    return item_ids


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
            raise StreamError(f"{path} is no regular file, expected one or a link to one")
        return path.read_bytes()
    except OSError as error:
        raise StreamError(f"{path} cannot be read: {error.strerror}") from error


def _read_verified(path: Path, says: str) -> bytes:
    content = _read(path)
    has = hashlib.sha256(content).hexdigest()
    if has != says:
        raise StreamError(f"{path} has sha256 {has[:16]}..., but the manifest says {says[:16]}...")
    return content
