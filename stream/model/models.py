"""Which model answers a session, and all that a batch needs of one model in one object."""

from pathlib import Path

import structlog

from stream.contract.click import ClickParser
from stream.contract.context import Context
from stream.contract.messages import encode_json, item_json
from stream.model.blender import Blender
from stream.model.bundle import Bundle, load_bundle
from stream.model.scorer import OnnxScorer, Scorer

log = structlog.get_logger()


class Model:
    """A bundle in service: its graphs, catalogue, context fields and popularity list.

    ``popular_json``: the items for sessions that the model has no list for, best first.
    ``blender``: None where lists are the network's alone.
    """

    def __init__(self, bundle: Bundle, scorer: Scorer) -> None:
        self.manifest = bundle.manifest
        self.model_id = bundle.manifest.bundle_id
        self.model_bytes = bytes.fromhex(self.model_id)
        self.item_ids = bundle.item_ids
        self.item_index = bundle.item_index
        self.scorer = scorer
        self.context = Context(bundle.manifest.context)
        self._event_types = frozenset(bundle.manifest.event_types)
        self.item_json = [item_json(name) for name in self.item_ids]
        listed = [(p.item_index, p.score) for p in bundle.manifest.popular]
        popular = [self.item_json[index] + encode_json(score) for index, score in listed]
        self.popular_json = b"[%b}]" % b"},".join(popular)
        live = bundle.manifest.live
        self.blender = Blender(bundle.manifest, live, bundle.item_ids) if live else None

    def reads(self, event_type: str | None) -> bool:
        """Whether clicks of this type advance a session: those that the model was trained on."""
        return not self._event_types or event_type in self._event_types


def load_model(folder: Path, threads: int = 1) -> Model:
    """Return the model of a bundle, its graphs opened and tried. Raises StreamError.

    Logs which way to rank is the fastest on this processor.
    """
    bundle = load_bundle(folder)
    scorer = OnnxScorer(bundle, threads)
    log.info("ranking_chosen", **scorer.ranking._asdict())
    return Model(bundle, scorer)


class Models:
    """The models in service: today one, which answers every session.

    The path of a click asks ``of`` at each click and keeps no model between batches. ``parse``
    keeps of a click what any of the models reads, and refuses more than ``max_click_bytes``.
    """

    def __init__(self, model: Model, max_click_bytes: int | None = None) -> None:
        self._model = model
        self.parse = ClickParser(model.context.columns, max_bytes=max_click_bytes)

    def refresh(self) -> None:
        """Let the models take what has come from elsewhere since the last batch."""
        if self._model.blender is not None:
            self._model.blender.refresh()

    def of(self, session: bytes) -> Model:
        """Return the model that answers a session."""
        return self._model
