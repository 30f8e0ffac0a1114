"""Files of rows in every format, and what reading them gives."""

import csv
import json

import pytest

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.sources import iter_records
from adg_plugin.errors import DataError

ROWS = [
    {"instruction": "Add 2 and 3.", "input": "", "output": "5"},
    {"instruction": 'Say\u2028hi,\n"twice"', "input": "in español — ¿sí?", "output": "hola\r\nhola"},
    {"instruction": "Name a colour.", "input": "tab\there", "output": "red"},
]


def spec(path, **settings):
    return DatasetSpec(path=str(path), **settings)


def read(*specs):
    return list(iter_records(specs))


def data(*specs):
    return [record.data for record in read(*specs)]


def write_jsonl(path, rows=ROWS):
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def write(path, rows=ROWS):
    """Write rows in the form that the file name tells."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    if path.name.endswith((".gz", ".zst", ".bz2")):
        plain = write(path.with_suffix(""), rows)
        with pa.output_stream(str(path)) as stream:
            stream.write(plain.read_bytes())
        plain.unlink()
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        write_jsonl(path, rows)
    return path


def message_of(*specs):
    with pytest.raises(DataError) as caught:
        read(*specs)
    return str(caught.value)


NAMES = [
    "p.jsonl", "p.ndjson", "p.json", "p.csv", "p.tsv", "p.parquet", "p.arrow",
    "p.jsonl.gz", "p.json.zst", "p.csv.bz2", "P.JSONL", "dotted.name.jsonl.zst",
]  # fmt: skip
