"""The style of the page: quiet, for light and dark screens and for paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fcfcfa; --ink: #1d1f21; --quiet: #6a6e73; --line: #e2e2dd;
  --fused: #1f7a5c; --alone: #b06a13;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #17191b; --ink: #e4e4e0; --quiet: #92979c; --line: #303437;
    --fused: #5cc19c; --alone: #dfa253;
  }
}
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 58rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
code { font: 0.9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
h1 { font-size: 1.9rem; font-weight: 600; letter-spacing: -0.015em; margin: 0 0 1.25rem; }
h2 {
  font-size: 0.8rem; font-weight: 600; letter-spacing: 0.08em; text-transform: uppercase;
  color: var(--quiet); margin: 3.25rem 0 0;
}
h3 {
  display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 0.75rem;
  font-size: 1rem; font-weight: 600; margin: 0;
}
h3 span, h3 .source { font-weight: 400; font-size: 0.85rem; color: var(--quiet); }
h3 .source { margin-left: auto; }
h3 code { overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 0.25rem 3rem; }
.figures p { margin: 0; color: var(--quiet); }
.figures strong { color: var(--ink); font-size: 1.35rem; font-weight: 600; margin-right: 0.3rem; }
.share { height: 6px; border-radius: 3px; background: var(--alone); margin-top: 1.25rem; overflow: hidden; }
.share span { display: block; height: 100%; background: var(--fused); }
aside { border-left: 3px solid var(--alone); padding: 0.1rem 0 0.1rem 1rem; margin-top: 1.75rem; }
article { padding: 1.4rem 0 1.5rem; border-bottom: 1px solid var(--line); break-inside: avoid; }
article:last-child { border-bottom: 0; }
article p { margin: 0.5rem 0 0; max-width: 46rem; }
article .equation {
  max-width: none; margin: 1rem 0 1.1rem; padding-left: 2rem; text-indent: -2rem; line-height: 2.3;
  overflow-x: auto;
}
math {
  font: 1.03rem "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math;
  text-indent: 0;
}
.advice b { font-weight: 600; color: var(--alone); margin-right: 0.35rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.75rem 2rem; margin: 0; }
dt { color: var(--quiet); font-size: 0.8rem; }
dt math { font-size: 0.85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.tree, .tree ul { list-style: none; margin: 0; padding: 0; }
.tree { margin-top: 1.2rem; }
.tree ul { margin-left: 0.42rem; padding-left: 1.1rem; border-left: 1px solid var(--line); }
.tree li { padding: 0.08rem 0; }
.tree li > code:first-child, .tree li > span:first-child { margin-left: 1.05rem; }
.tree span { color: var(--quiet); }
summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before {
  content: ""; display: inline-block; width: 0.36rem; height: 0.36rem; margin: 0 0.55rem 0.12rem 0.12rem;
  border: solid var(--quiet); border-width: 0 1.5px 1.5px 0; transform: rotate(-45deg);
}
details[open] > summary::before { transform: rotate(45deg); margin-bottom: 0.2rem; }
a { text-decoration: none; font-size: 0.85rem; }
a:hover { text-decoration: underline; }
a::before {
  content: ""; display: inline-block; width: 0.5rem; height: 0.5rem; border-radius: 50%;
  margin-right: 0.35rem;
}
.fused { color: var(--fused); }
.fused::before { background: var(--fused); }
.alone { color: var(--alone); }
.alone::before { border: 1.5px solid; box-sizing: border-box; }
:target { scroll-margin-top: 2rem; text-decoration: underline; text-underline-offset: 0.3em; }
@media print {
  :root { --ground: #fff; --ink: #000; --quiet: #555; --line: #ccc; --fused: #1f7a5c; --alone: #b06a13; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .share, .share span { print-color-adjust: exact; }
}
"""
