"""`python -m adg_plugin.adapters.axolotl.stage ARGUMENTS`: the `axolotl` command as a stage of `adg run`."""

from __future__ import annotations

from adg_plugin.adapters.processes import follow


def main() -> None:
    """Run Axolotl's command line, and end with the command that started it."""
    follow()
    from axolotl.cli.main import main as axolotl

    axolotl()


if __name__ == "__main__":
    main()
