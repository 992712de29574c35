"""One HTML file to send to a colleague: tables with intervals, the frames, pictures inside, and the settings."""

import base64
import io
from dataclasses import dataclass
from html import escape

from PIL import Image

from cmkd.viewing.outcomes import Difference

JPEG_QUALITY = 88
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #111; background: #fff; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 32px; } h3 { font-size: 15px; margin: 0; }
table { border-collapse: collapse; margin: 8px 0 20px; font-size: 13px; } caption { text-align: left; padding: 4px 0; }
th, td { border-bottom: 1px solid #ccc; padding: 3px 10px 3px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .settings td { text-align: left; }
.settings td { white-space: normal; overflow-wrap: anywhere; } .settings td:first-child { white-space: nowrap; }
nav a { margin-right: 20px; }
.wide { overflow-x: auto; } .key { display: inline-block; margin: 0 20px 8px 0; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border: 3px solid; }
.bar { position: sticky; top: 0; background: #fff; padding: 8px 0; border-bottom: 1px solid #ccc; }
select { font: inherit; margin-right: 20px; }
section { margin: 16px 0; } .row { display: flex; flex-wrap: wrap; gap: 6px; }
figure { flex: 1 1 220px; margin: 0; max-width: max-content; }
figcaption { font-size: 13px; color: #333; } img { display: block; max-width: 100%; }
"""
SCRIPT = """
const condition = document.getElementById("condition"), people = document.getElementById("people");
function choose() {
  let shown = 0;
  for (const frame of document.querySelectorAll("section")) {
    const wanted = (!condition.value || frame.dataset.conditions.split("/").includes(condition.value))
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
class Row:
    """A frame of the page: its tiles stand under the detectors' titles."""

    name: str
    conditions: list[str]
    difference: Difference
    tiles: list[Image.Image]


def page(title: str, settings: dict[str, str], tables: dict[str, list[list[str]]], rows: list[Row], columns: list[str],
         legend: dict[str, str]) -> str:
    """One HTML file with its pictures inside: tables (a heading and rows under each caption), the frames, to be
    filtered by condition and by who finds more, and the settings."""
    conditions = sorted({condition for row in rows for condition in row.conditions})
    choices = "".join(f'<option value="{escape(one)}">{escape(one)}</option>' for one in conditions)
    keys = "".join(f'<span class="key"><i style="border-color:{colour}"></i>{escape(text)}</span>'
                   for text, colour in legend.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<nav><a href="#scores">Scores</a><a href="#frames">Frames</a><a href="#settings">Settings</a></nav>
<h2 id="scores">Scores</h2>
{"".join(html_table(table, caption) for caption, table in tables.items())}
<h2 id="frames">Frames</h2>
<p>{keys}</p>
<div class="bar">
<label>condition <select id="condition"><option value="">all</option>{choices}</select></label>
<label>people <select id="people"><option value="">all frames</option>
<option value="gained">found by a student, missed by the baseline</option>
<option value="lost">found by the baseline, missed by a student</option>
<option value="any">found by some networks only</option></select></label>
<span id="shown"></span></div>
{"".join(html_row(row, columns) for row in rows)}
<h2 id="settings">Settings</h2>
<table class="settings">{"".join(html_cells([name, value]) for name, value in settings.items())}</table>
<script>{SCRIPT}</script>
</body></html>
"""


def html_table(rows: list[list[str]], caption: str) -> str:
    """A heading and rows."""
    head, *others = rows
    return (f'<div class="wide"><table><caption>{escape(caption)}</caption>{html_cells(head, "th")}'
            f"{''.join(html_cells(row) for row in others)}</table></div>\n")


def html_cells(row: list[str], tag: str = "td") -> str:
    """A row of a table."""
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>"


def html_row(row: Row, columns: list[str]) -> str:
    """A frame's heading and tiles."""
    figures = "".join(f'<figure><figcaption>{escape(column)}</figcaption><img alt="{escape(column)}" '
                      f'src="data:image/jpeg;base64,{jpeg(picture)}"></figure>'
                      for column, picture in zip(columns, row.tiles, strict=True))
    return (f'<section data-conditions="{escape("/".join(row.conditions))}" data-gained="{row.difference.gained}" '
            f'data-lost="{row.difference.lost}" data-any="{row.difference.any_two}">'
            f'<h3>{escape(" | ".join([row.name, *row.conditions]))}: {row.difference}</h3>\n'
            f'<div class="row">{figures}</div></section>\n')


def jpeg(picture: Image.Image) -> str:
    """A picture as base64 text."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")
