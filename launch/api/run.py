"""A run as Python sees it: what it measured, and what its model says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from data_shards.paths import absolute_url, is_relative
from launch.api.child import run_apart
from launch.api.data import Data
from launch.api.errors import speaking
from launch.api.shown import Metrics, curve_frame, frame, reasons_frame
from launch.errors import UsageError
from trainer.run_folder import CHECKPOINTS, CONFIG, METRICS, RESULT, metric_lines, read_json, stored_result, stored_run

if TYPE_CHECKING:
    import pandas as pd

_LEFT = (METRICS, RESULT, CHECKPOINTS)


class Run:
    """A run, finished or not.

    Attributes:
        url: its folder. name: the last part of it, the `name=` that continues it.
    """

    def __init__(self, url: str) -> None:
        self.url = absolute_url(str(url)).rstrip("/")
        self.name = self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"<Run {self.url}: {self.state}>"

    @property
    @speaking
    def state(self) -> str:
        """running, finished, stopped, failed, died, or gone: its folder was deleted or moved."""
        from launch.runs.listing import look_at

        if not self._exists():
            return "gone"
        return look_at(self.url).state

    @property
    @speaking
    def metrics(self) -> Metrics:
        """Of the test part; of a run that has not finished the newest ones of everything that it logged."""
        self._must_exist()
        result = stored_result(self.url)
        if result is not None and result.get("metrics"):
            return Metrics(result["metrics"])
        newest: dict[str, float] = {}
        for line in metric_lines(self.url):
            newest |= line.get("metrics", {})
        return Metrics(newest)

    def _exists(self) -> bool:
        fs, root = fsspec.url_to_fs(self.url)
        return bool(fs.exists(root))

    def _must_exist(self) -> None:
        """Raise UsageError: the folder was deleted, or moved."""
        if not self._exists():
            raise UsageError(f"there is no run at {self.url} any more: its folder was deleted or moved")

    @property
    @speaking
    def recipe(self) -> dict[str, Any]:
        """Everything that defines the run, section by section."""
        self._must_exist()
        return dict(read_json(self.url, CONFIG) or {})

    @property
    def mlflow_id(self) -> str | None:
        """The id of its run in MLflow, if it has one."""
        stored = stored_run(self.url)
        return None if stored is None else stored["run_id"]

    @speaking
    def history(self) -> pd.DataFrame:
        """All logged metrics: columns `step`, `metric`, `value`."""
        lines = [line for line in metric_lines(self.url) if "metrics" in line]
        return frame(("step", "metric", "value"), [(r["step"], *item) for r in lines for item in r["metrics"].items()])

    @speaking
    def predict(
        self, data: Any = None, *, part: str | None = None, calibrated: bool = False, **frames: Any
    ) -> pd.DataFrame:
        """What the model says of each record, or of each moment of one: the columns that `predict` writes.

        Args:
            data: packed data (`Data`, a folder or URL); a data frame with a row a record and the columns of the
                training data, without labels or key if need be; one `Record` or a list of them; None: the training
                data.
            part: only this part of packed data, e.g. "test".
            calibrated: divide logits by the temperatures that `evaluate(temperature=True)` has fitted.
            frames: the other tables, under the names that they had when the training data were packed (of a mapping
                file the names of its files, without their ends). A table that is left out holds nothing.

        Raises:
            InputError: data that do not fit the model. RunError: damaged bytes, a storage that is away.
        """
        return self._predict(data, part, frames, calibrated=calibrated)

    @speaking
    def embed(self, data: Any = None, *, part: str | None = None, **frames: Any) -> pd.DataFrame:
        """What the model makes of each record before it answers: `embedding`, the pooled vector that its heads read,
        and `tokens.MODALITY`, a list of vectors, None without the modality. Arguments as of `predict`.
        """
        found = self._predict(data, part, frames, embeddings=True)
        about = [name for name in ("record", "key", "moment", "embedding") if name in found.columns]
        return found[[*about, *(name for name in found.columns if name.startswith("tokens."))]]

    @speaking
    def explain(self, data: Any = None, *, part: str | None = None, **frames: Any) -> pd.DataFrame:
        """Which modalities, and which texts, pictures or codes of them, each prediction rests on.

        Each is hidden in turn; `share` is its part of the changes that this makes. Arguments as of `predict`.
        """
        return reasons_frame(self._predict(data, part, frames, explain=True))

    def _predict(self, data: Any, part: str | None, frames: Mapping[str, Any], **wishes: Any) -> pd.DataFrame:
        import pandas as pd

        from launch.api.new_records import packed_for
        from launch.runs.prediction.predict import predict_into

        data = frames.get("records", data) if data is None else data
        if part is not None and data is not None and not isinstance(data, str | Path | Data):
            raise UsageError(f"part={part!r} is of packed data: new records belong to no part")
        others = {name: own for name, own in frames.items() if name != "records"}
        place = nullcontext(None) if data is None else packed_for(self._trained_on(), data, others)
        with place as url, tempfile.TemporaryDirectory(prefix="fleximoe-predicted-") as folder:
            out = f"{folder}/predicted.parquet"
            predict_into(self.url, url, out, part, **wishes)
            return pd.read_parquet(out)

    def _trained_on(self) -> str:
        from launch.runs.requests import Asked, request_of, without_checkpoint
        from trainer.checkpoints.find import open_checkpoint

        if without_checkpoint(self.url):
            return request_of(self.url, Asked())[0].data.url
        section = open_checkpoint(self.url).meta["config"]["data"]
        if section.get("mixture"):
            raise UsageError(
                f"{self.name} was trained on a mixture: pack the records, and give the URL of one data set"
            )
        return str(section["url"])

    @speaking
    def evaluate(
        self,
        part: str = "test",
        *,
        drop: str | Sequence[str] = (),
        data: str | Data | None = None,
        temperature: bool = False,
        progress: bool = True,
    ) -> Metrics:
        """Metrics of a part of the data, also without some of the modalities.

        Args:
            drop: modalities to hide, as if they had never been recorded. data: other data of the same schema; default:
                what it was trained on. temperature: also fit temperatures on part val, for `predict(calibrated=True)`.

        Raises:
            InputError: no such part or modality, or data that do not fit.
        """
        return Metrics(self._evaluate(part, drop, data, progress, temperature=temperature)["metrics"])

    @speaking
    def missing_curve(self, part: str = "test", *, progress: bool = True) -> pd.DataFrame:
        """What absent modalities cost: without each, with 0 to 70 % of them missing, and with time hidden.

        Columns: see `launch.api.shown.curve_frame`. The curve and its figure are also kept with the run.
        """
        return curve_frame(self._evaluate(part, (), None, progress, missing_curve=True)["missing_curve"])

    def _evaluate(
        self, part: str, drop: str | Sequence[str], data: str | Data | None, progress: bool, **wishes: bool
    ) -> dict[str, Any]:
        from data_shards import open_data
        from launch.runs.checks import check
        from launch.runs.ensemble import measure_together
        from launch.runs.requests import without_checkpoint
        from launch.runs.train import evaluation_of

        hidden = [drop] if isinstance(drop, str) else list(drop)
        if without_checkpoint(self.url):
            return measure_together(self.url, None if data is None else str(data), part, hidden, (), **wishes)
        config = evaluation_of(self.url, None if data is None else str(data), part, hidden, (), **wishes)
        check(config)  # what is refused needs no process
        open_data(config.data).column(config.data.split, part)
        return run_apart(config, progress)

    @speaking
    def report(self, out: str | Path | None = None, *, sample: int = 256) -> Path:
        """Write the run as one HTML page, or the sweep whose folder this is; returns where.

        Args:
            out: the file; default: `NAME.html` in the working folder. sample: samples of the test part on which is
                computed what the run does not keep (what absent modalities cost, what answers rest on); 0 = nothing.

        Raises:
            InputError: nothing is there to be shown.
        """
        from launch.report.report import write_report

        return write_report(self.url, None if out is None else str(out), sample)

    @speaking
    def export(self, out: str, format: str = "safetensors") -> dict[str, Any]:
        """Write the best model for `fleximoe.load(out)`; returns what it is.

        Args:
            format: "safetensors", with recipe and schema; "pt2" or "onnx", one graph, compared with the model first.
        """
        from trainer.ensemble.export import export_run

        if format not in ("safetensors", "pt2", "onnx"):
            raise UsageError(f"format={format!r}: there are safetensors, pt2 and onnx")
        return export_run(self.url, str(out), format)

    def _repr_html_(self) -> str:
        shown = self.metrics._repr_html_() if self._exists() else ""
        return f"<p>run <b>{escape(self.name)}</b>, {self.state}, {escape(self.url)}</p>" + shown


def open_run(run: str, storage: str, mlflow: str | None) -> Run:
    """See `fleximoe.open_run`."""
    word, storage = str(run), str(storage)
    places = [absolute_url(word)]
    if is_relative(word) and "/" not in word:
        places.append(f"{absolute_url(storage).rstrip('/')}/{word}")
    for place in places:
        fs, root = fsspec.url_to_fs(place)
        if any(fs.exists(f"{root}/{name}") for name in _LEFT):
            return Run(place)
    return Run(_from_mlflow(word, places, mlflow))


def _from_mlflow(word: str, places: list[str], mlflow: str | None) -> str:
    """The folder of a run that MLflow knows. Raises UsageError."""
    from launch.compare.compare import default_uri
    from trainer.config.paths import absolute_uri
    from trainer.tracking.history import UnknownRunError, find_runs

    uri = absolute_uri(mlflow) if mlflow else default_uri()
    looked = " nor ".join(places)
    if uri is None:
        raise UsageError(f"there is no run at {looked}, and no MLflow to ask (mlflow=..., or MLFLOW_TRACKING_URI)")
    try:
        (tracked,) = find_runs(uri, [word], None)
    except UnknownRunError as error:
        raise UsageError(f"there is no run at {looked}; {error}") from None
    storage = tracked.params.get("training.storage")
    if not storage:
        raise UsageError(f"MLflow's run {word} says nothing of training.storage: it is no run of this project")
    return f"{Path(storage) if '://' not in storage else storage.rstrip('/')}/{tracked.name}"
