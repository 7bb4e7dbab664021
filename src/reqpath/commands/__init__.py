"""The commands, one module each; `cli` finds them by name."""
