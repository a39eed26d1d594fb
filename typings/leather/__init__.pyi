"""What we use of leather, which ships no types."""

from collections.abc import Callable, Sequence
from types import ModuleType

theme: ModuleType

class Datum:
    i: int

class Chart:
    def __init__(self, title: str | None = None) -> None: ...
    def add_x_axis(self, *, name: str | None = None) -> None: ...
    def add_y_axis(self, *, name: str | None = None) -> None: ...
    def add_y_scale(self, domain_min: float, domain_max: float) -> None: ...
    def add_line(
        self, data: Sequence[tuple[float, float]], *, stroke_color: str | None = None, width: float | None = None
    ) -> None: ...
    def add_dots(
        self,
        data: Sequence[tuple[float, float]],
        *,
        fill_color: str | Callable[[Datum], str] | None = None,
        radius: float | None = None,
    ) -> None: ...
    def to_svg(self, path: None = None, width: int | None = None, height: int | None = None) -> str: ...
