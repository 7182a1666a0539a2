"""Groups of the command `paligemma`, one file each. Subcommands import what they need inside their functions."""
