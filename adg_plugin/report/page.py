"""The report as one HTML file that loads nothing, and its figures as PNG and SVG files."""

from __future__ import annotations

import base64
import gzip
import html
import json
import logging
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from adg_plugin import __version__
from adg_plugin.errors import MissingExtraError, need
from adg_plugin.report.gather import Gathered, gather
from adg_plugin.selectors.registry import selector
from adg_plugin.store.files import replacing, writing
from adg_plugin.store.names import REPORT

logger = logging.getLogger(__name__)

LARGEST = 9_500_000  # bytes of the file
_FEW_ANSWERED, _SHORT = 250, 60  # rows; characters
_STATIC_WIDTH = {True: 760, False: 460}
_FILES = ("page.html", "page.css", "page.js", "page_rows.js", "page_beside.js", "page_start.js")


def need_scripts() -> Any:
    """Return vl-convert-python, which brings the scripts of Vega-Lite.

    Raises:
        MissingExtraError: it is not installed.
    """
    return need("vl_convert", extra="report", why="the report")


def page(found: Gathered) -> str:
    """Return the report as HTML.

    Texts of the data set reach the page as compressed JSON, which a script puts in place as text: none is ever markup.

    Raises:
        MissingExtraError: vl-convert-python is not installed.
    """
    scripts = need_scripts().javascript_bundle()
    frame, style, *parts = ((files(__package__) / name).read_text(encoding="utf-8") for name in _FILES)
    script = "".join(parts)
    summary = found.about["summary"]
    run, method = summary["run"], summary["method"]
    title = f"Comparison of methods: {run}" if method is None else selector(method).title(run)
    room = LARGEST - len(scripts.encode()) - sum(len(part.encode()) for part in (frame, style, script))
    return Template(frame).substitute(
        title=html.escape(title, quote=False),
        version=__version__,
        style=style,
        libraries=scripts.replace("</script", "<\\/script"),
        script=script,
        data=_fitting(found, room),
    )


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
    table = {
        name: {**column, "codes": column["codes"][::step]} if isinstance(column, dict) else column[::step]
        for name, column in found.table.items()
    }
    table["instruction"] = [text[:characters] for text in table["instruction"]]
    shown = []
    for figure in found.figures:
        description = f"{figure.title}. {figure.note}"  # what screen readers say of it
        shown.append({**asdict(figure), "spec": {"description": description, **figure.spec}})
    data = {"about": found.about, "figures": shown, "table": table, "texts": texts, "rejected": found.rejected}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), mtime=0)).decode()


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


def offer_report(run_dir: Path) -> None:
    """Write the report into a run folder; warn where it cannot be made."""
    path = run_dir / REPORT
    try:
        path.unlink(missing_ok=True)  # of an earlier choice
        need_scripts()  # before all is read in vain
        write_page(gather(run_dir), path)
    except MissingExtraError as err:
        logger.warning("no report: %s", err)
    except Exception as err:  # a page to look at is no reason to lose the training that follows
        logger.warning("no report: %s: %s; `adg report %s` tries again", type(err).__name__, err, run_dir)


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
        drawn = {"svg": draw.vegalite_to_svg(spec).encode(), "png": draw.vegalite_to_png(spec, scale=2)}
        for suffix, data in drawn.items():
            path = folder / f"{figure.name.replace(' ', '_')}.{suffix}"
            with replacing(path) as sink:
                sink.write(data)
            paths.append(path)
    return paths
