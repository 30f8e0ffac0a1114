"""`adg export`: the chosen rows of a finished selection as a file that other tools load."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.console import RunDir, print_result
from adg_plugin.data.layouts import find_layout
from adg_plugin.errors import DataError
from adg_plugin.selectors.columns import by_rank
from adg_plugin.store import RunFolder
from adg_plugin.store.files import Sink, replacing, writing
from adg_plugin.store.reader import RunReader, finished

Form: TypeAlias = Literal["json", "jsonl", "parquet", "csv"]
Row: TypeAlias = dict[str, Any]


def export(
    run_dir: RunDir,
    form: Annotated[Form, typer.Option("--format", help="json is one array.")] = "json",
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Columns of the rows, and adg_id, adg_score, adg_bin, ...; default: all."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: export.FORMAT in the run folder.")] = None,
) -> None:
    """Write the chosen rows, best first, as other tools load them. The last line on stdout is the path."""
    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    print_result(export_rows(run_dir, form, columns=names, out=out))


def export_rows(run_dir: str | Path, form: Form, *, columns: Sequence[str] = (), out: str | Path | None = None) -> Path:
    """Write the chosen rows of a finished selection, best first, and return the path of the file.

    Args:
        run_dir: a run folder of any method.
        form: `json` is one array, in which rows in the layout `alpaca` always have an input.
        columns: those of the rows, and `adg_id`, `adg_rank` (place in the choice) and `adg_` before each other column
            of scores.parquet. Default: the rows as they were.
        out: the file; default `export.FORM` in the run folder.

    Raises:
        StoreError: not a run folder, or one without a result; the file cannot be written.
        DataError: no row has a column of that name, a column cannot be written in that form, or `out` is a folder or
            another file in the run folder.
    """
    run = RunFolder.read(run_dir)
    config = finished(run)
    path = run.path / f"export.{form}" if out is None else Path(out)
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of a file as --out")
    within = path.resolve()
    if within.is_relative_to(run.path.resolve()) and within != (run.path / f"export.{form}").resolve():
        raise DataError(f"{path} is in the run folder, which is the selection's own: give an --out outside of it")
    computed, names = _computed(run), list(dict.fromkeys(name for row in _rows(run, config, form) for name in row))
    rows = _rows(run, config, form)
    if columns:
        known = list(dict.fromkeys([*names, *computed]))
        if unknown := [name for name in columns if name not in known]:
            raise DataError(f"columns names {', '.join(unknown)}, which no row has: there are {', '.join(known)}")
        names = list(dict.fromkeys(columns))
        rows = (
            {name: computed[name][place] if name in computed else row.get(name) for name in names}
            for place, row in enumerate(rows)
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as sink:
        if form in ("json", "jsonl"):
            before, between, after = ("[\n", ",\n", "\n]\n") if form == "json" else ("", "\n", "\n")
            for row in rows:
                sink.write(f"{before}{_text(row)}".encode())
                before = between
            sink.write(after.encode())
        elif form == "csv":
            _write_csv(rows, names, sink)
        else:
            _write_parquet(list(rows), names, sink)
    return path


def _computed(run: RunReader) -> dict[str, list[Any]]:
    """Return what is known of the chosen rows, by column, in the order of selected.jsonl."""
    table = run.scores()
    table = table.filter(table["chosen"]).drop_columns(["chosen"])
    order = by_rank(table) if "rank" in table.column_names else np.argsort(-table["score"].to_numpy(), kind="stable")
    found = {f"adg_{name}": table[name].take(pa.array(order)).to_pylist() for name in table.column_names}
    return {**found, "adg_rank": list(range(1, len(table) + 1))}


def _rows(run: RunReader, config: ADGConfig, form: Form) -> Iterator[Row]:
    specs = config.datasets or (IN_MEMORY,)
    with run.selected_path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN, which no JSON reader has to take
            yield _with_input(row, specs) if form == "json" else row


def _with_input(row: Row, specs: Sequence[DatasetSpec]) -> Row:
    """Return the row with an input, "" where it has none, if it is in the layout `alpaca`."""
    spec = next((spec for spec in specs if find_layout(row, spec) == "alpaca"), None)
    if spec is None or row.get(spec.field_input) is not None:
        return row
    if spec.field_input in row:
        return {**row, spec.field_input: ""}
    found: Row = {}
    for name, value in row.items():
        found[name] = value
        if name == spec.field_instruction:
            found[spec.field_input] = ""
    return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_csv(rows: Iterable[Row], names: Sequence[str], sink: Sink) -> None:
    for values in chain([names], ([row.get(name) for name in names] for row in rows)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(map(_cell, values))
        sink.write(text.getvalue().encode())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _text(value)  # lists and objects as the readers of CSV here take them


def _write_parquet(rows: Sequence[Row], names: Sequence[str], sink: Sink) -> None:
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (ValueError, TypeError, OverflowError) as err:  # pyarrow's are of these kinds
            raise DataError(f"column {name} cannot be a column of Parquet ({err}): use jsonl, or leave it out") from err
    table = pa.table(columns)
    try:
        pq.write_table(table, sink, compression="zstd")
    except pa.ArrowException as err:  # such as an object without keys
        raise DataError(f"the rows cannot be written as Parquet ({err}): use jsonl, or leave columns out") from err
