"""The sink for TensorBoard: event files in the run's folder. The only place that imports tensorboard.

    tensorboard --logdir runs

Metrics are scalars (of 32 bits, as TensorBoard keeps them), figures images, everything else text; a run that goes on
says from which step on earlier points are void, and TensorBoard leaves those out.
"""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path
from typing import Any

from data_shards.lease.lease import Guard
from trainer.tracking.elsewhere.guarded import GuardedSink, folder_for, name_of
from trainer.tracking.operations import File, Operation

logger = logging.getLogger(__name__)

LONGEST_TEXT = 1 << 16  # bytes of a document; longer ones are counted, and lie in the run's folder anyway
TEXTS = {".json", ".yaml", ".txt", ".csv"}
PNG = b"\x89PNG\r\n\x1a\n"


class TensorBoardSink(GuardedSink):
    """Raises ValueError: tensorboard is not installed, or the run's folder is not on this machine."""

    def __init__(self, run_dir: str, guard: Guard) -> None:
        super().__init__(guard)
        folder = folder_for(run_dir, "tensorboard", "tracking.tensorboard", "tensorboard")
        folder.mkdir(parents=True, exist_ok=True)
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        self._left = 0

    def rewind(self, step: int) -> None:
        """Points after `step` that an earlier start has written are void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def flush(self, timeout_s: float) -> None:
        self._writer.flush()

    def _write(self, operation: Operation) -> None:
        match operation["op"]:
            case "metrics":
                values = operation["values"].items()
                self._add(
                    operation, [_value(tag=name, simple_value=value) for name, value in values], operation["step"]
                )
            case "params":
                rows = "".join(f"| {name} | `{value}` |\n" for name, value in operation["values"].items())
                self._add(operation, [_text("params", f"| key | value |\n|---|---|\n{rows}")])
            case "tags" | "dataset" | "model" | "status":
                told = {name: value for name, value in operation.items() if name not in ("op", "time")}
                self._add(operation, [_text(operation["op"], json.dumps(told, indent=1, default=str))])

    def _write_file(self, file: File) -> None:
        data = Path(file["path"]).read_bytes()
        if data.startswith(PNG):
            from tensorboard.compat.proto.summary_pb2 import Summary

            width, height = struct.unpack(">II", data[16:24])
            image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=data)
            self._add(file, [_value(tag=name_of(file), image=image)])
        elif Path(file["path"]).suffix in TEXTS and len(data) <= LONGEST_TEXT:
            self._add(file, [_text(name_of(file), data.decode("utf-8", "replace"))])
        else:
            self._left += 1

    def _close(self) -> None:
        if self._left:
            logger.info("%d files that TensorBoard cannot show lie in the run's folder only", self._left)
        self._writer.close()

    def _add(self, operation: Operation, values: list[Any], step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(Event(wall_time=operation["time"] / 1000, step=step, summary=Summary(value=values)))


def _value(**fields: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary.Value(**fields)


def _text(tag: str, text: str) -> Any:
    """Of the text plugin, which reads Markdown."""
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return _value(tag=tag, metadata=about, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))
