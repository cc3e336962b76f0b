"""What a frozen network says after each click of a log."""

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32

from train.data.sessions import build_sessions
from train.measure.ranking import session_batches
from train.network.checkpoint import Checkpoint

_BATCH = 512


class Network:
    """A checkpoint's scores of its N items after the clicks of sessions that it was shown.

    Items that it does not know move nothing: a session's state is that of the known ones.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        self._context = checkpoint.info.model.context
        self.catalogue = checkpoint.catalogue
        with torch.inference_mode():
            self._rows = self._model.output_rows(self._model.item_embedding).numpy()
            self._bias = self._model.output_bias.numpy()
        self._queries: dict[str, Float32[np.ndarray, "t H"]] = {}

    def show(self, clicks: pl.DataFrame) -> None:
        """Take whole sessions, so that ``scores`` can answer for each of their clicks."""
        sessions = build_sessions(clicks, self.catalogue, self._context, shortest=1).sessions
        names = sessions.session_id.to_list()
        for row, batch in session_batches(sessions, _BATCH, shortest=1):
            state = self._model.initial_state(len(row))
            queries = np.zeros((*batch.item_index.shape, self._rows.shape[1]), dtype=np.float32)
            context = torch.from_numpy(batch.context)
            for t in range(int(batch.lengths[0])):
                b = int(np.count_nonzero(batch.lengths > t))
                with torch.inference_mode():
                    items = torch.from_numpy(batch.item_index[:b, t].copy())
                    query, state = self._model.encode(items, context[:b, t], state[:b])
                queries[:b, t] = query.numpy()
            for b, session in enumerate(row.tolist()):
                self._queries[names[session]] = queries[b, : batch.lengths[b]].copy()

    def scores(self, session: str, n_known: int) -> Float32[np.ndarray, "N"]:
        """After the session's first so many clicks on known items; at least one."""
        return np.asarray(self._rows @ self._queries[session][n_known - 1] + self._bias)
