#!/bin/sh
# The GPU kit on the GPU's machine: see README.md. Everything else is start.py, which needs Python 3.10 or newer alone.
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/start.py" "$@"
