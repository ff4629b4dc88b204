"""Parquet tables with a declared schema, their provenance and a content digest."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.provenance import Provenance
from paramscope.errors import ArtifactError

KEY = b"paramscope"

pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps some 30 MB more


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema, made_by: Provenance) -> None:
    """Write the schema's columns of `frame` to `path`, whole or not at all.

    Raises:
        ArtifactError: a column is missing, or holds what its declared type can't.
    """
    missing = [name for name in schema.names if name not in frame.columns]
    if missing:
        raise ArtifactError(f"{path}: the table lacks the column(s) {', '.join(missing)}")
    try:
        table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    except (pa.ArrowException, ValueError) as error:  # a null where none may be is a ValueError
        raise ArtifactError(f"{path}: a column does not fit its schema: {error}") from error
    table = table.replace_schema_metadata(None)
    described = made_by.to_json(_content_digest(table))
    with atomic(path) as partial:
        pq.write_table(table.replace_schema_metadata({KEY: described}), partial, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table that `write_table` wrote; `columns` are those that the reader needs.

    Raises:
        ArtifactError: no such file, not one of ours, a column missing, or content that is
            not what was written.
    """
    table = _load(path)
    recorded = _metadata(path, table).get("content_digest")
    if _content_digest(table.replace_schema_metadata(None)) != recorded:
        raise ArtifactError(
            f"{path}: content differs from what was written; remove it and rerun its rule"
        )
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise ArtifactError(f"{path}: lacks the column(s) {', '.join(missing)}")
    frame: pd.DataFrame = (table.select(list(columns)) if columns else table).to_pandas()
    return frame


def read_table_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a table, with its `content_digest`."""
    return _metadata(path, _load(path))


def _load(path: Path) -> pa.Table:
    if not path.is_file():
        raise ArtifactError(f"{path}: no such table; run the rule that makes it")
    try:
        return pq.ParquetFile(path).read()  # read_table would load the dataset machinery
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: not a readable Parquet file: {error}") from error


def _metadata(path: Path, table: pa.Table) -> dict[str, Any]:
    stored = (table.schema.metadata or {}).get(KEY)
    if stored is None:
        raise ArtifactError(f"{path}: has no provenance, so no stage of paramscope wrote it")
    return dict(json.loads(stored))


def _content_digest(table: pa.Table) -> str:
    for index, column in enumerate(table.columns):
        if column.null_count:  # the bytes under a null are arbitrary
            plain = pa.array(column.to_pylist(), column.type)
            table = table.set_column(index, table.schema.field(index), plain)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
