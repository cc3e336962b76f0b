"""What decides the weights besides the log, and which of it goes together."""

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from train.network.cells import Cell
from train.network.model import Embedding, InputContext, TransitionContext
from train.network.optimiser import Rule

Loss = Literal["bpr-max", "cross-entropy", "softmax", "top1-max", "bpr", "top1"]


class Hyperparameters(BaseModel):
    """What decides the weights, besides the log; kept in the checkpoint."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    cell: Cell = "gru"
    """Recurrent cell; window is a feed-forward network over the last clicks instead."""
    hidden_size: PositiveInt = 100
    """Units of each layer, and width of the item embedding."""
    n_layers: PositiveInt = 1
    """Layers, one above the other."""
    window: int = Field(default=3, ge=2, le=50)
    """Clicks that the cell window sees."""
    embedding: Embedding = "separate"
    """Whether clicks are read through the rows items are scored with (shared), through a table of
    their own (separate), or straight into the first layer's gates (one-hot)."""
    residual: bool = False
    """Add a layer's input to its output."""
    feed_forward: bool = False
    """A feed-forward layer (tanh) between the last layer and the scores."""
    normalise: bool = False
    """Score by the cosine of session and item, times the temperature."""
    temperature: PositiveFloat = 12.0
    """Largest score of a normalised model."""
    input_context: InputContext = "concat"
    """How context that surrounds a click comes in: an embedding beside the item's, multiplied with
    it, or added to it (a residual connection takes it on to the scores), or input matrices of its
    own (of rank context_size)."""
    transition_context: TransitionContext = "concat"
    """The same for the gap between clicks, its matrices being the recurrent ones; or it lets the
    state decay (a time-aware cell)."""
    context_size: PositiveInt = 16
    """Width of a context embedding beside the item's, and rank of context matrices."""
    peek_context: bool = False
    """Show the query the context of the click to predict, for research: such a model is never
    exported."""
    loss: Loss = "bpr-max"
    """What a step minimises; softmax is over the whole catalogue, the others over candidates."""
    bpreg: NonNegativeFloat = 1.0
    """BPR-max: weight of the score regularisation."""
    elu: NonNegativeFloat = 0.5
    """BPR-max: alpha of the exponential linear unit on the scores; 0 leaves it out."""
    logq: bool = True
    """Cross-entropy: correct the scores for how likely an item is among the candidates."""
    n_negatives: NonNegativeInt = 512
    """Negatives drawn for each step, beside the batch's own targets; softmax needs none."""
    sample_alpha: float = Field(default=0.5, ge=0, le=2)
    """Negatives are drawn with probability proportional to support^sample_alpha."""
    batch_size: PositiveInt = 96
    """Sessions side by side."""
    order: Literal["random", "time"] = "random"
    """Order of the sessions in an epoch; by time, the newest teach last."""
    bptt: PositiveInt = 1
    """Clicks of a session through which a gradient flows back; one update for all of them, in
    which its own targets are no negatives of it."""
    dropout_embedding: float = Field(default=0.0, ge=0, lt=1)
    """Share of an embedding's entries left out of a training step."""
    dropout_hidden: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's output left out on the way up, to the next layer or the scores."""
    optimiser: Rule = "adagrad"
    """Rule of an update."""
    learning_rate: PositiveFloat = 0.07
    """Of the optimiser, at its highest."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Nesterov momentum of adagrad and sgd."""
    initial_accumulator: NonNegativeFloat = 0.0
    """Adagrad: what a weight's sum of squared gradients begins as. Above the squares of most
    gradients, small ones move a weight little, as with sgd."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of weights with each update, apart from the gradient (adam with it is AdamW)."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over all epochs, down to 0."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs in which the learning rate rises from 0."""
    clip_norm: NonNegativeFloat = 0.0
    """Longest gradient of a step, over all weights together; 0: as it is."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; weights and their updates stay float32. A device that has no bfloat16
    computes in float32 all the same, and says so."""
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    """Of the initial weights, the order of sessions, negatives and dropout."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Hyperparameters":
        for wrong, sentence in (
            (
                self.batch_size == 1 and self.n_negatives == 0 and self.is_sampled,
                f"loss={self.loss} needs negatives: a batch of one session and n_negatives=0 "
                "leave none",
            ),
            (
                self.momentum > 0 and self.optimiser == "adam",
                f"momentum={self.momentum:g} with optimiser=adam, which has moments of its own: "
                "use adagrad or sgd, or momentum=0",
            ),
            (
                self.initial_accumulator > 0 and self.optimiser != "adagrad",
                f"initial_accumulator={self.initial_accumulator:g} with "
                f"optimiser={self.optimiser}, which has none: use adagrad",
            ),
            (
                self.cell == "window" and self.n_layers > 1,
                f"n_layers={self.n_layers} with cell=window, which has one; feed_forward adds one",
            ),
            (
                self.cell == "window" and self.embedding == "one-hot",
                "embedding=one-hot with cell=window, which has no gates: use separate or shared",
            ),
            (
                self.embedding == "one-hot" and self.input_context == "matrices",
                "input_context=matrices with embedding=one-hot, which has no input matrix",
            ),
            (
                self.residual and self.embedding == "one-hot" and self.n_layers == 1,
                "residual=true with embedding=one-hot and one layer, which has no input to add",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
        return self

    @property
    def is_sampled(self) -> bool:
        """A step looks at candidates instead of the whole catalogue."""
        return self.loss != "softmax"
