"""`python -m adg_plugin`, and `torchrun -m adg_plugin`: the `adg` command."""

from adg_plugin.cli import main

main()
