"""Draws the diagrams of the model variants in paper_to_code.md; python docs/figures/draw_diagrams.py writes the SVGs.

Plain Python without any drawing library; a label that would not fit its box is an error. Blue panels hold what runs
once per image, orange ones what runs at each denoising step for each member of the ensemble.
"""

import re
from pathlib import Path
from xml.sax.saxutils import escape

ONCE, STEP, PLAIN = "#e6f0fb", "#fdf0df", "#f3f3f3"  # panels
INK, LINE, SKIP = "#1c2733", "#3c4a59", "#8593a3"
SIZE, SMALL = 14, 11.5  # of letters, in pixels
LETTER = 0.6  # width of an average letter, in units of its size, for fonts as wide as DejaVu Sans


def marked_up(text, size):
    """SVG for a label of letters of `size` in which _x or _{xy} is a subscript and ^x a superscript."""
    parts = re.split(r"([_^](?:\{[^}]*\}|.))", text)
    svg, back = "", ""
    for part in parts:
        if part[:1] in ("_", "^") and len(part) > 1:
            shift = 3 if part[0] == "_" else -5
            svg += f'<tspan dy="{shift}" font-size="{0.75 * size:g}">{escape(part[1:].strip("{}"))}</tspan>'
            back = f' dy="{-shift}"'
        elif part:
            if back and part.startswith(" "):  # renderers drop a space there
                back += f' dx="{0.35 * size:g}"'
            svg += f"<tspan{back}>{escape(part)}</tspan>" if back else escape(part)
            back = ""
    return svg


def text_width(text, size):
    """About how wide a label is, in pixels."""
    return len(re.sub(r"[_^{}]", "", text)) * LETTER * size


class Box:
    """A rectangle with its middle at (x, y); `left`, `right`, `top`, `bottom` are the middles of its edges."""

    def __init__(self, x, y, width, height):
        self.x, self.y, self.width, self.height = x, y, width, height
        self.left, self.right = (x - width / 2, y), (x + width / 2, y)
        self.top, self.bottom = (x, y - height / 2), (x, y + height / 2)


