"""The report as one HTML file that loads nothing, and its figures as PNG and SVG files."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from adg_plugin import __version__
from adg_plugin.errors import need
from adg_plugin.report.figures import described
from adg_plugin.report.gather import Gathered
from adg_plugin.selectors.registry import selector
from adg_plugin.store.files import replacing, writing

LARGEST = 9_500_000  # bytes of the file
_FEW_ANSWERED, _SHORT = 250, 60  # rows; characters
_STATIC_WIDTH = {True: 760, False: 460}
_WHY = "the report"
_SCRIPTS = ("page.js", "page_rows.js", "page_beside.js", "page_start.js")


def need_scripts() -> Any:
    """Return vl-convert-python, which brings the scripts of Vega-Lite.

    Raises:
        MissingExtraError: it is not installed.
    """
    return need("vl_convert", extra="report", why=_WHY)


def page(found: Gathered) -> str:
    """Return the report as HTML.

    Texts of the data set reach the page as compressed JSON, which a script puts in place as text: none is ever markup.

    Raises:
        MissingExtraError: vl-convert-python is not installed.
    """
    scripts = need_scripts().javascript_bundle()
    frame, style, script = _read("page.html"), _read("page.css"), "".join(map(_read, _SCRIPTS))
    room = LARGEST - len(scripts.encode()) - sum(len(part.encode()) for part in (frame, style, script))
    return Template(frame).substitute(
        title=_escaped(_title(found.about["summary"])),
        version=__version__,
        style=style,
        libraries=scripts.replace("</script", "<\\/script"),
        script=script,
        data=_fitting(found, room),
    )


def _read(name: str) -> str:
    return (files("adg_plugin.report") / name).read_text(encoding="utf-8")


def _title(summary: dict[str, Any]) -> str:
    method, run = summary["method"], summary["run"]
    if method is None:
        return f"Comparison of methods: {run}"
    return selector(method).title(run)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fitting(found: Gathered, room: int) -> str:
    """Return the data, compressed, in base64; what does not fit into `room` bytes goes.

    First half of the texts after half, then the ends of the listed instructions, then every second listed row.
    """
    texts, step, characters = dict(found.texts), 1, None
    while True:
        packed = _packed(found, texts, step, characters)
        if len(packed) <= room or step > len(found.table["id"]):
            return packed
        if len(texts) > _FEW_ANSWERED or (texts and characters):
            texts = dict(list(texts.items())[: len(texts) // 2])
        elif characters is None:
            characters = _SHORT
        else:
            step *= 2


def _packed(found: Gathered, texts: dict[str, Any], step: int, characters: int | None) -> str:
    table = {name: _every(column, step) for name, column in found.table.items()}
    table["instruction"] = [text[:characters] for text in table["instruction"]]
    data = {
        "about": found.about,
        "figures": [{**asdict(figure), "spec": described(figure)} for figure in found.figures],
        "table": table,
        "texts": texts,
        "rejected": found.rejected,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), mtime=0)).decode()


def _every(column: Any, step: int) -> Any:
    return {**column, "codes": column["codes"][::step]} if isinstance(column, dict) else column[::step]


def write_page(found: Gathered, path: Path) -> None:
    """Write the report to `path`, whole or not at all.

    Raises:
        MissingExtraError: as `page`.
        StoreError: it cannot be written.
    """
    text = page(found)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as sink:
        sink.write(text.encode())


def write_figures(found: Gathered, folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG, and return the paths.

    Raises:
        MissingExtraError: as `page`.
        StoreError: the folder cannot be written.
    """
    draw = need_scripts()
    paths = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in found.figures:
        spec = {
            **figure.spec,
            "width": _STATIC_WIDTH[figure.wide],
            "title": {"text": figure.title, "subtitle": figure.note, "anchor": "start", "limit": 900},
            "background": "white",
        }
        name = figure.name.replace(" ", "_")
        for suffix, data in (
            ("svg", draw.vegalite_to_svg(spec).encode()),
            ("png", draw.vegalite_to_png(spec, scale=2)),
        ):
            path = folder / f"{name}.{suffix}"
            with replacing(path) as sink:
                sink.write(data)
            paths.append(path)
    return paths
