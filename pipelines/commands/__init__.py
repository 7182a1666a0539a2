"""Groups of the command `paligemma`: one file each, which imports what a subcommand needs inside it."""
