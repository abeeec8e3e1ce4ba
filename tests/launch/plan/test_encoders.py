"""The plan of a run with pretrained encoders against a real build of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_shards import open_manifest, pack
from data_shards.sources.base import SourceOptions
from launch.plan.cost import CostModel, Layout
from tests.ranks import run_ranks
from tests.trainer.jobs.test_pretrained_run import Ward
from tests.trainer.pretrained import save_encoder
from tests.trainer.tiny import config
from tests.trainer.training.test_loop import Rank
from trainer.config.run_config import RunConfig
from trainer.session import build_session
from trainer.worker.devices import find_device


def _occupied(rank: int, world: int, trees: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Bytes of each run's build on a rank; parameters of the whole model, experts once."""
    found = []
    for tree in trees:
        run = RunConfig.of(tree)
        data = open_manifest(run.data.url)
        session = build_session(run, Rank(rank, world), data, data.schema, data.statistics["default"])
        zero: Any = session.engine._zero
        trained = [(name, p) for name, p in session.engine.module.named_parameters() if p.requires_grad]
        frozen = [p for p in session.engine.module.parameters() if not p.requires_grad]
        masters = zero.single_partition_of_fp32_groups
        found.append(
            {
                "parameters": sum(p.numel() * (world if ".experts." in name else 1) for name, p in trained)
                + sum(p.numel() for p in frozen),
                "trained_parameters": sum(flat.nbytes for flat in zero.bit16_groups_flat),
                "frozen_parameters": sum(p.nbytes for p in frozen),
                "master_weights": sum(flat.nbytes for flat in masters),
                "moments": 2 * sum(flat.nbytes for flat in masters),
            }
        )
    return found


def test_parameters_and_bytes_equal_those_of_a_real_build(tmp_path: Path) -> None:
    """In bf16; batch norms of a frozen encoder stay float32, and so does what nothing reads of a trained one."""
    pack(Ward(SourceOptions()), str(tmp_path / "data"), chunk_records=4)
    for family in ("bert", "vit", "resnet", "wav2vec2"):
        save_encoder(tmp_path / family, family)
    runs = [
        config(str(tmp_path / "data"), tmp_path, model__encoders=own, parallel__precision="bf16",
               parallel__workers=2, parallel__expert_parallel=2)
        for own in (
            {
                "notes": {"source": str(tmp_path / "bert"), "dtype": "bfloat16"},
                "cxr": {"source": str(tmp_path / "resnet"), "dtype": "bfloat16"},
                "sound": {"source": str(tmp_path / "wav2vec2")},
            },
            {
                "notes": {"source": str(tmp_path / "bert"), "train": "lora", "rank": 2, "lr": 0.01},
                "cxr": {"source": str(tmp_path / "vit"), "train": "lora", "dtype": "bfloat16"},
                "sound": {"source": str(tmp_path / "wav2vec2"), "train": "all", "lr": 0.001},
            },
        )
    ]  # fmt: skip
    ranks = run_ranks(_occupied, 2, [run.model_dump(mode="json") for run in runs])
    data = open_manifest(str(tmp_path / "data"))
    for number, run in enumerate(runs):
        model = CostModel(run, data.schema, data.statistics["default"], find_device("h100"))
        planned = model.cost(Layout(2, 2, run.parallel.zero_stage, 1, False)).bytes
        planned["trained_parameters"] = planned["replicated_parameters"] + planned["expert_parameters"]
        planned["parameters"] = model.parameters()["total"]
        for rank in ranks:
            assert {kind: planned[kind] for kind in rank[number]} == rank[number]
