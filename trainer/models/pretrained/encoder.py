"""A pretrained encoder of one modality: objects of a batch -> a few tokens each.

A frozen one is in evaluation mode always, has no gradient and keeps the precision that the recipe gives it, whatever
the rest of the model is computed in. What is trained follows the model. Batch norms never move.

Objects of about the same length go through the model together, at most `POSITIONS` positions at a time: one long text
makes no other pay. What an object becomes does not depend on its neighbours, up to rounding.

Shapes: P objects, N tokens that are read of one, D width of the encoder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.moe.rows.permute import inverse_permutation, permute_rows
from trainer.config.encoders import PretrainedConfig
from trainer.models.layers.staging import to_device
from trainer.models.pretrained.exact import BatchNorm, make_exact
from trainer.models.pretrained.features import Features, KeptRows
from trainer.models.pretrained.loading.backbone import digest_of
from trainer.models.pretrained.loading.families import FAMILIES, settle
from trainer.models.pretrained.loading.library import UNREAD
from trainer.models.pretrained.loading.lora import add_lora_to
from trainer.models.pretrained.loading.sources import Asked, Loaded

POSITIONS = 1 << 14

logger = logging.getLogger("fleximoe")


@dataclass(frozen=True)
class Chunk:
    """Objects that go through the model together: its inputs, and the weights by which hidden states are read.

    Attributes:
        rows: objects. read_PNL: None where the family's own tokens are read. first: place of the first object in the
            group, where the rest follow it and inputs are read there.
    """

    rows: int
    inputs: dict[str, Tensor]
    read_PNL: Tensor | None
    first: int = 0


@dataclass(frozen=True)
class Looked:
    """What an encoder must know of a group, worked out on the CPU.

    Attributes:
        rows: objects. chunks: those that are encoded. order_P, inverse_P: how these come into the group's order; None:
            they are. kept: what the rest have been found to be before.
    """

    rows: int
    chunks: tuple[Chunk, ...]
    order_P: Tensor | None
    inverse_P: Tensor | None
    kept: KeptRows | None

    def to(self, device: torch.device | str) -> Looked:
        """The same on another device."""
        return to_device(self, torch.device(device))


class PretrainedEncoder(nn.Module):
    """(group, looked) -> (P, N, D) float32.

    Attributes:
        modality, kind: what it reads. width: D. tokens: N. digest: SHA-256 over configuration, weights, tokenizer and
            preprocessing; None without weights. cut: objects so far that were longer than what is read of one.

    Args:
        asked: what it is called. loaded: the model. config: how it is used.
    """

    def __init__(self, asked: Asked, loaded: Loaded, config: PretrainedConfig) -> None:
        super().__init__()
        self.label, self.kind, self.family = asked.label, asked.kind, FAMILIES[loaded.family]
        self.modality = asked.key.removeprefix("model.encoders.")
        self.name, self.config, self.tokens, self.run_id = loaded.family, config, config.count, loaded.run_id
        self.cut, self.seen = 0, 0
        self.model: Any = loaded.model
        settle(self.model)
        self.width = width_of(self.model)
        self.digest = None if loaded.shapes_only else self._digest(loaded)
        make_exact(self.model)
        self._prepare()
        if config.train != "all":
            self.model.requires_grad_(False)
            _in_precision(self.model, getattr(torch, config.dtype))
        if config.train == "lora":
            add_lora_to(self.model, config.rank, self.family.targets, self.label)
        self._leave_buffers_out()
        for parameter in self.model.parameters():
            parameter.keeps_precision = not parameter.requires_grad  # type: ignore[attr-defined]
        self.features = Features(self.tokens * self.width, config.cache_mib) if config.cache else None
        self.train()

    @property
    def reads(self) -> str:
        """How much of an object is read."""
        return "all"

    @property
    def counts(self) -> dict[str, int]:
        """Objects that were read so far, those of them that were cut, and those that had been kept and were not."""
        return {"read": self.seen, "cut": self.cut, "kept": self.features.hits if self.features is not None else 0}

    @property
    def dtype(self) -> torch.dtype:
        """What inputs must be: the type of the weights, but for those that nothing reads, which nothing moves."""
        return next(
            value.dtype for name, value in self.model.named_parameters() if not any(part in name for part in UNREAD)
        )

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return self.config.train == "none"

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Only what is trained as a whole has dropout, and batch norms keep the statistics that they came with."""
        super().train(mode)
        self.model.train(mode and self.config.train == "all")
        for module in self.model.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What is frozen follows to another device, and keeps its precision; so do buffers, as frequencies need it."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.requires_grad or tensor.is_meta:
                return fn(tensor)
            return tensor.to(fn(tensor.new_empty(0)).device)

        return super()._apply(move, recurse)

    def look(self, group: Any) -> Looked:
        """What `forward` needs of a group, from its tensors on the CPU. Counts what is cut."""
        objects = self._objects(group)
        places = list(range(len(objects)))
        kept = None
        if self.features is not None:
            kept = self.features.look([self._content(one) for one in objects])
            places = kept.new
        before = self.cut
        made = self._read([objects[place] for place in places])
        self.seen += len(made)
        if self.cut and not before:
            # Once; how many they were in all is said at the end of the run.
            logger.warning(
                "%s: %d of the first %d objects are longer than what it reads of one (%s); the rest of each is cut off",
                self.label,
                self.cut,
                self.seen,
                self.reads,
            )
        order = sorted(range(len(made)), key=lambda row: self._length(made[row]))
        chunks = tuple(self._chunk([made[row] for row in rows]) for rows in self._together(made, order))
        order_P = inverse_P = None
        if order != sorted(order):
            # Chunk by chunk they come in `order`; the group has them as they were.
            inverse_P = torch.tensor(order, dtype=torch.int64, device="cpu")
            order_P = inverse_permutation(inverse_P)
        return Looked(len(objects), chunks, order_P, inverse_P, kept)

    def forward(self, group: Any, looked: Looked) -> Tensor:
        """(P, N, D) float32."""
        with torch.no_grad() if self.frozen else nullcontext():
            device = next(self.model.parameters()).device
            parts = [torch.zeros(0, self.tokens, self.width, device=device)]
            parts += [self._encode(group, chunk) for chunk in looked.chunks]
            value_PND = torch.cat(parts) if len(parts) != 2 else parts[1]
            if looked.order_P is not None and looked.inverse_P is not None:
                flat_PX = permute_rows(value_PND.flatten(1), looked.order_P, looked.inverse_P)
                value_PND = flat_PX.view_as(value_PND)
            if self.features is not None and looked.kept is not None:
                value_PX = self.features.complete(value_PND.flatten(1), looked.kept)
                value_PND = value_PX.view(looked.rows, self.tokens, self.width)
        return value_PND

    def describe(self) -> dict[str, Any]:
        """Where it comes from, and what decides about its features."""
        keys = ("source", "tokens", "dtype", "max_tokens", "max_seconds")
        settings = self.config.model_dump(mode="json")
        return {"digest": self.digest, "family": self.name, **{key: settings[key] for key in keys}}

    # --- what kinds differ in -----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Change the model where its results would depend on neighbours."""

    @abstractmethod
    def _objects(self, group: Any) -> Sequence[Any]:
        """The group's objects on the CPU, one by one."""

    @abstractmethod
    def _content(self, one: Any) -> bytes:
        """What tells an object from another."""

    @abstractmethod
    def _read(self, objects: list[Any]) -> list[Any]:
        """Objects as the model reads them, each alone."""

    @abstractmethod
    def _length(self, made: Any) -> int:
        """Positions that it takes."""

    @abstractmethod
    def _chunk(self, made: list[Any]) -> Chunk:
        """Objects put together."""

    @abstractmethod
    def _hidden(self, group: Any, chunk: Chunk) -> Tensor:
        """(P, L, D) hidden states."""

    @abstractmethod
    def example(self, positions: int) -> dict[str, Tensor]:
        """Inputs of one object of so many positions, without memory, for what is to be counted."""

    @property
    def lengths(self) -> tuple[float, float, int]:
        """Bytes or samples of a position, positions beside, and the most that there are."""
        return 1.0, 1.0, 1

    def _finished(self, token_PND: Tensor) -> Tensor:
        """What the family does behind its pooling."""
        return token_PND

    # --- shared -------------------------------------------------------------------------------------------------------

    def _encode(self, group: Any, chunk: Chunk) -> Tensor:
        hidden_PLD = self._hidden(group, chunk)
        if chunk.read_PNL is not None:
            token_PND = chunk.read_PNL @ hidden_PLD.float()
        elif self.family.pooled == "first_two":
            token_PND = (hidden_PLD[:, :1].float() + hidden_PLD[:, 1:2].float()) / 2
        else:
            token_PND = hidden_PLD[:, :1].float()
        return self._finished(token_PND)

    @property
    def _own_token(self) -> bool:
        """Whether tokens that the family keeps for the whole are read."""
        return self.config.tokens == "pooled" and self.family.pooled != "mean"

    def _together(self, made: list[Any], order: list[int]) -> list[list[int]]:
        """Rows of each chunk: neighbours in `order`. Alone where results are kept, which no neighbour may change."""
        if self.features is not None:
            return [[row] for row in order]
        chunks: list[list[int]] = []
        for row in order:
            # The last one is the longest, and all of a chunk are padded to it.
            if chunks and (len(chunks[-1]) + 1) * self._length(made[row]) <= POSITIONS:
                chunks[-1].append(row)
            else:
                chunks.append([row])
        return chunks

    def _leave_buffers_out(self) -> None:
        """Buffers come with the source; a checkpoint leaves them out."""
        for module in self.modules():
            module._non_persistent_buffers_set.update(module._buffers)

    def _digest(self, loaded: Loaded) -> str:
        settings = {
            key: value
            for key, value in self.model.config.to_dict().items()
            if key not in ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        weights = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        digest.update(digest_of(weights).encode())
        if loaded.tokenizer is not None:
            digest.update(loaded.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(json.dumps([loaded.facts, loaded.mean, loaded.std], sort_keys=True).encode())
        return digest.hexdigest()


def _in_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters, but for those of batch norms, which go with statistics."""
    for module in model.modules():
        if not isinstance(module, BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def width_of(model: Any) -> int:
    """D of a model's hidden states."""
    config = model.config
    if getattr(config, "hidden_sizes", None):
        return int(config.hidden_sizes[-1])
    if hasattr(model, "timm_model"):
        return int(model.timm_model.num_features)
    return int(getattr(config, "hidden_size", None) or config.dim)
