"""How the gallery looks and what it does: its style sheet and its script, which load nothing."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
body { font: 14px system-ui, sans-serif; margin: 24px; background: #f6f6f4; color: #222 }
h1 { font-size: 18px } form { display: flex; gap: 8px; align-items: center; margin-bottom: 16px }
input, select { font: inherit; padding: 4px 8px } output { color: #666 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px; align-items: start }
figure { margin: 0; padding: 8px; background: #fff; border-radius: 8px; box-shadow: 0 1px 3px #0002;
  content-visibility: auto; contain-intrinsic-size: auto 260px }
figure[hidden] { display: none }
img, video { width: 100%; border-radius: 4px; display: block; margin-bottom: 6px; background: #eee; cursor: pointer }
figcaption { overflow-wrap: anywhere } q { quotes: none; color: #555 }
.failed, .blocked, .unknown { background: #fff1ee }
"""
"""Rows out of sight are not laid out, so that thousands of them scroll as well as ten."""

SCRIPT: Final = """
const form = document.forms[0], figures = [...document.querySelectorAll("figure")];
function filter() {
  const status = form.status.value, label = form.label?.value ?? "", text = form.text.value.toLowerCase();
  let shown = 0;
  for (const figure of figures) {
    const data = figure.dataset;
    const fits = (!status || data.status === status) && data.text.includes(text)
      && (!label || data.labels.split("\\n").includes(label));
    figure.hidden = !fits;
    shown += fits;
  }
  form.shown.value = `${shown} of ${figures.length}`;
}
const play = video => video.play().catch(() => {});
form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
document.addEventListener("mouseover", event => { if (event.target.matches?.("video")) play(event.target) });
document.addEventListener("mouseout", event => {
  if (event.target.matches?.("video") && !event.target.controls) event.target.pause();
});
document.addEventListener("click", event => {
  if (event.target.matches?.("video") && !event.target.controls) { event.target.controls = true; play(event.target) }
});
filter();
"""
"""Filters by status, label and text; clips play while the pointer is over them, and with controls once clicked."""
