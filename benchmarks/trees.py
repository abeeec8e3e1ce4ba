"""What missing modalities cost boosted trees: what of a loss is simply gone, and what a model could still know.

    python -m benchmarks.trees [DATA] [--split split1] [--task in_hospital_death]

DATA is a packed data set with a task of yes and no (default: data/physionet2012). The table is that of
`python -m launch baseline`; what is absent is NaN, which these trees handle by themselves. Two forests are grown: on
everything, and on copies of the training part in which half of the modalities are hidden. How many trees is chosen on
the validation part.

The test part is scored as it is and with half of the present modalities hidden, the very ones that
`evaluate --missing-curve` hides. What the second kind loses is an estimate of what is simply gone: no model can know
what it is not told. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.common import table
from data_shards import DataConfig, open_manifest
from trainer.baseline.features.table import Table
from trainer.baseline.learners.problem import Problem
from trainer.baseline.learners.trees import SETTINGS, grow
from trainer.baseline.run import Tables, read_tables
from trainer.models.layers.missing import keyed_uniform

HALF, COPIES, DRAWS = 0.5, 5, 3


def hidden(tables: Tables, part: Table, rate: float, key: int) -> np.ndarray:
    """(B, X) a part without some modalities of each record, as `drop_modalities` chooses them."""
    draw_BM = keyed_uniform(key, part.index_B, part.present_BM.shape[1]).numpy()
    draw_BM[~part.present_BM] = -1.0
    keep_BM = part.present_BM & ((draw_BM >= rate) | (draw_BM == draw_BM.max(axis=1, keepdims=True)))
    keep_BX = keep_BM[:, tables.layout.owner_X[tables.column_X]]
    nothing_X = np.where(tables.column_X >= tables.layout.first_M[-1], 0.0, np.nan)  # whether it is there: no
    return np.where(keep_BX, part.x_BX, nothing_X).astype(np.float32)


def problem(tables: Tables, part: str, task: str, rate: float, keys: range) -> Problem:
    """A part once for each key."""
    own = tables.parts[part]
    x_BX = np.concatenate([hidden(tables, own, rate, key) for key in keys])
    return Problem("binary", x_BX, np.tile(own.targets[task][:, 0].numpy().astype(np.float64), len(keys)))


def scores(given: Problem, forest_scores: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision."""
    return float(roc_auc_score(given.y_B, forest_scores)), float(average_precision_score(given.y_B, forest_scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="data/physionet2012")
    parser.add_argument("--split", default="split1")
    parser.add_argument("--task", default="in_hospital_death")
    chosen = parser.parse_args()
    tables = read_tables(open_manifest(chosen.data), DataConfig(url=chosen.data, split=chosen.split))
    result, rows = {}, []
    for name, rate, copies in (("everything", 0.0, 1), ("half of them", HALF, COPIES)):
        # Keys of the training copies lie apart from those of the test draws, which are 0, 1, 2.
        train = problem(tables, "train", chosen.task, rate, range(1000, 1000 + copies))
        val = problem(tables, "val", chosen.task, rate, range(500, 501))
        grown = grow(train, val, replace(SETTINGS[0], least=SETTINGS[0].least * copies), seed=0)
        tested = [problem(tables, "test", chosen.task, 0.0, range(1))]
        tested += [problem(tables, "test", chosen.task, HALF, range(key, key + 1)) for key in range(DRAWS)]
        whole, *half = [scores(given, grown.scorer.scores(given.x_BX)[:, 0]) for given in tested]
        lost = float(np.mean([auroc for auroc, _ in half]))
        trees = grown.chosen["iterations"]
        result[name] = {"trees": trees, "auroc": whole[0], "auprc": whole[1], "auroc_half": lost}
        rows.append((name, trees, *whole, lost, whole[0] - lost))
    table(("trained with", "trees", "AUROC", "AUPRC", "AUROC, half missing", "lost"), rows)
    print(json.dumps({"benchmark": "trees", "split": chosen.split, "task": chosen.task, **result}))


if __name__ == "__main__":
    main()
