"""What an offline run of wandb holds, read back from its own transaction log."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def offline_runs(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def read_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What wandb wrote, once its service has written the end of the run, which it does in its own time."""
    deadline = time.monotonic() + 20
    while True:
        records = parse_records(folder)
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def parse_records(folder: Path, *, damaged: bool = False) -> list[wandb_internal_pb2.Record]:
    """The records in the file: protobuf messages in LevelDB's log format, blocks of 32 KiB behind 7 bytes of header.

    Of a damaged file, those before the damage.
    """
    [path] = folder.glob("*.wandb")
    content, records, pending, position = path.read_bytes(), [], b"", 7
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0:
            break
        pending += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            try:
                record.ParseFromString(pending)
            except DecodeError:
                if damaged:
                    break
                raise
            records.append(record)
            pending = b""
    return records


def read_history(records: list[wandb_internal_pb2.Record]) -> dict[int, dict[str, Any]]:
    """Step -> what was logged there."""
    history: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.HasField("history"):
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.setdefault(int(items["_step"]), {}).update(items)
    return history


def read_values(records: list[wandb_internal_pb2.Record]) -> dict[str, Any]:
    """Key -> the last value that was logged; a picture or table is a dictionary."""
    values: dict[str, Any] = {}
    for item in (item for record in records if record.HasField("history") for item in record.history.item):
        key, *inner = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        values[key] = (values.get(key) or {}) | {inner[0]: value} if inner else value
    return values


def read_items(records: list[wandb_internal_pb2.Record], kind: str) -> dict[str, Any]:
    """The last value of every key of the config or the summary."""
    items: dict[str, Any] = {}
    for record in records:
        if record.HasField("run") and kind == "config":
            items |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField(kind):
            updates = getattr(record, kind).update
            items |= {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in updates}
    return items
