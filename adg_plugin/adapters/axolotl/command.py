"""`axolotl adg-select CONFIG.yml`, which Axolotl finds through its entry point for commands."""

from __future__ import annotations

import click

from adg_plugin.errors import ADGError


@click.command("adg-select")
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
def adg_select(config: str) -> None:
    """Select the training rows of CONFIG by its `adg:` block, and train nothing.

    The last line on stdout is the run folder (with budget_per_dataset, a line each). `axolotl train` then reuses it.
    """
    from adg_plugin.adapters.axolotl import internals as axolotl_internals
    from adg_plugin.adapters.axolotl import select as axolotl_select
    from adg_plugin.console import print_error, print_result, say

    try:
        cfg = axolotl_internals.read_config(config)
        if not cfg.get("adg"):
            raise ADGError(f"{config} selects nothing: add plugins: [adg_plugin.ADGPlugin] and an `adg:` block")
        rows = axolotl_internals.load_rows(cfg).train_dataset
        keep, run_dirs = axolotl_select.selected_positions(cfg, rows)
    except ADGError as err:
        print_error(err)
        raise SystemExit(err.exit_code) from None
    say(f"{len(keep)} of {len(rows)} training rows chosen")
    for run_dir in run_dirs:
        print_result(run_dir)
