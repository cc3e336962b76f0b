"""A bundle is served whole and as written, or refused with one sentence."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bench.serving.bundles import even_live, write_tiny_bundle
from stream.contract.context import Context
from stream.errors import StreamError
from stream.model.bundle import (
    Live,
    Manifest,
    PopularItem,
    content_id,
    load_bundle,
    write_bundle,
)
from stream.model.models import load_model
from stream.model.scorer import OnnxScorer, Scorer


def query_of_item_0(scorer: Scorer) -> np.ndarray:
    """What tells one encode.onnx from another."""
    new, no_context = np.zeros((1, scorer.state_size), np.float32), np.empty((1, 0), np.int32)
    return scorer.encode(np.array([0]), no_context, new)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundles", n_items=50, k=5)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make its bundle_id right again, as a careful forger would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in manifest["sha256"]
        if (folder / name).exists()
    }
    with suppress(msgspec.ValidationError):
        manifest["bundle_id"] = content_id(msgspec.convert(manifest, Manifest))
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_what_is_loaded(tmp_path: Path) -> None:
    item_ids = ["a b", "ü", "x\u2028y", "1", "01"]
    folder = write_tiny_bundle(
        tmp_path, n_items=5, hidden_size=6, n_layers=2, k=3, item_ids=item_ids, idle_timeout_s=None
    )
    bundle = load_bundle(folder)
    assert bundle.item_ids == item_ids
    assert [bundle.item_index[item_id] for item_id in item_ids] == [0, 1, 2, 3, 4]
    assert bundle.manifest.idle_timeout_s is None
    assert (bundle.manifest.hidden_size, bundle.manifest.n_layers) == (6, 2)
    assert (bundle.manifest.state_size, bundle.manifest.query_size) == (12, 6)
    assert bundle.manifest.popular[0] == PopularItem(0, 3.0)
    assert bundle.encode() == (folder / "encode.onnx").read_bytes()
    assert bundle.rank() == (folder / "rank.onnx").read_bytes()
    assert bundle.rank_int8 is None


def test_context_fields_may_share_a_name_where_their_kinds_differ(folder: Path) -> None:
    fields = [
        {"name": "hour", "kind": "hour", "utc_offset_s": -10_800},
        {"name": "hour", "kind": "column", "values": ["night"]},
        {"name": "event_type", "kind": "column"},
        {"name": "gap", "kind": "gap", "edges_s": [1.0, 2.5]},
    ]
    rewrite(folder, lambda manifest: manifest.update(context=fields))
    bundle = load_bundle(folder)
    assert [field.size for field in bundle.manifest.context] == [26, 3, 2, 5]
    assert Context(bundle.manifest.context).columns == ("hour", "event_type")


def test_lateness_and_event_types_come_back_and_change_the_name(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path)
    manifest = load_bundle(plain).manifest
    assert (manifest.allowed_lateness_s, manifest.event_types) == (600, ())
    for fields in ({"allowed_lateness_s": 0}, {"event_types": ("view", "cart")}):
        other = write_tiny_bundle(tmp_path, **fields)
        assert other != plain
        found = load_bundle(other).manifest
        assert {name: getattr(found, name) for name in fields} == fields


def test_a_bundle_without_the_newer_fields_is_as_version_0_1_0_wrote_it(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert not {"allowed_lateness_s", "event_types"} & manifest.keys()
    assert "int8_overlap" not in manifest["parity"]
    assert not (folder / "rank_int8.onnx").exists()
    manifest["bundle_id"], bundle_id = "", manifest["bundle_id"]
    text = json.dumps(manifest, separators=(",", ":")).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == bundle_id


@pytest.mark.parametrize("name", ["manifest.json", "items.txt", "encode.onnx", "rank.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(StreamError, match=rf"/{name} is no regular file, expected one or a link"):
        load_model(folder)


def test_a_folder_is_named_by_its_content(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path, seed=1)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert folder == tmp_path / load_bundle(folder).manifest.bundle_id
    assert len(folder.name) == 16

    assert write_tiny_bundle(tmp_path, seed=1) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert write_tiny_bundle(tmp_path, seed=2) != folder
    assert write_tiny_bundle(tmp_path, seed=1, idle_timeout_s=60) != folder


def test_a_whole_number_among_the_figures_does_not_change_the_name(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path / "a"))
    popular = [PopularItem(item.item_index, int(item.score)) for item in bundle.manifest.popular]
    manifest = msgspec.structs.replace(bundle.manifest, popular=popular)
    again = write_bundle(tmp_path / "b", manifest, bundle.item_ids, bundle.encode(), bundle.rank())
    assert again.name == bundle.manifest.bundle_id
    assert load_bundle(again).manifest == bundle.manifest


def test_a_bundle_may_be_mounted_under_another_name(folder: Path) -> None:
    model_id = load_bundle(folder).manifest.bundle_id
    moved = folder.rename(folder.parent / "current")
    assert load_bundle(moved).manifest.bundle_id == model_id


@pytest.mark.parametrize("swap_before", ["items.txt", "encode.onnx", "rank.onnx"])
def test_a_link_that_moves_under_a_start_leads_to_one_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap_before: str
) -> None:
    old = write_tiny_bundle(tmp_path / "bundles", seed=1)
    new = write_tiny_bundle(tmp_path / "bundles", seed=2)
    current = tmp_path / "current"
    current.symlink_to(old)
    read: list[Path] = []

    def read_bytes(path: Path, plain: Callable[[Path], bytes] = Path.read_bytes) -> bytes:
        if path.name == swap_before:
            current.unlink()
            current.symlink_to(new)
        read.append(path)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    model = load_model(current)
    assert current.resolve() == new
    assert model.model_id == old.name
    assert sorted(read) == sorted(old.iterdir()), "every file of one folder, once"
    expected = query_of_item_0(OnnxScorer(load_bundle(old)))
    np.testing.assert_array_equal(query_of_item_0(model.scorer), expected)


def test_links_in_a_circle_are_no_bundle(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(link)
    with pytest.raises(StreamError, match="current cannot be read: "):
        load_bundle(link)


def test_the_graph_that_is_served_is_the_one_that_was_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(folder)
    expected = query_of_item_0(OnnxScorer(bundle))
    other = (write_tiny_bundle(folder.parent, seed=9) / "encode.onnx").read_bytes()

    def sha256(content: bytes, plain: Callable[[bytes], Any] = hashlib.sha256) -> Any:
        (folder / "encode.onnx").write_bytes(other)  # by now it has been read
        return plain(content)

    monkeypatch.setattr("stream.model.bundle.hashlib.sha256", sha256)
    np.testing.assert_array_equal(query_of_item_0(OnnxScorer(bundle)), expected)


@pytest.mark.parametrize("name", ["weights.bin", "rank.onnx.orig", "graphs"])
def test_what_the_manifest_does_not_list_is_refused(folder: Path, name: str) -> None:
    if name == "graphs":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(b"")
    with pytest.raises(StreamError, match=rf"holds \['{name}'\], which its manifest does not list"):
        load_bundle(folder)


def test_a_folder_as_kubernetes_mounts_a_configmap_is_served(folder: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    folder.rename(mount / "..2026_11_30")
    (mount / "..data").symlink_to("..2026_11_30")
    for path in (mount / "..data").iterdir():
        (mount / path.name).symlink_to(f"..data/{path.name}")
    (mount / ".DS_Store").write_bytes(b"")
    assert load_model(mount).model_id == folder.name


def test_a_worker_of_another_user_can_read_the_folder(folder: Path) -> None:
    assert folder.stat().st_mode & 0o055 == 0o055
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


INT8_ITEMS = 2000
"""A catalogue large enough for rank_int8.onnx, with lists of 5."""


def test_a_graph_for_int8_belongs_to_the_content(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "a", n_items=INT8_ITEMS)
    bundle = load_bundle(folder)
    assert bundle.rank_int8 is not None
    int8 = bundle.rank_int8()
    assert int8 == (folder / "rank_int8.onnx").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*bundle.manifest.sha256, "manifest.json"]
    )
    graphs = bundle.encode(), bundle.rank()
    without = write_bundle(tmp_path / "b", bundle.manifest, bundle.item_ids, *graphs)
    assert load_bundle(without).rank_int8 is None
    assert load_bundle(without).manifest.bundle_id != bundle.manifest.bundle_id
    measured = msgspec.structs.replace(bundle.manifest.parity, int8_overlap=0.9995)
    manifest = msgspec.structs.replace(bundle.manifest, parity=measured)
    again = write_bundle(tmp_path / "c", manifest, bundle.item_ids, *graphs, int8)
    assert load_bundle(again).manifest.parity == measured


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"changed")])
def test_a_missing_or_changed_graph_for_int8_is_refused(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    folder = write_tiny_bundle(tmp_path, n_items=INT8_ITEMS)
    change(folder / "rank_int8.onnx")
    with pytest.raises(StreamError, match=r"rank_int8.onnx (cannot be read|has sha256)"):
        load_model(folder)


@pytest.mark.parametrize("name", ["encode.onnx", "rank.onnx", "items.txt"])
def test_one_changed_byte_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(StreamError, match=rf"{name} has sha256 .*, but the manifest says "):
        load_model(folder)


@pytest.mark.parametrize("name", ["encode.onnx", "rank.onnx", "items.txt", "manifest.json"])
def test_a_half_written_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StreamError, match=rf"{name} cannot be read: No such file"):
        load_model(folder)


def test_a_changed_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"idle_timeout_s": 1800', '"idle_timeout_s": 1801'))
    with pytest.raises(
        StreamError, match=r"has content [0-9a-f]{16}, but the manifest says bundle_id="
    ):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("format", 1, "has format 1, but this version reads 2; export the checkpoint again"),
        ("n_items", 49, "items.txt has 50 lines, but the manifest says n_items=49"),
        ("allowed_lateness_s", -1, "is not a valid manifest: .*allowed_lateness_s"),
        ("event_types", "view", "is not a valid manifest: .*event_types"),
        ("n_layers", 0, "is not a valid manifest: .*n_layers"),
        ("colour", "red", "is not a valid manifest: .*unknown field `colour`"),
        ("state_size", -1, "is not a valid manifest: .*state_size"),
        ("context", [{"name": "x", "kind": "colour"}], "is not a valid manifest: .*kind"),
        (
            "context",
            [{"name": f"c{n}", "kind": "column"} for n in range(65)],
            "has 65 context fields, expected at most 64",
        ),
        ("context", [{"name": "gap", "kind": "gap"}] * 2, "'gap' of kind gap is declared twice"),
        (
            "context",
            [{"name": "item_id", "kind": "column"}],
            "'item_id' of kind column has a reserved name",
        ),
        (
            "context",  # two words whose CRC-32 is one
            [{"name": "plumless", "kind": "column"}, {"name": "buckeroo", "kind": "column"}],
            "'plumless' of kind column has a name with the same CRC-32 as another column's",
        ),
        (
            "context",
            [{"name": "device", "kind": "column", "values": ["tv", "tv"]}],
            "'device' of kind column must have values that are distinct strings of 1 to 64 bytes",
        ),
        (
            "context",
            [{"name": "device", "kind": "column", "values": ["v" * 65]}],
            "'device' of kind column must have values that are distinct strings of 1 to 64 bytes",
        ),
        (
            "context",
            [{"name": "gap", "kind": "gap", "edges_s": [1.0, 1.0]}],
            "'gap' of kind gap must have strictly increasing edges_s",
        ),
        ("popular", [], "has 0 popular items in 0 entries, expected n_recommendations=5"),
        (
            "popular",
            [{"item_index": 7, "score": 1.0}] * 5,
            "has 1 popular items in 5 entries, expected n_recommendations=5",
        ),
        (
            "popular",
            [{"item_index": 46 + n, "score": 1.0} for n in range(5)],
            "has popular item_index 50, expected less than n_items=50",
        ),
        ("n_recommendations", 51, "has n_recommendations=51, expected at most n_items=50"),
        ("sha256", {"rank.onnx": ""}, r"lists \['rank.onnx'\], expected \['encode.onnx', "),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    folder: Path, field: str, value: object, sentence: str
) -> None:
    rewrite(folder, lambda manifest: manifest.update({field: value}))
    with pytest.raises(StreamError, match=sentence):
        load_bundle(folder)


@pytest.mark.parametrize("n_candidates", [5, 6, 50])
def test_what_live_lists_need_is_kept(tmp_path: Path, n_candidates: int) -> None:
    live = even_live(n_candidates, bias=0.5)
    manifest = load_bundle(write_tiny_bundle(tmp_path, n_items=50, k=5, live=live)).manifest
    assert manifest.live == live
    assert (manifest.n_recommendations, manifest.n_candidates) == (5, n_candidates)


def test_without_live_lists_rank_lists_what_is_published(folder: Path) -> None:
    assert load_bundle(folder).manifest.n_candidates == 5


ROW = even_live(5).weights[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"n_candidates": 4},
            "has live n_candidates=4, expected n_recommendations=5 to n_items=50",
        ),
        (
            {"n_candidates": 51},
            "has live n_candidates=51, expected n_recommendations=5 to n_items=50",
        ),
        ({"weights": [ROW] * 4}, r"Expected `array` of length >= 5 - at `\$.live.weights`"),
        ({"weights": [ROW] * 6}, r"Expected `array` of length <= 5 - at `\$.live.weights`"),
        (
            {"weights": [ROW] * 4 + [ROW[1:]]},
            r"has live weights in rows of \[9, 10\], expected one of each of 10 sources",
        ),
        ({"weights": [[*ROW, 0.0]] * 5}, r"has live weights in rows of \[11\], expected one of"),
        ({"weights": [[*ROW[1:], -0.1]] * 5}, r"Expected `float` >= 0.0 - at `\$.live.weights"),
        ({"weights": [[*ROW[1:], np.nan]] * 5}, r"Expected `float`, got `null` - at `\$.live.wei"),
        ({"time_scale_s": 0}, r"Expected `int` >= 1 - at `\$.live.time_scale_s`"),
        ({"popularity_half_life_s": 0}, r"Expected `int` >= 1 - at `\$.live.popularity_half_life"),
        ({"time_scale_s": 2**32}, r"Expected `int` <= 2147483648 - at `\$.live.time_scale_s"),
        ({"sharpness": 1e4}, r"Expected `float` <= 1000\.0 - at `\$.live.sharpness"),
        ({"popularity_half_life_s": 1.5}, r"Expected `int`, got `float` - at `\$.live.popularity"),
        ({"bias": -0.1}, r"Expected `float` >= 0.0 - at `\$.live.bias`"),
        ({"bias": np.inf}, r"Expected `float`, got `null` - at `\$.live.bias`"),
    ],
)
def test_live_lists_that_cannot_be_made_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    bundle = load_bundle(folder)
    live: Live = msgspec.structs.replace(even_live(5), **change)
    manifest = msgspec.structs.replace(bundle.manifest, live=live)
    with pytest.raises(StreamError, match=sentence):
        write_bundle(tmp_path / "a", manifest, bundle.item_ids, bundle.encode(), bundle.rank())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": "1"}', b"\xff", b"{}" * 9])
def test_an_invalid_manifest_is_refused(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(StreamError, match=r"manifest.json is not a valid manifest"):
        load_bundle(folder)


@pytest.mark.parametrize("change", [lambda model: model[: len(model) // 2], lambda model: b"\xff"])
def test_a_graph_that_is_no_onnx_model_is_refused(
    folder: Path, change: Callable[[bytes], bytes]
) -> None:
    path = folder / "rank.onnx"
    path.write_bytes(change(path.read_bytes()))
    rewrite(folder, lambda manifest: None)
    with pytest.raises(StreamError, match=r"rank.onnx cannot be opened: "):
        load_model(folder)


@pytest.mark.parametrize(
    ("item_ids", "sentence"),
    [
        ([f"i{n}" for n in range(49)], "has 49 lines, but the manifest says n_items=50"),
        (["twice", "twice", *map(str, range(48))], "has 49 distinct item ids, expected 50"),
        (["", *map(str, range(49))], "has 49 distinct item ids, expected 50"),
        (["a\nb", *map(str, range(49))], "has 51 lines, but the manifest says n_items=50"),
    ],
)
def test_a_bundle_that_would_be_refused_is_not_written(
    folder: Path, tmp_path: Path, item_ids: list[str], sentence: str
) -> None:
    bundle = load_bundle(folder)
    root = tmp_path / "refused"
    with pytest.raises(StreamError, match=sentence):
        write_bundle(root, bundle.manifest, item_ids, bundle.encode(), bundle.rank())
    assert list(root.iterdir()) == []


def test_a_catalogue_cut_off_in_its_last_line_is_refused(folder: Path) -> None:
    path = folder / "items.txt"
    path.write_bytes(path.read_bytes()[:-1])
    rewrite(folder, lambda manifest: None)
    with pytest.raises(StreamError, match=r"items.txt ends with 'item-49', expected a newline"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["items.txt", "rank.onnx"])
def test_a_damaged_bundle_is_not_taken_for_the_one_written_again(tmp_path: Path, name: str) -> None:
    folder = write_tiny_bundle(tmp_path, seed=1)
    (folder / name).write_text("damaged")
    with pytest.raises(StreamError, match=rf"{name} has sha256"):
        write_tiny_bundle(tmp_path, seed=1)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_root_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamError, match=r"file cannot be written: File exists"):
        write_tiny_bundle(tmp_path / "file")
