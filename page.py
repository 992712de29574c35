"""One HTML file to send to a colleague: settings, tables with intervals, and the frames, pictures inside."""

import base64
import io
from dataclasses import dataclass
from html import escape

from PIL import Image

from outcomes import Difference

JPEG_QUALITY = 88
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #111; background: #fff; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 32px; } h3 { font-size: 15px; margin: 0; }
table { border-collapse: collapse; margin: 8px 0 20px; } caption { text-align: left; padding: 4px 0; }
th, td { border-bottom: 1px solid #ccc; padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .key { display: inline-block; margin: 0 20px 8px 0; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border: 3px solid; }
.bar { position: sticky; top: 0; background: #fff; padding: 8px 0; border-bottom: 1px solid #ccc; }
select { font: inherit; margin-right: 20px; }
section { margin: 16px 0; } figure { display: inline-block; margin: 0 6px 6px 0; vertical-align: top; }
figcaption { font-size: 13px; color: #333; } img { display: block; max-width: 100%; }
"""
SCRIPT = """
const condition = document.getElementById("condition"), people = document.getElementById("people");
function choose() {
  let shown = 0;
  for (const frame of document.querySelectorAll("section")) {
    const wanted = (!condition.value || frame.dataset.conditions.split(" ").includes(condition.value))
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
    """One HTML file with its pictures inside: settings, tables (a heading and rows under each caption) and the frames,
    to be filtered by condition and by who finds more."""
    conditions = sorted({condition for row in rows for condition in row.conditions})
    choices = "".join(f'<option value="{escape(one)}">{escape(one)}</option>' for one in conditions)
    keys = "".join(f'<span class="key"><i style="border-color:{colour}"></i>{escape(text)}</span>'
                   for text, colour in legend.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<h2>Settings</h2>
{html_table([["", ""], *([name, value] for name, value in settings.items())])}
<h2>Scores</h2>
{"".join(html_table(table, caption) for caption, table in tables.items())}
<h2>Frames</h2>
<p>{keys}</p>
<div class="bar">
<label>condition <select id="condition"><option value="">all</option>{choices}</select></label>
<label>people <select id="people"><option value="">all frames</option>
<option value="gained">found by a student, missed by the baseline</option>
<option value="lost">found by the baseline, missed by a student</option></select></label>
<span id="shown"></span></div>
{"".join(html_row(row, columns) for row in rows)}
<script>{SCRIPT}</script>
</body></html>
"""


def html_table(rows: list[list[str]], caption: str = "") -> str:
    """A heading and rows."""
    head, *others = ([escape(cell) for cell in row] for row in rows)
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in others)
    return (f'<div class="wide"><table><caption>{escape(caption)}</caption><tr><th>{"</th><th>".join(head)}</th></tr>'
            f"{body}</table></div>\n")


def html_row(row: Row, columns: list[str]) -> str:
    """A frame's heading and tiles."""
    figures = "".join(f'<figure><figcaption>{escape(column)}</figcaption><img alt="{escape(column)}" '
                      f'src="data:image/jpeg;base64,{jpeg(picture)}"></figure>'
                      for column, picture in zip(columns, row.tiles, strict=True))
    return (f'<section data-conditions="{escape(" ".join(row.conditions))}" data-gained="{row.difference.gained}" '
            f'data-lost="{row.difference.lost}"><h3>{escape(" | ".join([row.name, *row.conditions]))}: '
            f"{row.difference}</h3>\n{figures}</section>\n")


def jpeg(picture: Image.Image) -> str:
    """A picture as base64 text."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")
