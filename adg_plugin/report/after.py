"""The report at the end of a selection that training follows."""

from __future__ import annotations

import logging
from pathlib import Path

from adg_plugin.errors import MissingExtraError
from adg_plugin.report.gather import gather
from adg_plugin.report.page import need_scripts, write_page
from adg_plugin.store.reader import REPORT

logger = logging.getLogger(__name__)


def offer_report(run_dir: Path) -> Path | None:
    """Write the report into a run folder and return its path; None, after a warning, where it cannot be made."""
    path = run_dir / REPORT
    try:
        path.unlink(missing_ok=True)  # of an earlier choice
        need_scripts()  # before all is read in vain
        write_page(gather(run_dir), path)
    except MissingExtraError as err:
        logger.warning("no report: %s", err)
        return None
    except Exception as err:  # a page to look at is no reason to lose the training that follows
        logger.warning("no report: %s: %s; `adg report %s` tries again", type(err).__name__, err, run_dir)
        return None
    return path
