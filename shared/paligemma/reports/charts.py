"""Small charts as inline SVG: a histogram and a line chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 30


def histogram(counts: Mapping[int, int], label: str, most_bars: int = 48) -> Markup:
    """Bars of counts by integer value; neighbouring values share a bar if there are more than `most_bars`."""
    if not counts:
        return Markup("<p>{}: none</p>").format(label)
    low, high = min(counts), max(counts)
    per_bar = -(-(high - low + 1) // most_bars)
    bars: dict[int, int] = {}
    for value, count in counts.items():
        bars[(value - low) // per_bar] = bars.get((value - low) // per_bar, 0) + count
    number = (high - low) // per_bar + 1
    tallest = max(bars.values())
    step = (WIDTH - _LEFT - _RIGHT) / number
    parts = []
    for bar, count in sorted(bars.items()):
        height = (HEIGHT - _TOP - _BOTTOM) * count / tallest
        first, last = low + bar * per_bar, min(high, low + (bar + 1) * per_bar - 1)
        values = str(first) if first == last else f"{first} to {last}"
        parts.append(
            f'<rect class="bar" x="{_LEFT + bar * step:.1f}" y="{HEIGHT - _BOTTOM - height:.1f}" '
            f'width="{max(1.0, step - 1):.1f}" height="{height:.1f}"><title>{values}: {count}</title></rect>'
        )
    return _frame("".join(parts), label, (str(low), str(high)), ("0", str(tallest)))


def line_chart(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """A line through finite points `(x, y)`, with the range of each axis written out."""
    finite = [(x, y) for x, y in points if y == y and abs(y) != float("inf")]
    if not finite:
        return Markup("<p>{}: no finite value</p>").format(label)
    (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*finite, strict=True))
    if len(finite) > 1000:  # more points than pixels
        finite = finite[:: -(-len(finite) // 1000)]

    def at(x: float, y: float) -> str:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0) if y1 > y0 else 0.5
        return f"{_LEFT + across * (WIDTH - _LEFT - _RIGHT):.1f},{HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM):.1f}"

    path = " ".join(at(x, y) for x, y in finite)
    line = f'<polyline class="line" points="{path}"/>'
    return _frame(line, label, (f"{x0:g}", f"{x1:g}"), (f"{y0:.3g}", f"{y1:.3g}"))


def _frame(body: str, label: str, x_range: tuple[str, str], y_range: tuple[str, str]) -> Markup:
    base = HEIGHT - _BOTTOM
    texts = [
        (_LEFT, base + 16, "start", x_range[0]),
        (WIDTH - _RIGHT, base + 16, "end", x_range[1]),
        ((_LEFT + WIDTH) / 2, base + 16, "middle", label),
        (_LEFT - 6, base, "end", y_range[0]),
        (_LEFT - 6, _TOP + 10, "end", y_range[1]),
    ]
    written = "".join(f'<text x="{x}" y="{y}" text-anchor="{a}">{escape(t)}</text>' for x, y, a, t in texts)
    axes = f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{WIDTH - _RIGHT}"/>'
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{axes}{body}{written}</svg>')
