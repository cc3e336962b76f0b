"""A click log cut in two by time: what the demo learns from, and the newest clicks it replays."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from deploy.demo.summary import Figures
from train.command import TrainError
from train.data.filters import EventTypes
from train.data.health import Health
from train.data.oracle import score_oracle
from train.data.sessions import TARGET_WEIGHT
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.training_log import Reading, how_read, look_at

SHOP_IDLE_TIMEOUT_S = 1800
MAX_HELDOUT_SHARE = 0.2
CONTEXT = ("--context", "event_type,hour,gap", "--input-context", "multiply")


@dataclass(frozen=True, slots=True)
class Heldout:
    """The two parts, and what is known of the log."""

    name: str
    train: pl.DataFrame
    heldout: pl.DataFrame
    """In the order of ``read_clicks``; the last sessions may be cut short."""
    idle_timeout_s: int | None
    health: Health | None = None
    """None of the made-up shop's."""
    shop: SyntheticConfig | None = None
    training: tuple[str, ...] = ("--epochs", "1000")
    """Flags of `fit`."""

    @property
    def context(self) -> tuple[str, ...]:
        """Flags of `fit` for the log's context; none for a log without event types."""
        return CONTEXT if "event_type" in self.train.columns else ()

    def oracle(self, known_items: list[str]) -> Figures | None:
        """The best possible figures on the held-out clicks, if the log's process is known."""
        if self.shop is None:
            return None
        score = score_oracle(self.shop, self.heldout, known_items)
        return Figures(score.recall, score.mrr)


def shop_log(n_heldout: int) -> Heldout:
    """The made-up shop's log: each of its days has `n_heldout` clicks, the last is held out."""
    shop = SyntheticConfig()
    clicks = generate_synthetic(n_heldout * shop.n_days, shop)
    train, heldout = hold_out(clicks, n_heldout)
    training = ("--preset", "synthetic")
    return Heldout("a made-up shop", train, heldout, SHOP_IDLE_TIMEOUT_S, None, shop, training)


def read_log(reading: Reading, n_heldout: int, rejected_path: Path) -> Heldout:
    """Any log; of its further columns only the event's type is kept, as event_type. Raises
    TrainError for a log that cannot be read or is too short."""
    log, health = look_at(reading, rejected_path=rejected_path)
    column, weights = how_read(reading)[0].column, reading.event_types
    clicks = log.clicks.drop(TARGET_WEIGHT, strict=False)
    clicks = clicks.rename({column: EventTypes().column}, strict=False)
    train, heldout = hold_out(clicks, n_heldout)
    weighed = ",".join(f"{name}={weight:g}" for name, weight in weights.items())
    training = ("--epochs", "1000", *(["--event-types", weighed] if weighed else []))
    name = str(reading.clicks)
    return Heldout(name, train, heldout, log.idle_timeout_s, health, training=training)


def hold_out(clicks: pl.DataFrame, n_heldout: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The log without its newest sessions, and the first ``n_heldout`` clicks of those.

    Sessions are taken from the end until they have that many clicks, at most a fifth of the log;
    the clicks they have beyond that, the latest, are left out. Raises TrainError if either
    part would be empty.
    """
    n_heldout = min(n_heldout, int(MAX_HELDOUT_SHARE * len(clicks)))
    session = clicks["session_id"].rle()
    clicks_from_here = session.struct.field("len").cum_sum(reverse=True)
    newest = int((clicks_from_here >= n_heldout).sum()) - 1
    first_row = len(clicks) - int(clicks_from_here[newest]) if n_heldout and newest > 0 else 0
    if first_row == 0:
        raise TrainError(
            f"a log of {len(clicks)} clicks in {len(session)} sessions is too short to hold "
            "back the newest fifth and learn from the rest"
        )
    heldout = clicks[first_row:].with_row_index("_row")
    in_time = heldout.sort("timestamp_ms", maintain_order=True)[:n_heldout]
    return clicks[:first_row], in_time.sort("_row").drop("_row")
