"""The model bundle: the one contract between training and serving, owned by its consumer.

A bundle is an immutable folder: two ONNX graphs, the catalogue, and a manifest with the hash of
each. Export writes it through ``write_bundle``; a worker reads it through ``load_bundle``.
"""

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec

from stream.contract.context import (
    MAX_FIELDS,
    MAX_VALUE_BYTES,
    RESERVED,
    ContextField,
    column_key,
)
from stream.errors import StreamError

FORMAT = 2
ENCODE, RANK, ITEMS, MANIFEST = "encode.onnx", "rank.onnx", "items.txt", "manifest.json"

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1)]


class BundleError(StreamError):
    """A bundle that must not be served: one sentence naming the file, the found, the expected."""


class TrainingData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model has seen, after filtering."""

    first_timestamp_ms: Count
    last_timestamp_ms: Count
    clicks: Count
    sessions: Count
    items: Count


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Offline figures, such as ``recall_at_20``, and the protocol they were measured under."""

    protocol: str
    figures: dict[str, float]


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a replay through the ONNX graphs gave beside PyTorch; all 0 where none was made.

    ``max_error``: the largest difference of a state's or a query's number from the model's in
    float64, as a share of it where it is larger than 1; ``max_error_pytorch``: that of PyTorch in
    float32. ``top_k_equal`` counts the clicks whose lists are equal position by position; in the
    others only ties changed places.
    """

    sessions: Count
    clicks: Count
    max_error: float
    max_error_pytorch: float
    top_k_equal: Count


class PopularItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the list for sessions the model cannot answer."""

    item_index: Count
    score: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything training and serving must agree on.

    ``bundle_id`` is the start of the sha256 over all other fields; as ``sha256`` is one of them,
    it names the content of the whole folder. ``idle_timeout_s`` None: a session never expires.
    ``state_size``: numbers the model remembers of a session, zeros at first; ``query_size``: those
    that ask for a list. ``architecture``, ``hidden_size`` and ``n_layers`` are for people to read.
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
    context: list[ContextField] = []
    opset: Size
    sha256: dict[str, str] = {}
    training: TrainingData
    metrics: Metrics | None
    parity: Parity
    popular: list[PopularItem]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files agree with its manifest; row n of ``item_ids`` is item_index n."""

    manifest: Manifest
    item_ids: list[str]
    item_index: dict[str, int]
    encode_path: Path
    rank_path: Path


def load_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, every hash, count and opset checked against its manifest.

    The graphs' inputs and outputs are checked by ``OnnxScorer``, which opens them. Raises
    ``BundleError``. The folder's own name is not looked at, so that a bundle may be mounted
    anywhere.
    """
    manifest = _parse_manifest(folder / MANIFEST, _read(folder / MANIFEST))
    if sorted(manifest.sha256) != sorted((ENCODE, RANK, ITEMS)):
        raise BundleError(
            f"{folder / MANIFEST} lists {sorted(manifest.sha256)}, "
            f"expected {sorted((ENCODE, RANK, ITEMS))}"
        )
    content = {name: _read(folder / name) for name in manifest.sha256}
    for name, expected in manifest.sha256.items():
        found = hashlib.sha256(content[name]).hexdigest()
        if found != expected:
            raise BundleError(
                f"{folder / name} has sha256 {found[:16]}..., manifest says {expected[:16]}..."
            )
    for name in (ENCODE, RANK):
        opset = _opset(folder / name, content[name])
        if opset != manifest.opset:
            raise BundleError(
                f"{folder / name} has opset {opset}, manifest says opset={manifest.opset}"
            )
    item_ids = _parse_items(folder / ITEMS, content[ITEMS], manifest.n_items)
    check_context(folder / MANIFEST, manifest.context)
    _check_lists(folder / MANIFEST, manifest)
    return Bundle(
        manifest=manifest,
        item_ids=item_ids,
        item_index={item_id: index for index, item_id in enumerate(item_ids)},
        encode_path=folder / ENCODE,
        rank_path=folder / RANK,
    )


