from .command import (
    Grouped as Grouped,
)
from .common import (
    run_command as run_command,
)
