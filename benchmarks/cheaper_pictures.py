"""What cheaper residual blocks for pictures cost beside full convolutions: the encoder alone, on real pictures' sizes.

    python -m benchmarks.cheaper_pictures --work DIR --easy-vqa DIR [--sets digits easy_vqa]

Sets       digits and easy_vqa (shapes) of `benchmarks.encoders`.
Blocks     full: norm, 3 x 3 convolution to twice the width, GELU, linear; as `model.image.network: convolutions` has.
           shifted: of the convolution only a linear layer is left, and before it each ninth of the channels comes from
           another of the nine places. depthwise: before that linear layer each channel is a weighted sum of its own
           nine places, with weights that are learned.
Compared   CPU time of a forward and backward pass of the encoder alone, 64 pictures, taking turns, one thread.
Decided    a block is worth training, and then perhaps an option, if it takes at most half of the full one's CPU time
           on both sets. None did, so how well they learn was not asked, and nothing here trains them.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import last_line, table, take_turns
from benchmarks.encoders import (
    CONVOLUTIONS,
    MODEL,
    SETS,
    Packed,
    Set,
    digits,
    shapes,
)
from data_shards import ImageGroup, open_manifest, pack
from data_shards.records.statistics import SplitStatistics
from parallel import LocalDispatcher
from trainer.config.sections import ModelConfig
from trainer.models.convolutions import stages
from trainer.models.convolutions.pictures import PictureLevel
from trainer.models.convolutions.sizes import EXPANSION, SIDE
from trainer.models.convolutions.stages import ResidualBlock
from trainer.models.encoders.build import build_encoder
from trainer.models.encoders.layout import group_layout_of
from trainer.models.layers.grouped_linear import GroupedLinear

MOST = 0.5  # of the CPU time of the full block


class Shifted(ResidualBlock):
    """Each ninth of the channels from another place; then a linear layer to the hidden width."""

    def __init__(self, blocks: int, width: int, taps: int) -> None:
        nn.Module.__init__(self)
        self.convolution = GroupedLinear(blocks, width, EXPANSION * width)
        self.output = GroupedLinear(blocks, EXPANSION * width, width)
        # Nearly equal stretches; the middle one is where a channel stays.
        self.ends = [width * (tap + 1) // taps for tap in range(taps)]

    def forward(self, x_NW: Tensor, level: PictureLevel) -> Tensor:
        look_NW = self.look(functional.layer_norm(x_NW, x_NW.shape[1:]), level)
        return x_NW + self.output(functional.gelu(self.convolution(look_NW, level.blocks)), level.blocks)

    def look(self, x_NW: Tensor, level: PictureLevel) -> Tensor:
        x_PhwW = x_NW.view(-1, level.height, level.width, x_NW.shape[1])
        wide, parts, start = functional.pad(x_PhwW, (0, 0, 1, 1, 1, 1)), [], 0
        for tap, end in enumerate(self.ends):
            down, right = divmod(tap, SIDE)
            parts.append(wide[:, down : down + level.height, right : right + level.width, start:end])
            start = end
        return torch.cat(parts, dim=-1).view_as(x_NW)


class Depthwise(Shifted):
    """Each channel as a learned sum of its own nine places; one set of weights, as there is one modality here."""

    def __init__(self, blocks: int, width: int, taps: int) -> None:
        super().__init__(blocks, width, taps)
        self.weight_W1KK = nn.Parameter(torch.randn(width, 1, SIDE, SIDE) / SIDE)

    def look(self, x_NW: Tensor, level: PictureLevel) -> Tensor:
        x_PWhw = x_NW.view(-1, level.height, level.width, x_NW.shape[1]).permute(0, 3, 1, 2)
        found = functional.conv2d(x_PWhw, self.weight_W1KK, padding=SIDE // 2, groups=x_NW.shape[1])
        return found.permute(0, 2, 3, 1).reshape(x_NW.shape)


BLOCKS: dict[str, type[ResidualBlock]] = {"full": ResidualBlock, "shifted": Shifted, "depthwise": Depthwise}


def using(block: str):  # type: ignore[no-untyped-def]
    """A context in which stages are built of these blocks."""
    return mock.patch.object(stages, "ResidualBlock", BLOCKS[block])


def cpu_times(own: Set, work: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of forward and backward of each encoder alone, 64 pictures."""
    manifest = open_manifest(str(work / "data" / own.name))
    (spec,) = manifest.schema.modalities
    statistics: SplitStatistics = manifest.statistics["fold0"]
    config = ModelConfig.model_validate({**MODEL, "image": own.encoders["full"]})
    rows, zeros = torch.arange(64), torch.zeros(64, dtype=torch.int64)
    group = ImageGroup(zeros, rows, torch.rand(64, *spec.shape).mul(16).to(getattr(torch, spec.dtype)))

    def step(block: str) -> Callable[[], None]:
        with using(block):
            encoder = build_encoder([0], manifest.schema, statistics, config, LocalDispatcher(), 0)
        layout = group_layout_of(encoder, group, zeros, 1)
        return lambda: encoder(group, layout).square().sum().backward()

    return {name: 1000 * s for name, s in take_turns({name: step(name) for name in BLOCKS}, rounds).items()}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data, which are kept")
    parser.add_argument("--easy-vqa", type=Path, help="folder of easy-VQA")
    parser.add_argument("--sets", nargs="+", choices=("digits", "easy_vqa"), default=["digits", "easy_vqa"])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each encoder, of which the median counts")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    work, figures = chosen.work.absolute(), dict[str, float]()
    cheap = set(BLOCKS) - {"full"}
    for name in chosen.sets:
        own = SETS[name]
        setting = {**CONVOLUTIONS, "patch": own.encoders["convolutions"]["patch"]}
        own = Set(own.name, own.metric, own.folds, own.epochs, own.batch, own.kind, dict.fromkeys(BLOCKS, setting))
        data = work / "data" / name
        if not (data / "manifest.json").is_file():
            pack(Packed(name, digits() if name == "digits" else shapes(chosen.easy_vqa)), str(data), chunk_records=64)
        milliseconds = cpu_times(own, work, chosen.rounds)
        ratios = {block: ms / milliseconds["full"] for block, ms in milliseconds.items()}
        table((f"{name}, block", "CPU ms", "/ full"), [(block, milliseconds[block], ratios[block]) for block in BLOCKS])
        figures |= {f"{name}, CPU of {block} / full": ratio for block, ratio in ratios.items()}
        cheap &= {block for block, ratio in ratios.items() if ratio <= MOST}
    print("cheap enough on all sets:", ", ".join(sorted(cheap)) or "none", flush=True)
    last_line("cheaper_pictures", figures)


if __name__ == "__main__":
    main()
