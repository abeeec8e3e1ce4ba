"""Texts: learned positions are as many as the training part has, and what lies behind shares the last one."""

from __future__ import annotations

import torch
from torch import Tensor

from data_shards import DatasetSchema, ModalitySpec, TaskSpec, TextGroup
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from parallel import LocalDispatcher
from trainer.config.sections import ModelConfig
from trainer.models.encoders.build import build_encoder, sized
from trainer.models.encoders.layout import group_layout_of
from trainer.models.encoders.text import TextEncoder

DIM, STRIDE = 8, 4


def schema_of(*declared: int | None) -> DatasetSchema:
    specs = [ModalitySpec(f"t{m}", "text", max_length=longest) for m, longest in enumerate(declared)]
    vector = ModalitySpec("v", "vector", shape=(3,))
    return DatasetSchema("d", (*specs, vector), (TaskSpec("y", "binary"),))


def statistics_of(*longest: float) -> SplitStatistics:
    """Texts of the training part that are at most so many bytes long."""
    tables = {f"t{m}": ModalityStatistics(1, (1,), (1.0,), (0.0,), (0.0,), (most,)) for m, most in enumerate(longest)}
    return SplitStatistics(1, tables | {"v": ModalityStatistics(1, (1,) * 3, *[(0.0,) * 3] * 4)})


def config_of(**text: int) -> ModelConfig:
    return ModelConfig.model_validate({"dim": DIM, "heads": 2, "text": {"stride": STRIDE, "heads": 2, **text}})


def encoder_of(schema: DatasetSchema, config: ModelConfig) -> TextEncoder:
    torch.manual_seed(0)
    encoder = build_encoder([0], schema, statistics_of(1.0), config, LocalDispatcher(), 0)
    assert isinstance(encoder, TextEncoder)
    return encoder


def encode(encoder: TextEncoder, *texts: bytes) -> Tensor:
    offsets = torch.tensor([0, *map(len, texts)]).cumsum(0)
    zeros_P = torch.zeros(len(texts), dtype=torch.int64)
    group = TextGroup(zeros_P, zeros_P, offsets, torch.tensor(list(b"".join(texts)), dtype=torch.uint8))
    return encoder(group, group_layout_of(encoder, group, zeros_P, 1))  # type: ignore[no-any-return]


def test_the_table_has_as_many_positions_as_the_longest_text_of_training() -> None:
    schema = schema_of(None, 10_000_000)
    assert sized(config_of(), schema, statistics_of(17.0, 40.0)).text.positions == 10
    assert sized(config_of(), schema, statistics_of(41.0, 3.0)).text.positions == 11
    assert sized(config_of(), schema, statistics_of(0.0, 0.0)).text.positions == 1
    assert sized(config_of(positions=5), schema, statistics_of(17.0, 40.0)).text.positions == 5
    encoder = encoder_of(schema, sized(config_of(), schema, statistics_of(17.0, 40.0)))
    assert encoder.position.weight.shape == (10, DIM)
    no_text = DatasetSchema("d", schema.modalities[2:], schema.tasks)
    assert sized(config_of(), no_text, statistics_of()).text.positions is None


def test_a_recipe_without_a_number_has_the_declared_positions_as_before() -> None:
    assert encoder_of(schema_of(None), config_of()).position.weight.shape == (16_384, DIM)
    assert encoder_of(schema_of(17), config_of()).position.weight.shape == (5, DIM)


def test_a_longer_text_shares_the_last_position() -> None:
    encoder = encoder_of(schema_of(None), config_of(positions=3))
    longer = encoder_of(schema_of(None), config_of(positions=6))
    longer.load_state_dict(
        {name: value for name, value in encoder.state_dict().items() if "position" not in name}, strict=False
    )
    table_RD = encoder.position.weight.detach()
    longer.position.weight.data.copy_(torch.cat([table_RD, table_RD[-1:].expand(3, DIM)]))
    short, long = b"0123456789ab", b"0123456789abcdefghijklm"
    torch.testing.assert_close(encode(encoder, short, long, b""), encode(longer, short, long, b""))
    # Its further bytes are read all the same.
    assert (encode(encoder, long)[0] - encode(encoder, long[:-1] + b"x")[0]).abs().max() > 1e-3