class Diagram:
    """An SVG that grows by panels, boxes, arrows and notes; panels are drawn first, then arrows, then the rest."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title = width, height, title
        self.panels, self.arrows, self.front = [], [], []

    def panel(self, x0, y0, x1, y1, title, colour):
        """A coloured area with its title in the upper left corner."""
        self.panels.append(
            f'<rect x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}" rx="12" fill="{colour}"/>'
            f'<text x="{x0 + 22}" y="{y0 + 22}" class="panel">{marked_up(title, SIZE)}</text>'
        )

    def box(self, x, y, *lines, width=150, fill="#ffffff"):
        """A box with a bold first line and small further ones, as high as they need. Returns the `Box`."""
        for i, line in enumerate(lines):
            wide = text_width(line, SMALL if i else SIZE * 1.06)  # bold letters are wider
            if wide > width - 8:
                raise ValueError(f"{self.title}: {line!r} needs {wide:.0f} pixels, its box has {width - 8}")
        box = Box(x, y, width, 22 + 16 * len(lines))
        self.front.append(
            f'<rect x="{box.left[0]}" y="{box.top[1]}" width="{width}" height="{box.height}" rx="6" fill="{fill}" '
            f'stroke="{LINE}" stroke-width="1.3"/>'
        )
        for i, line in enumerate(lines):
            baseline = y - 8 * (len(lines) - 1) + 16 * i + 4.5
            kind = "small" if i else "name"
            self.front.append(
                f'<text x="{x}" y="{baseline}" class="{kind}">{marked_up(line, SMALL if i else SIZE)}</text>'
            )
        return box

    def circle(self, x, y, sign):
        """A small circle with a sign of arithmetic. Returns its `Box`."""
        self.front.append(
            f'<circle cx="{x}" cy="{y}" r="14" fill="#ffffff" stroke="{LINE}" stroke-width="1.3"/>'
            f'<text x="{x}" y="{y + 6}" class="sign">{sign}</text>'
        )
        return Box(x, y, 28, 28)

    def arrow(self, *points, skip=False):
        """An arrow along straight pieces; dashed and grey for skip connections."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        colour, dash, head = (SKIP, ' stroke-dasharray="5 4"', "grey") if skip else (LINE, "", "dark")
        self.arrows.append(
            f'<path d="M {path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#{head})"/>'
        )

    def note(self, x, y, text, anchor="start"):
        """A small label of its own."""
        start = {"start": x, "middle": x - text_width(text, SMALL) / 2, "end": x - text_width(text, SMALL)}[anchor]
        if start < 0 or start + text_width(text, SMALL) > self.width:
            raise ValueError(f"{self.title}: {text!r} leaves the picture")
        self.front.append(f'<text x="{x}" y="{y}" class="note" text-anchor="{anchor}">{marked_up(text, SMALL)}</text>')

    def svg(self):
        """The whole picture."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M 0 1 L 10 5 L 0 9 z" fill="{colour}"/></marker>'
            for name, colour in (("dark", LINE), ("grey", SKIP))
        )
        style = (
            f"text {{ font-family: 'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif; fill: {INK} }}"
            f".name, .small, .sign {{ text-anchor: middle }} .name {{ font-size: {SIZE}px; font-weight: bold }}"
            f".small, .note {{ font-size: {SMALL}px }} .sign {{ font-size: 18px }}"
            ".panel { font-size: 14px; font-style: italic } .title { font-size: 17px; font-weight: bold }"
        )
        legend = f'<text x="{self.width - 20}" y="32" class="note" text-anchor="end">dashed: skip connections</text>\n'
        if not any("dasharray" in arrow for arrow in self.arrows):
            legend = ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img">\n<title>{escape(self.title)}</title>\n<style>{style}</style>\n'
            f"<defs>{heads}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="14" fill="#ffffff"/>\n'
            f'<text x="20" y="32" class="title">{escape(self.title)}</text>\n{legend}'
            + "\n".join(self.panels + self.arrows + self.front)
            + "\n</svg>\n"
        )


COLUMNS = (110, 300, 510, 710, 910, 1110)  # of v2 and unet
LEVELS = ("level 1", "level 2", "levels 3 … L")


def draw_image_unet(d, upper, lower, answer):
    """The U-Net on the image alone: encoder in the upper row, decoder in the lower.

    answer: what the head gives. Returns the boxes of the image, the bottleneck and the decoder's first level.
    """
    image = d.box(COLUMNS[0], upper, "image I", "[N, C, H, W]")
    encoder = [d.box(x, upper, "encoder", level) for x, level in zip(COLUMNS[1:4], LEVELS, strict=True)]
    bottleneck = d.box(COLUMNS[4], upper, "bottleneck", "self-attention")
    decoder = [d.box(x, lower, "decoder", level) for x, level in zip(COLUMNS[1:4], LEVELS, strict=True)]
    head = d.box(COLUMNS[0], lower, "head", answer)
    connect(d, image, *encoder, bottleneck)
    d.arrow(bottleneck.bottom, (COLUMNS[4], lower), decoder[2].right)
    connect(d, *reversed(decoder), head)
    for down, up in zip(encoder, decoder, strict=True):
        d.arrow(down.bottom, up.top, skip=True)
    return image, bottleneck, decoder[0]


def connect(d, *boxes):
    """Arrows along a row of boxes, in the order they are given."""
    for a, b in zip(boxes[:-1], boxes[1:], strict=True):
        d.arrow(*((a.right, b.left) if a.x < b.x else (a.left, b.right)))


def draw_v2():
    """MedSegDiff-V2."""
    d = Diagram(1220, 700, "MedSegDiff-V2 (--version v2)")
    d.panel(10, 48, 1210, 352, "once per image: encode, the condition model", ONCE)
    d.panel(10, 362, 1210, 690, "each step, each member: forward", STEP)
    image, bottleneck, decoder1 = draw_image_unet(d, 108, 208, "coarse mask")
    anchor = d.box(300, 305, "anchor (U-SA)", "σ(Conv(max(f_c*k, f_c)))", width=190)
    d.arrow(decoder1.bottom, anchor.top)
    d.note(308, 262, "f_c")

    row, below = 432, 562
    start = d.box(COLUMNS[0], row, "x_t ‖ I", "noisy mask, image")
    first = d.box(COLUMNS[1], row, "encoder", "level 1: f_d")
    times = d.circle(405, row, "×")
    rest = [d.box(x, row, "encoder", level) for x, level in zip(COLUMNS[2:4], LEVELS[1:], strict=True)]
    middle = d.box(COLUMNS[4], row, "bottleneck", "self-attention")
    former = d.box(COLUMNS[5], row, "SS-Former", "N blocks", "gives e + c_N")
    decoder = [d.box(x, below, "decoder", level) for x, level in zip(COLUMNS[1:4], LEVELS, strict=True)]
    head = d.box(COLUMNS[0], below, "head", "prediction", "(and variance)")
    connect(d, start, first, times, *rest, middle, former)
    connect(d, *reversed(decoder), head)
    d.arrow(image.left, (22, 108), (22, row), start.left)
    d.arrow(anchor.right, (405, 305), times.top)
    d.note(412, 345, "map in (0, 1), multiplies f_d by 1 + map")
    d.arrow(bottleneck.right, (COLUMNS[5], 108), former.top)
    d.note(1040, 100, "embedding c_0", anchor="middle")
    d.note(1010, 424, "e", anchor="middle")
    d.arrow(former.bottom, (COLUMNS[5], below), decoder[2].right)
    d.arrow(times.bottom, (405, 497), (COLUMNS[1], 497), decoder[0].top, skip=True)
    for down, up in zip(rest, decoder[1:], strict=True):
        d.arrow(down.bottom, up.top, skip=True)
    d.arrow(head.top, start.bottom)
    d.note(118, 500, "sampler: x_t → x_s")
    time = d.box(COLUMNS[0], 650, "time t", "sinusoids, MLP")
    d.note(
        time.right[0] + 15, 654, "to every residual block of this panel, to the NBP-filter and to the SS-Former's MLPs"
    )
    return d


def draw_v1():
    """MedSegDiff."""
    d = Diagram(1350, 665, "MedSegDiff (--version v1)")
    d.panel(10, 48, 215, 655, "once per image: encode", ONCE)
    d.panel(225, 48, 1340, 655, "each step, each member: forward", STEP)
    top, condition, parsers, mask, below = 112, 220, 315, 410, 530
    image = d.box(112, mask, "image I", "[N, C, H, W]")
    image1 = d.box(112, condition, "image encoder", "level 1")
    d.arrow(image.top, image1.bottom)

    coarse = d.box(790, top, "coarse decoder", "upsample, add the finer level, refine", width=690)
    answer = d.box(1250, top, "coarse mask", "logits")
    connect(d, coarse, answer)
    fusions = [d.box(x, condition, "fusion", "LN(m_I)·LN(m_x)·m_I") for x in (520, 880)]
    image2 = d.box(700, condition, "image encoder", "level 2")
    image3 = d.box(1060, condition, "image encoder", "levels 3 … L")
    connect(d, image1, fusions[0], image2, fusions[1], image3)
    for box in (*fusions, image3):
        d.arrow(box.top, (box.x, coarse.bottom[1]))
    d.note(245, 212, "m_I of level 1")

    start = d.box(330, mask, "x_t ‖ I", "noisy mask, image")
    masks = [d.box(x, mask, "mask encoder", level) for x, level in zip((520, 880, 1060), LEVELS, strict=True)]
    for fusion, stage in zip(fusions, masks[:2], strict=True):
        parser = d.box(fusion.x, parsers, "FF-Parser", "F^{−1}(A ⊗ F(m_x))")
        d.arrow(stage.top, parser.bottom)
        d.arrow(parser.top, fusion.bottom)
    plus = d.circle(1250, mask, "+")
    connect(d, image, start, *masks, plus)
    d.arrow(image3.right, (1250, condition), plus.top)
    d.note(1165, 212, "E_I")
    d.note(1165, 402, "E_x")

    bottleneck = d.box(1250, below, "bottleneck", "self-attention")
    decoder = [d.box(x, below, "decoder", level) for x, level in zip((520, 880, 1060), LEVELS, strict=True)]
    head = d.box(330, below, "head", "prediction", "(and variance)")
    d.arrow(plus.bottom, bottleneck.top)
    connect(d, bottleneck, *reversed(decoder), head)
    for down, up in zip(masks, decoder, strict=True):
        d.arrow(down.bottom, up.top, skip=True)
    d.arrow(head.top, start.bottom)
    d.note(338, 470, "sampler: x_t → x_s")
    time = d.box(330, 612, "time t", "sinusoids, MLP")
    d.note(time.right[0] + 15, 616, "to every residual block of the mask encoder, the bottleneck and the decoder")
    return d


def draw_unet():
    """The baseline without diffusion."""
    d = Diagram(1020, 345, "The plain U-Net without diffusion (--version unet)")
    d.panel(10, 48, 1010, 270, "once per image: encode", ONCE)
    d.panel(10, 280, 1010, 335, "each step: nothing; forward gives the answer back", STEP)
    draw_image_unet(d, 110, 215, "mask, logits")
    d.note(
        32,
        323,
        "Trained by cross-entropy + Dice as an x_0 prediction that looks at neither x_t nor t; sampled in one step.",
    )
    return d


def draw_ss_former():
    """One block of V2's SS-Former, and one of its cross-attention modules."""
    d = Diagram(1150, 770, "SS-Former (of --version v2)")
    d.panel(10, 48, 400, 760, "one block, of N", PLAIN)
    c = d.box(105, 115, "c_n", "condition; first c_0", width=165)
    e = d.box(300, 115, "e", "diffusion’s bottleneck", width=165)
    read = d.box(205, 245, "cross-attention 1", "q from e; k, v from c_n", "residual c_n; gives c̃_n", width=250)
    write = d.box(205, 375, "cross-attention 2", "q from c̃_n; k, v from e", "residual c̃_n; gives c_{n+1}", width=250)
    after = d.box(205, 495, "c_{n+1}", "to the next block; after the last: e + c_N", width=330)
    d.arrow(c.bottom, (c.x, read.top[1]))
    d.arrow(e.bottom, (300, read.top[1]))
    d.arrow(read.bottom, write.top)
    d.arrow(e.right, (388, 115), (388, 375), write.right)
    d.arrow(write.bottom, after.top)
    for i, line in enumerate(
        (
            "Without the filter the transforms cancel:",
            "F^{−1}(F(q) F(k)^{H}) = q k^{T},",
            "and both modules are plain cross-attentions.",
            "Modules start as no-ops (their last layers",
            "start at 0), so the whole starts as e + c_0,",
            "the sum of both embeddings, as in V1.",
        )
    ):
        d.note(30, 590 + 20 * i, line)

    d.panel(410, 48, 1140, 760, "inside one module, each step", STEP)
    query = d.box(540, 110, "query map", "[N, D, h, w]")
    context = d.box(860, 110, "context map", "[N, D, h, w]")
    q = d.box(540, 195, "q", "norm, positions, 1×1")
    k = d.box(760, 195, "k", "norm, positions, 1×1")
    v = d.box(960, 195, "v", "norm, 1×1")
    affinity = d.box(650, 285, "M = F(q) F(k)^{H} / √d", "2-D transforms over the positions", width=270)
    times = d.circle(650, 365, "×")
    band = ("1×1 convolutions over pairs of", "frequencies, scaled and shifted by t,", "then a sigmoid")
    filter = d.box(955, 365, "NBP-filter", *band, width=270)
    weights = d.box(650, 445, "F^{−1}, softmax", "over the keys", width=200)
    values = d.box(650, 525, "weights · v", "1×1, starts at 0", width=200)
    plus1 = d.circle(650, 595, "+")
    mlp = d.box(650, 660, "MLP", "norm, scaled and shifted by t; starts at 0", width=310)
    plus2 = d.circle(650, 730, "+")
    d.arrow(query.bottom, q.top)
    for box in (k, v):
        d.arrow(context.bottom, (860, 152), (box.x, 152), box.top)
    d.arrow(q.bottom, (540, affinity.top[1]))
    d.arrow(k.bottom, (760, affinity.top[1]))
    for a, b in ((affinity, times), (times, weights), (weights, values), (values, plus1), (plus1, mlp), (mlp, plus2)):
        d.arrow(a.bottom, b.top)
    d.arrow(filter.left, times.right)
    d.arrow(v.right, (1120, 195), (1120, 525), values.right)
    d.arrow((480, 595), plus1.left)
    d.note(425, 590, "residual")
    d.arrow((650, 622), (470, 622), (470, 730), plus2.left)
    d.arrow(plus2.right, (800, 730))
    d.note(808, 734, "c̃_n or c_{n+1}")
    return d


DIAGRAMS = {"v1": draw_v1, "v2": draw_v2, "unet": draw_unet, "ss_former": draw_ss_former}


def main():
    """Write each diagram beside this file."""
    for name, draw in DIAGRAMS.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
