"""What a run does not keep and its page shows: answers of its best checkpoint with something hidden, on a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_shards.errors import skipped_words
from launch.runs.requests import Asked, request_of, without_checkpoint

if TYPE_CHECKING:
    from trainer.evaluation.sampled import Sampled

SAMPLE = 256  # samples of the test part


@dataclass(frozen=True)
class Computed:
    """What was found, or, in words, why nothing was."""

    sampled: Sampled | None
    why_not: str = ""

    @property
    def words(self) -> str:
        """Which samples these are."""
        if self.sampled is None:
            return f"Not computed: {self.why_not}."
        own = self.sampled
        about = f"all {own.of:,}" if own.samples == own.of else f"{own.samples:,} of {own.of:,}, spread evenly over it"
        lost = f"; left out: {skipped_words(own.skipped)}" if own.skipped else ""
        return f"Computed for this page by the best checkpoint on samples of the test part: {about}{lost}."


def compute(run_dir: str, wanted: int) -> Computed:
    """Hide and predict, in this process. What stands against it becomes a sentence, as the page has more to show."""
    if not wanted:
        return Computed(None, "--sample 0 was given")
    if without_checkpoint(run_dir):
        return Computed(None, "a baseline or an ensemble has no single model in which something could be hidden")
    try:
        return Computed(_sampled(run_dir, wanted))
    except (ValueError, OSError) as error:
        return Computed(None, str(error).rstrip("."))


def _sampled(run_dir: str, wanted: int) -> Sampled:
    from trainer.checkpoints.find import open_checkpoint
    from trainer.evaluation.sampled import look_at_sample
    from trainer.inference.predictor import Predictor
    from trainer.inference.request import Request
    from trainer.worker.context import default_device

    # `explain` asks whether the model can do without a modality at all.
    _, request = request_of(run_dir, Asked(part="test", explain=True))
    assert isinstance(request, Request)
    predictor = Predictor(request, open_checkpoint(request.checkpoint), default_device(0))
    return look_at_sample(predictor, "test", wanted)