def write_bundle(
    root: Path, manifest: Manifest, item_ids: Sequence[str], encode: Path, rank: Path
) -> Path:
    """The folder ``root/<bundle_id>`` that now holds the bundle.

    ``bundle_id`` and ``sha256`` are filled in here; ``encode`` and ``rank`` are copied. The folder
    is loaded as a worker would before it gets its name, so a bundle that a worker would refuse is
    never seen: ``BundleError``, and nothing is left behind. The same content written again keeps
    the folder that stands.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".bundle-", dir=root))
    except OSError as error:
        raise BundleError(f"{root} cannot be written: {error.strerror}") from error
    try:
        staged.chmod(0o755)  # mkdtemp makes 0700, which a worker of another user cannot read
        shutil.copyfile(encode, staged / ENCODE)
        shutil.copyfile(rank, staged / RANK)
        (staged / ITEMS).write_bytes("".join(f"{item_id}\n" for item_id in item_ids).encode())
        sha256 = {n: hashlib.sha256(_read(staged / n)).hexdigest() for n in (ENCODE, RANK, ITEMS)}
        manifest = msgspec.structs.replace(manifest, sha256=sha256, bundle_id="")
        # Through JSON once before hashing: a figure given as 1 is read back as 1.0.
        manifest = _decode(staged / MANIFEST, msgspec.json.encode(manifest))
        manifest = msgspec.structs.replace(manifest, bundle_id=_content_id(manifest))
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        (staged / MANIFEST).write_bytes(text + b"\n")
        load_bundle(staged)
        folder = root / manifest.bundle_id
        if folder.exists():
            load_bundle(folder)
        else:
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def check_context(path: Path, fields: Sequence[ContextField]) -> None:
    """Raise BundleError where fields cannot be served; ``path`` is what asks for them."""
    if len(fields) > MAX_FIELDS:
        raise BundleError(f"{path} has {len(fields)} context fields, at most {MAX_FIELDS} are kept")
    names = Counter((f.kind, f.name) for f in fields)
    keys = Counter(column_key(f.name) for f in fields if f.kind == "column")
    for f in fields:
        wrong = None
        if names[f.kind, f.name] > 1:
            wrong = "stands there twice"
        elif f.kind == "column" and f.name in RESERVED:
            wrong = f"has the name of a click's own field; {', '.join(RESERVED)} are none"
        elif f.kind == "column" and keys[column_key(f.name)] > 1:
            wrong = "has a name whose CRC-32 is another column's; rename it"
        elif len(set(f.values)) < len(f.values) or any(
            not 1 <= len(value.encode()) <= MAX_VALUE_BYTES for value in f.values
        ):
            wrong = f"has values that are no different texts of 1 to {MAX_VALUE_BYTES} bytes"
        elif any(a >= b for a, b in pairwise(f.edges_s)):
            wrong = "has edges_s that do not rise"
        if wrong:
            raise BundleError(f"{path}: context field {f.name!r} of kind {f.kind} {wrong}")


class _Version(msgspec.Struct):
    format: int


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    # The format is read alone first: the fields of another format are unknown here.
    try:
        version = msgspec.json.decode(text, type=_Version)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is no manifest: {error}") from error
    if version.format != FORMAT:
        raise BundleError(
            f"{path} has format {version.format}, this version reads {FORMAT}; "
            "export the checkpoint again"
        )
    manifest = _decode(path, text)
    content_id = _content_id(manifest)
    if manifest.bundle_id != content_id:
        raise BundleError(
            f"{path} has content {content_id}, manifest says bundle_id={manifest.bundle_id}"
        )
    return manifest


def _decode(path: Path, text: bytes) -> Manifest:
    try:
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is no manifest: {error}") from error


def _content_id(manifest: Manifest) -> str:
    content = msgspec.structs.replace(manifest, bundle_id="")
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def _check_lists(path: Path, manifest: Manifest) -> None:
    if manifest.n_recommendations > manifest.n_items:
        raise BundleError(
            f"{path} has n_recommendations={manifest.n_recommendations}, "
            f"expected at most n_items={manifest.n_items}"
        )
    popular = {item.item_index for item in manifest.popular}
    if not len(popular) == len(manifest.popular) == manifest.n_recommendations:
        raise BundleError(
            f"{path} has {len(popular)} popular items in {len(manifest.popular)} entries, "
            f"expected n_recommendations={manifest.n_recommendations}"
        )
    if max(popular) >= manifest.n_items:
        raise BundleError(
            f"{path} has popular item_index {max(popular)}, "
            f"expected less than n_items={manifest.n_items}"
        )


def _parse_items(path: Path, text: bytes, n_items: int) -> list[str]:
    try:
        *item_ids, rest = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error
    if rest:
        raise BundleError(f"{path} ends with {rest[:80]!r}, expected a newline")
    if len(item_ids) != n_items:
        raise BundleError(f"{path} has {len(item_ids)} lines, manifest says n_items={n_items}")
    if len(set(item_ids)) != n_items or "" in item_ids:
        raise BundleError(
            f"{path} has {len(set(item_ids) - {''})} different item ids, expected {n_items}"
        )
    return item_ids


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _opset(path: Path, model: bytes) -> int:
    """The opset of the standard operators that an ONNX file declares.

    ONNX Runtime does not tell, and the onnx package is no part of a worker: this reads fields
    8 (opset_import) of ModelProto, and 1 (domain) and 2 (version) of OperatorSetIdProto.
    """
    try:
        for number, opset_import in _fields(memoryview(model)):
            if number == 8 and isinstance(opset_import, memoryview):
                fields = dict(_fields(opset_import))
                version = fields.get(2)
                if not fields.get(1) and isinstance(version, int):
                    return version
    except (IndexError, ValueError) as error:
        raise BundleError(f"{path} is no ONNX model: {error}") from error
    raise BundleError(f"{path} names no opset of the standard operators, so is no ONNX model")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message: (number, varint or bytes); fixed widths as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"field {number} ends behind the file")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
