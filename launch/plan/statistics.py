"""What a plan knows of the data: statistics of packed data, or of a schema and a stated presence."""

from __future__ import annotations

from data_shards import DatasetSchema, open_data
from data_shards.errors import ManifestError
from data_shards.paths import absolute_path
from data_shards.records.distributions.distribution import Spread
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import ModalityStatistics, SplitStatistics, TaskStatistics
from launch.errors import UsageError
from trainer.config.run_config import RunConfig

OBJECTS = 10  # of a timed modality in a record, and codes, where nobody has counted them


def data_statistics(
    config: RunConfig, schema: str | None, presence: float
) -> tuple[DatasetSchema, SplitStatistics, str]:
    """Schema, presence and lengths: of the packed data if it is there, else of a schema file and a stated presence."""
    if schema is None:
        try:
            manifest = open_data(config.data)
        except ManifestError as error:
            raise UsageError(f"{error}; pack the data, or give --schema FILE (and --presence) instead") from None
        manifest.column(config.data.split, "train")
        return manifest.schema, manifest.statistics[config.data.split], "manifest"
    try:
        described = DatasetSchema.from_json(absolute_path(schema).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--schema {schema}: {' '.join(str(error).split())}") from None
    return (
        described,
        stated_statistics(described, presence),
        f"schema, {presence:g} of all modalities present, lengths as declared",
    )


def stated_statistics(schema: DatasetSchema, presence: float, records: int = 1000) -> SplitStatistics:
    """Statistics of data that nobody has packed: every modality in this share of the records.

    A series is taken to have 10 events a channel, texts and waveforms the most that the schema allows; of a timed
    modality there are 10 objects, or the most that are kept if that is less, and 10 codes of codes.
    """
    if not 0 < presence <= 1:
        raise UsageError(f"--presence {presence} must lie in (0, 1]")
    present = round(presence * records)
    modalities = {}
    for spec in schema.modalities:
        longest, number = spec.max_length or 0, 1
        if spec.has_objects or spec.kind == "codes":
            number = min(OBJECTS, spec.max_objects or OBJECTS)
        each = {"series": 10, "waveform": longest}.get(spec.kind, 1)
        length, zeros = (float(longest) if spec.kind == "text" else 0.0,) * spec.width, (0.0,) * spec.width
        columns = ((each * number * present,) * spec.width, length, zeros, length, length)
        objects = None
        if spec.has_objects or spec.kind == "codes":
            objects = Spread(present, float(number), 0.0, float(number), float(number), ())
        # Of the numbers nothing is known, and a plan asks for nothing but that they are there.
        quantiles = ((0.0,) * len(PROBABILITIES),) * spec.width
        modalities[spec.name] = ModalityStatistics(present, *columns, quantiles, objects=objects)
    tasks = {task.name: TaskStatistics(records, (), (0.0,) * task.dim, (1.0,) * task.dim) for task in schema.tasks}
    return SplitStatistics(records, modalities, tasks)
