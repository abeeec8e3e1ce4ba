"""What missing modalities, and time that nobody watched, cost boosted trees: what of a loss is simply gone.

    python -m benchmarks.trees [DATA] [--split split1] [--task in_hospital_death]

DATA is a packed data set with a task of yes and no (default: data/physionet2012). The table is that of
`python -m launch baseline`; what is absent is NaN, which these trees handle by themselves. Three forests are grown: on
everything, on copies of the training part in which half of the modalities are hidden, and on copies in which half of
the observation window is, a stretch anywhere in it. How many trees is chosen on the validation part, hidden alike.

The test part is scored as it is, with half of the present modalities hidden, and with half of the window hidden: the
very ones that `evaluate --missing-curve` hides (rows `missing` and `window` of rate .5). What a forest loses that grew
on the like is an estimate of what is simply gone: no model can know what it is not told. The last line is one JSON
object.

Ours beside it, by a plan written before a test part was scored: of PhysioNet 2012 (split1, recipe
icu_physionet2012) and of sepsis2019b (`preset: good`), a run with model.modality_dropout=0.5, judged where half of the
modalities are hidden, and one with model.time_dropout=0.5, judged where half of the window is; seed 0, the checkpoint
that validation keeps, `evaluate --missing-curve`. Each against the forest that grew on the like.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.common import table
from data_shards import Batch, DataConfig, DatasetSchema, open_manifest
from trainer.baseline.features.layout import Layout
from trainer.baseline.features.table import frequent_codes, read_table, varying
from trainer.baseline.learners.problem import Problem
from trainer.baseline.learners.trees import SETTINGS, grow
from trainer.models.layers.hide_times import hide_times, random_window
from trainer.models.layers.missing import drop_modalities

HALF, COPIES, DRAWS = 0.5, 5, 3
Hide = Callable[[Batch], Batch]


def ways(schema: DatasetSchema) -> dict[str, Callable[[int], Hide]]:
    """What is hidden -> of a key, what hides it."""
    return {
        "nothing": lambda key: lambda batch: batch,
        "modalities": lambda key: lambda batch: drop_modalities(batch, HALF, key),
        "time": lambda key: lambda batch: hide_times(batch, schema, random_window(batch.index_B, HALF, key)),
    }


def scores(given: Problem, forest_scores: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision."""
    return float(roc_auc_score(given.y_B, forest_scores)), float(average_precision_score(given.y_B, forest_scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="data/physionet2012")
    parser.add_argument("--split", default="split1")
    parser.add_argument("--task", default="in_hospital_death")
    chosen = parser.parse_args()
    manifest, config = open_manifest(chosen.data), DataConfig(url=chosen.data, split=chosen.split)
    layout, hiding = Layout(manifest.schema, frequent_codes(manifest, config)), ways(manifest.schema)
    column_X = varying(read_table(manifest, config, "train", layout).x_BX)

    def problem(part: str, what: str, keys: range) -> Problem:
        """A part once for each key."""
        tables = [read_table(manifest, config, part, layout, hide=hiding[what](key)) for key in keys]
        y_B = np.concatenate([own.targets[chosen.task][:, 0].numpy().astype(np.float64) for own in tables])
        return Problem("binary", np.concatenate([own.x_BX[:, column_X] for own in tables]), y_B)

    tested = {
        what: [problem("test", what, range(key, key + 1)) for key in range(1 if what == "nothing" else DRAWS)]
        for what in hiding
    }
    result, rows = {}, []
    for what in hiding:
        # Keys of the training copies lie apart from those of the test draws, which are 0, 1, 2.
        copies = 1 if what == "nothing" else COPIES
        train, val = problem("train", what, range(1000, 1000 + copies)), problem("val", what, range(500, 501))
        given = replace(SETTINGS[0], least=SETTINGS[0].least * copies)
        grown = grow(train, val, given, seed=0)
        row: list[object] = [what, grown.chosen["iterations"]]
        found: dict[str, float] = {"trees": grown.chosen["iterations"]}
        for hidden, problems in tested.items():
            both = [scores(one, grown.scorer.scores(one.x_BX)[:, 0]) for one in problems]
            auroc, auprc = (float(np.mean(column)) for column in zip(*both, strict=True))
            row += [auroc, auprc]
            found |= {f"{hidden} auroc": auroc, f"{hidden} auprc": auprc}
        result[what] = found
        rows.append(row)
    hidden = [f"{what}: {metric}" for what in hiding for metric in ("AUROC", "AUPRC")]
    table(("hidden in training", "trees", *hidden), rows)
    print(json.dumps({"benchmark": "trees", "split": chosen.split, "task": chosen.task, **result}))


if __name__ == "__main__":
    main()
