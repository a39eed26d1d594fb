"""The commands: parse, make a value, one call, render. `--help` imports nothing heavy."""
