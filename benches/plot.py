"""Curves of growth as an SVG, both axes logarithmic. Not for anything else."""

import math
import pathlib

WIDTH, HEIGHT = 330, 260
LEFT, TOP, GAP, LEGEND = 60, 40, 80, 18

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def short(value):
    """10000 as 10k, 0.01 as it is."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


class Axes:
    """Where a point of a panel is, in pixels."""

    def __init__(self, left, xs, ys):
        self.left = left
        # A little room beside the points; whole decades above and below them.
        self.x0, self.x1 = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
        self.y0, self.y1 = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        if self.y1 == self.y0:
            self.y1 += 1

    def x(self, value):
        return self.left + WIDTH * (math.log10(value) - self.x0) / (self.x1 - self.x0)

    def y(self, value):
        return TOP + HEIGHT * (self.y1 - math.log10(value)) / (self.y1 - self.y0)


def line(x1, y1, x2, y2, style):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def text(x, y, said, style=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{said}</text>'


def frame(axes, xs, title, x_label, y_label):
    grid, bottom, right = 'stroke="#e4e4e4"', TOP + HEIGHT, axes.left + WIDTH
    parts = []
    for decade in range(axes.y0, axes.y1 + 1):
        y = axes.y(10**decade)
        parts += [line(axes.left, y, right, y, grid), text(axes.left - 6, y + 4, short(10**decade), 'text-anchor="end"')]
    for x in xs:
        parts += [line(axes.x(x), TOP, axes.x(x), bottom, grid), text(axes.x(x), bottom + 16, short(x), 'text-anchor="middle"')]
    parts.append(f'<rect x="{axes.left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>')
    middle = TOP + HEIGHT / 2
    parts.append(text(axes.left, TOP - 12, title, 'font-weight="bold"'))
    parts.append(text(axes.left + WIDTH / 2, bottom + 34, x_label, 'text-anchor="middle"'))
    turned = f'text-anchor="middle" transform="rotate(-90 {axes.left - 44} {middle})"'
    return [*parts, text(axes.left - 44, middle, y_label, turned)]


def curve(axes, points, colour, dashed):
    style = f'stroke="{colour}" stroke-width="1.8"' + (' stroke-dasharray="5 3"' if dashed else "")
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    fill = "white" if dashed else colour
    dots = [f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="{fill}" stroke="{colour}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" {style}/>', *dots]


def panel(number, title, x_label, y_label, curves):
    """Of {name: points}; what belongs to rsync is dashed, in the colour of its counterpart. The thin line is linear growth."""
    left = LEFT + number * (WIDTH + GAP)
    xs = sorted({x for points in curves.values() for x, _ in points})
    axes = Axes(left, xs, [y for points in curves.values() for _, y in points])
    parts = [f'<clipPath id="clip{number}"><rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/></clipPath>']
    parts += frame(axes, xs, title, x_label, y_label)
    x, y = next(iter(curves.values()))[-1]
    linear = line(axes.x(xs[0]), axes.y(y * xs[0] / x), axes.x(x), axes.y(y), 'stroke="#999" stroke-dasharray="1 3"')
    parts.append(f'<g clip-path="url(#clip{number})">{linear}</g>')
    kinds = list(dict.fromkeys(name.partition(" ")[2] for name in curves))
    for i, (name, points) in enumerate(curves.items()):
        peer, _, kind = name.partition(" ")
        colour, dashed = COLOURS[kinds.index(kind) % len(COLOURS)], peer == "rsync"
        parts += curve(axes, points, colour, dashed)
        at = TOP + HEIGHT + 58 + i * LEGEND
        style = f'stroke="{colour}" stroke-width="1.8"' + (' stroke-dasharray="5 3"' if dashed else "")
        parts += [line(left, at - 4, left + 26, at - 4, style), text(left + 34, at, name)]
    at = TOP + HEIGHT + 58 + len(curves) * LEGEND
    parts += [line(left, at - 4, left + 26, at - 4, 'stroke="#999" stroke-dasharray="1 3"'), text(left + 34, at, "linear")]
    return parts


def write(path, panels):
    """`panels` are (title, x label, y label, {name: [(x, y)]}); a name is a peer, a blank and what of it."""
    width = LEFT + len(panels) * (WIDTH + GAP) - GAP + 20
    height = TOP + HEIGHT + 58 + LEGEND * (1 + max(len(curves) for *_, curves in panels))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [f'{head} font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    for number, described in enumerate(panels):
        parts += panel(number, *described)
    pathlib.Path(path).write_text("\n".join([*parts, "</svg>"]) + "\n")
