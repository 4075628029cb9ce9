"""Names beside the points of a plot, placed so that they hide neither each other nor a point, in place of a legend.

Each name tries places around its point, near ones first, and takes the one that costs least; a second and a third round
let the first ones move. The places follow from the figure alone, so that the same records give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 6.5
"""Points of a name's letters."""
INK = "#333333"
MARKER = 4.0
"""Points around the middle of a point that no name may lie on."""
DISTANCES = (4.0, 7.0, 11.0, 16.0, 22.0, 30.0, 40.0, 52.0)
"""Points from the middle of a point to the edge of its name, as they are tried."""
ANGLES = 16
LED_FROM = 10.0
"""Distance from which a thin line leads from a name to its point."""
ROUNDS = 3
SHORT, HEAD = 30, 12
"""Characters of a name, and of its beginning where the middle has to go."""
OUTSIDE, ON_NAME, ON_POINT, ON_LINE = 40.0, 30.0, 12.0, 2.0
"""What a square point of a name costs outside the axes, on another name, on a point, or on a line."""


@dataclass(frozen=True)
class Box:
    """A rectangle on the figure, in points."""

    left: float
    low: float
    right: float
    high: float

    def shared(self, other: Box) -> float:
        """Return the area that two rectangles share."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.high, other.high) - max(self.low, other.low)
        return across * up if across > 0 and up > 0 else 0.0

    @property
    def area(self) -> float:
        """Return its area."""
        return (self.right - self.left) * (self.high - self.low)


@dataclass(frozen=True)
class Named:
    """A point, or a level, with its name."""

    name: str
    x: float | None
    """None: a level, which has its name at either end."""
    y: float
    low: float
    """Of the interval up and down."""
    high: float


@dataclass
class _Placed:
    text: str
    width: float
    height: float
    at: tuple[float, float] | None
    """The point on the figure; None of a level."""
    level: float
    box: Box | None = None
    choices: list[tuple[float, Box]] = field(default_factory=list)


def shortened(name: str) -> str:
    """Return a name short enough to stand beside a point: its beginning and its end, where labels differ."""
    return name if len(name) <= SHORT else f"{name[:HEAD]}…{name[-(SHORT - HEAD - 1) :]}"


Segment = tuple[tuple[float, float], tuple[float, float]]


def write_names(axis: Axes, points: Sequence[Named], segments: Sequence[Segment] = ()) -> None:
    """Write each name beside its point, on a figure whose layout is done.

    Args:
        axis: That the points are drawn on.
        points: With their names.
        segments: Lines across or upward, each from end to end, that names keep away from too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axis.get_figure(root=True)
    assert figure is not None
    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    renderer = canvas.get_renderer()
    points_a_pixel = 72.0 / figure.dpi
    ends = axis.get_window_extent(renderer)
    inside = Box(*(value * points_a_pixel for value in (ends.x0, ends.y0, ends.x1, ends.y1)))
    placed, clear, lines = [], [], []
    for ends_of_line in segments:
        (x0, y0), (x1, y1) = (axis.transData.transform(end) * points_a_pixel for end in ends_of_line)
        lines.append(Box(min(x0, x1) - 0.5, min(y0, y1) - 0.5, max(x0, x1) + 0.5, max(y0, y1) + 0.5))
    for point in points:
        x = axis.get_xlim()[0] if point.x is None else point.x
        place, low, high = (axis.transData.transform((x, y)) * points_a_pixel for y in (point.y, point.low, point.high))
        text = axis.text(0, 0, shortened(point.name), fontsize=SIZE, parse_math=False)
        size = text.get_window_extent(renderer)
        text.remove()
        one = _Placed(
            shortened(point.name),
            size.width * points_a_pixel,
            size.height * points_a_pixel,
            None if point.x is None else (float(place[0]), float(place[1])),
            float(place[1]),
        )
        one.choices = list(_choices(one, inside))
        placed.append(one)
        if one.at is None:
            lines.append(Box(inside.left, one.level - 0.5, inside.right, one.level + 0.5))
        else:
            x, y = one.at
            clear.append(Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER))
            lines.append(Box(x - 0.6, float(low[1]), x + 0.6, float(high[1])))
    for _ in range(ROUNDS):
        for one in placed:
            others = [other.box for other in placed if other is not one and other.box is not None]
            one.box = min(one.choices, key=lambda choice: choice[0] + _cost(choice[1], others, inside, clear, lines))[1]
    for one in placed:
        _write(axis, one)


def _choices(one: _Placed, inside: Box) -> Iterator[tuple[float, Box]]:
    """Yield what the distance of each place costs, and the place."""
    if one.at is None:
        for left in (inside.right - one.width, inside.left + 2.0):
            for low in (one.level + 1.5, one.level - 1.5 - one.height):
                yield 0.0, Box(left, low, left + one.width, low + one.height)
        return
    x, y = one.at
    for distance in DISTANCES:
        for turn in range(ANGLES):
            across, up = math.cos(2 * math.pi * turn / ANGLES), math.sin(2 * math.pi * turn / ANGLES)
            middle_x = x + across * (distance + one.width / 2)
            middle_y = y + up * (distance + one.height / 2)
            left, low = middle_x - one.width / 2, middle_y - one.height / 2
            yield distance, Box(left, low, left + one.width, low + one.height)


def _cost(box: Box, names: Sequence[Box], inside: Box, points: Sequence[Box], lines: Sequence[Box]) -> float:
    return (
        OUTSIDE * (box.area - box.shared(inside))
        + ON_NAME * sum(map(box.shared, names))
        + ON_POINT * sum(map(box.shared, points))
        + ON_LINE * sum(map(box.shared, lines))
    )


def _write(axis: Axes, one: _Placed) -> None:
    assert one.box is not None
    from matplotlib.transforms import ScaledTranslation

    figure = axis.get_figure(root=True)
    assert figure is not None
    # In inches of the figure, so that a picture of another resolution has the name at the same place.
    at = ScaledTranslation(one.box.left / 72, one.box.low / 72, figure.dpi_scale_trans)
    text = axis.text(
        0, 0, one.text, transform=at, fontsize=SIZE, color=INK, va="bottom", ha="left", parse_math=False, gid="name"
    )
    text.set_in_layout(False)
    if one.at is None:
        return
    x, y = one.at
    near_x = min(max(x, one.box.left), one.box.right)
    near_y = min(max(y, one.box.low), one.box.high)
    if math.hypot(near_x - x, near_y - y) >= LED_FROM:
        (line,) = axis.plot(
            [x / 72, near_x / 72],
            [y / 72, near_y / 72],
            transform=figure.dpi_scale_trans,
            color=INK,
            linewidth=0.4,
            zorder=1.5,
            gid="lead",
        )
        line.set_in_layout(False)
