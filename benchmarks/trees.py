"""What boosted trees on simple statistics reach: a score to compare with, and what missing modalities cost at least.

    python -m benchmarks.trees [DATA] [--split split1] [--task in_hospital_death]

DATA is a packed data set of series and vectors with a task of yes and no (default: data/physionet2012). Each channel of
a series becomes its number of observations, mean, deviation, least, largest, first and last value and the mean of its
second half; what is absent is NaN, which these trees handle by themselves. Two are grown: on everything, and on copies
of the training part in which half of the modalities are hidden. How many trees is chosen on the validation part.

The test part is scored as it is and with half of the present modalities hidden, the very ones that
`evaluate --missing-curve` hides. What the second kind loses is an estimate of what is simply gone: no model can know
what it is not told. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.common import table
from data_shards import Batch, DataConfig, DatasetSchema, Manifest, SeriesGroup, StepLoader, VectorGroup, open_manifest
from trainer.models.layers.missing import keyed_uniform

STATISTICS, HALF, COPIES, DRAWS = 8, 0.5, 5, 3


class Part:
    """One part of the data as a table.

    Attributes:
        x_BX: statistics. y_B: labels. index_B: numbers of the records. present_BM: bool. owner_X: modality of a column.
    """

    def __init__(self, manifest: Manifest, config: DataConfig, part: str, task: str) -> None:
        widths = [modality_width(manifest.schema, number) for number in range(len(manifest.schema.modalities))]
        self.owner_X = np.repeat(np.arange(len(widths)), widths)
        first = np.cumsum([0, *widths])
        rows, labels, numbers, present = [], [], [], []
        for step in StepLoader(manifest, config, part, 256, 0, 1, shuffle=False).steps(0):
            for batch in step.micro_batches:
                x_BX = np.full((len(batch), int(first[-1])), np.nan, np.float32)
                for sample, modality, values in statistics(manifest.schema, batch):
                    x_BX[sample, first[modality] : first[modality + 1]] = values
                rows.append(x_BX)
                labels.append(batch.targets[task][:, 0].numpy())
                numbers.append(batch.index_B)
                present.append(batch.present_BM.numpy())
        self.x_BX, self.y_B, self.present_BM = np.concatenate(rows), np.concatenate(labels), np.concatenate(present)
        self.index_B = torch.cat(numbers)

    def hidden(self, rate: float, key: int) -> np.ndarray:
        """(B, X + M) the table without some modalities of each record, as `drop_modalities` chooses them."""
        draw_BM = keyed_uniform(key, self.index_B, self.present_BM.shape[1]).numpy()
        draw_BM[~self.present_BM] = -1.0
        keep_BM = self.present_BM & ((draw_BM >= rate) | (draw_BM == draw_BM.max(axis=1, keepdims=True)))
        x_BX = np.where(keep_BM[:, self.owner_X], self.x_BX, np.nan)
        return np.concatenate([x_BX, keep_BM.astype(np.float32)], axis=1)


def modality_width(schema: DatasetSchema, number: int) -> int:
    """Columns of a modality."""
    spec = schema.modalities[number]
    if spec.kind not in ("series", "vector"):
        raise ValueError(f"modality {spec.name} is of kind {spec.kind}: statistics are made of series and vectors only")
    return STATISTICS * len(spec.channels) if spec.kind == "series" else spec.shape[0]


def statistics(schema: DatasetSchema, batch: Batch) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row of the batch, modality, columns) of everything that is present."""
    for group in batch.groups.values():
        assert isinstance(group, SeriesGroup | VectorGroup)
        pairs = zip(group.sample_P.tolist(), group.modality_P.tolist(), strict=True)
        for number, (sample, modality) in enumerate(pairs):
            if isinstance(group, VectorGroup):
                yield sample, modality, group.values_PF[number].numpy()
                continue
            own, spec = slice(*group.offsets[number : number + 2].tolist()), schema.modalities[modality]
            times, channels = group.times_O[own].numpy(), group.channels_O[own].numpy()
            values, middle = group.values_O[own].numpy(), (spec.horizon or 0) / 2
            found = [of_channel(times[channels == c], values[channels == c], middle) for c in range(len(spec.channels))]
            yield sample, modality, np.concatenate(found)


def of_channel(times: np.ndarray, values: np.ndarray, middle: float) -> np.ndarray:
    """The statistics of one channel's observations, which are sorted by time; NaN but the number for none."""
    if not len(values):
        return np.array([0.0, *[np.nan] * (STATISTICS - 1)])
    late = values[times >= middle]
    simple = [len(values), values.mean(), values.std(), values.min(), values.max(), values[0], values[-1]]
    return np.array([*simple, late.mean() if len(late) else np.nan])


class Trees:
    """Boosted trees that are as many as suit the validation part."""

    def __init__(self, parts: dict[str, Part], rate: float, copies: int) -> None:
        train, val = parts["train"], parts["val"]
        # Keys of the training copies lie apart from those of the test draws, which are 0, 1, 2.
        x_BX = np.concatenate([train.hidden(rate, 1000 + copy) for copy in range(copies)])
        model = HistGradientBoostingClassifier(
            learning_rate=0.05,
            max_iter=400,
            max_leaf_nodes=8,
            min_samples_leaf=20 * copies,
            l2_regularization=10.0,
            max_features=0.2,
            early_stopping=False,
            random_state=0,
        ).fit(x_BX, np.tile(train.y_B, copies))
        scores = [roc_auc_score(val.y_B, p[:, 1]) for p in model.staged_predict_proba(val.hidden(rate, 500))]
        self.number, self.model = int(np.argmax(scores)) + 1, model

    def scores(self, part: Part, rate: float) -> tuple[float, float]:
        """AUROC and average precision, mean over the draws of what is hidden."""
        found = []
        for key in range(DRAWS if rate else 1):
            for number, p_B2 in enumerate(self.model.staged_predict_proba(part.hidden(rate, key)), start=1):
                if number == self.number:
                    found.append((roc_auc_score(part.y_B, p_B2[:, 1]), average_precision_score(part.y_B, p_B2[:, 1])))
                    break
        auroc, auprc = np.mean(found, axis=0)
        return float(auroc), float(auprc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="data/physionet2012")
    parser.add_argument("--split", default="split1")
    parser.add_argument("--task", default="in_hospital_death")
    chosen = parser.parse_args()
    config = DataConfig(url=chosen.data, split=chosen.split)
    manifest = open_manifest(chosen.data)
    parts = {name: Part(manifest, config, name, chosen.task) for name in ("train", "val", "test")}
    grown = {"everything": Trees(parts, 0.0, 1), "half of them": Trees(parts, HALF, COPIES)}
    result, rows = {}, []
    for name, trees in grown.items():
        whole, half = trees.scores(parts["test"], 0.0), trees.scores(parts["test"], HALF)
        result[name] = {"trees": trees.number, "auroc": whole[0], "auprc": whole[1], "auroc_half": half[0]}
        rows.append((name, trees.number, *whole, half[0], whole[0] - half[0]))
    table(("trained with", "trees", "AUROC", "AUPRC", "AUROC, half missing", "lost"), rows)
    print(json.dumps({"benchmark": "trees", "split": chosen.split, "task": chosen.task, **result}))


if __name__ == "__main__":
    main()
