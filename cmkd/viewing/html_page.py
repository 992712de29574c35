"""One HTML file to send to a colleague: tables with intervals, frames, settings, all inside."""

import base64
import io
from dataclasses import dataclass
from html import escape

from PIL import Image

from cmkd.viewing.outcomes import Disagreement

JPEG_QUALITY = 88
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #111; background: #fff; }
h1 { font-size: 24px; }
h2 { font-size: 19px; margin-top: 32px; }
h3 { font-size: 15px; margin: 0; }
table { border-collapse: collapse; margin: 8px 0 20px; font-size: 13px; }
caption { text-align: left; padding: 4px 0; }
th, td { border-bottom: 1px solid #ccc; padding: 3px 10px 3px 0; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .settings td { text-align: left; }
.settings td { white-space: normal; overflow-wrap: anywhere; }
.settings td:first-child { white-space: nowrap; }
nav a { margin-right: 20px; }
.wide { overflow-x: auto; }
.key { display: inline-block; margin: 0 20px 8px 0; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border: 3px solid; }
.bar { position: sticky; top: 0; background: #fff; padding: 8px 0; border-bottom: 1px solid #ccc; }
select { font: inherit; margin-right: 20px; }
section { margin: 16px 0; }
.row { display: flex; flex-wrap: wrap; gap: 6px; }
figure { flex: 1 1 220px; margin: 0; max-width: max-content; }
figcaption { font-size: 13px; color: #333; }
img { display: block; max-width: 100%; }
"""
SCRIPT = """
const condition = document.getElementById("condition");
const people = document.getElementById("people");
function choose() {
  let shown = 0;
  for (const frame of document.querySelectorAll("section")) {
    const conditions = frame.dataset.conditions.split("/");
    const wanted = (!condition.value || conditions.includes(condition.value))
      && (!people.value || Number(frame.dataset[people.value]) > 0);
    frame.hidden = !wanted;
    shown += wanted;
  }
  document.getElementById("shown").textContent = shown + " frames";
}
condition.onchange = people.onchange = choose;
choose();
"""


@dataclass(frozen=True)
class FrameRow:
    """A frame of the page, with a tile for each column."""

    name: str
    conditions: list[str]
    disagreement: Disagreement
    tiles: list[Image.Image]


def html_page(
    title: str,
    settings: dict[str, str],
    tables: dict[str, list[list[str]]],
    rows: list[FrameRow],
    columns: list[str],
    legend: dict[str, str],
) -> str:
    """The text of an HTML file with its pictures inside.

    It shows the tables (a heading and rows by caption), the frames, which a reader can filter by
    condition and by who finds more, and the settings.
    """
    conditions = sorted({condition for row in rows for condition in row.conditions})
    options = "".join(f'<option value="{escape(one)}">{escape(one)}</option>' for one in conditions)
    legend_html = "".join(
        f'<span class="key"><i style="border-color:{colour}"></i>{escape(text)}</span>'
        for text, colour in legend.items()
    )
    tables_html = "".join(html_table(table, caption) for caption, table in tables.items())
    rows_html = "".join(html_row(row, columns) for row in rows)
    settings_html = "".join(html_cells([name, value]) for name, value in settings.items())
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<nav><a href="#scores">Scores</a><a href="#frames">Frames</a><a href="#settings">Settings</a></nav>
<h2 id="scores">Scores</h2>
{tables_html}
<h2 id="frames">Frames</h2>
<p>{legend_html}</p>
<div class="bar">
<label>condition <select id="condition"><option value="">all</option>{options}</select></label>
<label>people <select id="people"><option value="">all frames</option>
<option value="gained">found by a student, missed by the baseline</option>
<option value="lost">found by the baseline, missed by a student</option>
<option value="any">found by some networks only</option></select></label>
<span id="shown"></span></div>
{rows_html}
<h2 id="settings">Settings</h2>
<table class="settings">{settings_html}</table>
<script>{SCRIPT}</script>
</body></html>
"""


def html_table(rows: list[list[str]], caption: str) -> str:
    """A table of a heading and rows."""
    heading, *others = rows
    rows_html = html_cells(heading, "th") + "".join(html_cells(row) for row in others)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>{rows_html}</table></div>\n'
    )


def html_cells(row: list[str], tag: str = "td") -> str:
    """A row of a table."""
    cells = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
    return f"<tr>{cells}</tr>"


def html_row(row: FrameRow, columns: list[str]) -> str:
    """A frame's heading and tiles."""
    figures = "".join(
        f'<figure><figcaption>{escape(column)}</figcaption><img alt="{escape(column)}" '
        f'src="data:image/jpeg;base64,{jpeg_base64(tile)}"></figure>'
        for column, tile in zip(columns, row.tiles, strict=True)
    )
    conditions, counts = escape("/".join(row.conditions)), row.disagreement
    heading = f"{' | '.join([row.name, *row.conditions])}: {counts}"
    return (
        f'<section data-conditions="{conditions}" data-gained="{counts.gained}" '
        f'data-lost="{counts.lost}" data-any="{counts.any_two}">'
        f"<h3>{escape(heading)}</h3>\n"
        f'<div class="row">{figures}</div></section>\n'
    )


def jpeg_base64(picture: Image.Image) -> str:
    """A picture as a JPEG in base64."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")
