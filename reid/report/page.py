"""One HTML file that needs nothing else: text, tables, and pictures in a light and a dark version."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol, TypeAlias

from reid.core.atomic import write_text


class Draw(Protocol):
    """Any `plot_…` of this room with all but the path and the theme given."""

    def __call__(self, path: Path, *, dark: bool = False) -> Path:
        """Draw to `path`."""


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn when it is asked for.

    Attributes:
        name: for a file, such as "worst".
        title: what it shows, in a few words.
        caption: how to read it.
        draw: draws it to a path.
        photos: it holds photographs, which are embedded as WebP; other pictures are as SVG.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    photos: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of words under a head; all columns but the first are set to the right when `numbers` is true."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True


Block: TypeAlias = "str | Table | Drawing"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; a string is a paragraph. Level 2 sections are listed at the top."""

    title: str
    blocks: Sequence[Block]
    level: int = field(default=2)


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write the sections as one HTML page, whole or not at all.

    No script, no style sheet, no picture and no font comes from outside. The page is light or dark as the reader's
    system asks, and so are its pictures: each is embedded twice. All text is escaped.

    Raises:
        ReidError: a picture cannot be drawn, or the file cannot be written.
    """
    links, body = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, section in enumerate(sections, 1):
            tag, anchor = f"h{section.level}", f"part{number}"
            if section.level == 2:
                links.append(f'<a href="#{anchor}">{escape(section.title)}</a>')
            body.append(f'<{tag} id="{anchor}">{escape(section.title)}</{tag}>')
            body += [_block(block, Path(folder)) for block in section.blocks]
    head = f"<h1>{escape(title)}</h1>" + (f"<p>{escape(lead)}</p>" if lead else "")
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{head}\n"
        + (f"<nav>{' '.join(links)}</nav>\n" if len(links) > 1 else "")
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n",
    )
    return Path(path)


def _block(block: Block, folder: Path) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Drawing):
        light, dark = (_embedded(block, folder, dark) for dark in (False, True))
        return (
            "<figure><picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{escape(block.title)}"></picture>'
            f"<figcaption><b>{escape(block.title)}.</b> {escape(block.caption)}</figcaption></figure>"
        )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in block.rows
    )
    caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
    kind = "numbers" if block.numbers else "words"
    return (
        f'<div class="wide"><table class="{kind}">{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _embedded(drawing: Drawing, folder: Path, dark: bool) -> str:
    kind, suffix = ("webp", "webp") if drawing.photos else ("svg+xml", "svg")
    picture = drawing.draw(folder / f"picture.{suffix}", dark=dark)
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --soft: #5a6068; --line: #dddddd; --link: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e6e6e6; --soft: #a4acb5; --line: #3a4048; --link: #6fb8ea; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
p { max-width: 46rem; margin: .5rem 0; }
nav { margin: 1rem 0; } nav a { margin-right: 1rem; }
a { color: var(--link); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .35rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
table.numbers th + th, table.numbers td { text-align: right; white-space: nowrap; padding: .3rem .2rem .3rem 1.4rem; }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
"""
