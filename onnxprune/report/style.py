"""The style sheet of the HTML report: system fonts, light and dark, nothing from the network."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf9; --raised: #ffffff; --ink: #1c1b1a; --muted: #6d6a66; --faint: #a5a19b; --rule: #e5e1da;
  --kept: #1f6f6b; --cut: #e4dfd6; --good: #1f6f6b; --bad: #b3402a; --open: #9a7b1e;
  --note: #fbf3dc; --note-ink: #6b5310;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", Georgia, serif;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Code", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #141517; --raised: #1b1d20; --ink: #e8e5df; --muted: #a09c95; --faint: #6f6c67; --rule: #2d2f33;
    --kept: #5fb3ab; --cut: #34363b; --good: #5fb3ab; --bad: #e5806a; --open: #d3b35a;
    --note: #2b2615; --note-ink: #e3cd8d;
  }
  .s1 { --series: #e0935c !important; } .s2 { --series: #98a0ee !important; } .s3 { --series: #d98abb !important; }
  .s4 { --series: #aebf5b !important; } .s5 { --series: #a9a49b !important; }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 4.5rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 400 16px/1.55 var(--sans); font-variant-numeric: tabular-nums; -webkit-font-smoothing: antialiased;
}
main { max-width: 62rem; margin: 0 auto; }
h1 { font: 500 2.6rem/1.12 var(--serif); letter-spacing: -0.015em; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font: 500 1.5rem/1.25 var(--serif); margin: 0 0 .25rem; letter-spacing: -0.005em; }
h3 { font: 600 .8rem/1.4 var(--sans); color: var(--muted); margin: 1.75rem 0 .5rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
.verdict { font: 500 1.3rem/1.4 var(--serif); max-width: 48rem; margin: .9rem 0 .6rem; }
.lead { color: var(--muted); font-size: 1.06rem; margin-bottom: 2.75rem; }
section { margin-top: 3.75rem; }
section > p:first-of-type { color: var(--muted); margin-bottom: 1.25rem; }
.eyebrow { font-size: .82rem; color: var(--muted); margin-bottom: .9rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr));
  border-top: 1px solid var(--rule);
}
.figure { padding: 1.35rem 1.5rem 1.5rem 0; border-bottom: 1px solid var(--rule); }
.figure b { display: block; font: 500 2.15rem/1.15 var(--serif); letter-spacing: -0.02em; margin: .2rem 0 .3rem; }
.figure small { color: var(--muted); font-size: .86rem; line-height: 1.45; display: block; }
.figure .bar { margin-top: .8rem; max-width: 11rem; }
.name { font-size: .86rem; color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th {
  font-weight: 500; color: var(--muted); text-align: left; padding: .4rem 1.4rem .4rem 0;
  border-bottom: 1px solid var(--rule); white-space: nowrap;
}
td { padding: .42rem 1.4rem .42rem 0; border-bottom: 1px solid var(--rule); vertical-align: middle; }
tr:last-child > td { border-bottom: 0; }
tfoot td { color: var(--muted); border-top: 1px solid var(--rule); }
th.n, td.n { text-align: right; white-space: nowrap; }
td.wide { width: 38%; }
td .file { overflow-wrap: anywhere; }
.map td { padding-top: .36rem; padding-bottom: .36rem; border-bottom-color: transparent; }
.map .layer { color: var(--muted); white-space: nowrap; } .map .layer small { color: var(--faint); }
.unit { display: flex; align-items: center; gap: .9rem; min-width: 11rem; }
.unit + .unit { margin-top: .3rem; }
.unit .bar { flex: 0 0 11rem; height: 9px; }
.unit small { color: var(--muted); font-size: .8rem; white-space: nowrap; }
.unit .cells { flex: none; display: block; }
.many th, .many td { padding-right: 1rem; } .many .unit { min-width: 0; gap: .55rem; }
.many .unit .bar { flex-basis: 6rem; } .many .unit .cells { max-width: 11rem; height: auto; }
.gone { color: var(--bad); } .unit small.gone { color: var(--bad); }
.bar { display: block; height: 6px; border-radius: 3px; background: var(--cut); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--kept); border-radius: 3px; }
rect.on { fill: var(--kept); } rect.off { fill: var(--cut); }
.chart { display: block; width: 100%; height: auto; margin: .5rem 0 1rem; overflow: visible; min-width: 38rem; }
.chart text {
  font: 13px var(--sans); fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
}
.chart .tick, .chart .axis { font-size: 12px; fill: var(--muted); }
.chart .label { fill: var(--ink); } .chart .value { fill: var(--muted); }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .reference { stroke: var(--faint); stroke-width: 1.25; stroke-dasharray: 3 3; }
.chart .whisker { stroke: var(--kept); stroke-width: 2; stroke-linecap: round; opacity: .55; }
.chart .dot { fill: var(--kept); stroke: var(--paper); stroke-width: 1.5; }
.chart .path { fill: none; stroke: var(--kept); stroke-width: 1.75; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; font-size: .88rem; color: var(--muted); }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .45rem; }
.s0 { --series: var(--kept); } .s1 { --series: #b3612a; } .s2 { --series: #5a63b8; } .s3 { --series: #9b3f79; }
.s4 { --series: #6b7d1e; } .s5 { --series: #7b756d; } .legend i { background: var(--series); }
.chart .path, .chart .whisker.series { stroke: var(--series, var(--kept)); } .chart .dot.series { fill: var(--series); }
.chart .whisker.bad { stroke: var(--bad); } .chart .dot.bad { fill: var(--bad); }
.chart .whisker.open { stroke: var(--open); } .chart .dot.open { fill: var(--open); }
.chart.small { max-width: 34rem; min-width: 0; }
.chart .column { fill: var(--kept); } .chart .column.hollow { fill: var(--cut); stroke: var(--kept); }
.flips { list-style: none; margin: 0 0 1rem; padding: 0; border-top: 1px solid var(--rule); }
.flips li { display: flex; gap: 1.1rem; padding: .75rem 0; border-bottom: 1px solid var(--rule); }
.flips img { flex: none; align-self: flex-start; image-rendering: pixelated; border-radius: 4px; }
.flips li > div { min-width: 0; overflow-wrap: anywhere; }
.flips p { margin: 0 0 .25rem; max-width: 46rem; }
.answers { display: flex; flex-wrap: wrap; align-items: baseline; gap: .15rem 1.4rem; font-size: .92rem; }
.answers b { font-weight: 600; }
.answers small, .source { color: var(--muted); } .source { font-size: .8rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.broken { color: var(--bad); font-weight: 600; border-left: 4px solid var(--bad); padding-left: .8rem; }
.warnings {
  background: var(--note); color: var(--note-ink); border-radius: 6px; padding: 1rem 1.25rem;
  margin-top: 2rem; font-size: .94rem; overflow-wrap: anywhere;
}
.warnings ul { margin: 0; padding-left: 1.1rem; } .warnings li + li { margin-top: .35rem; }
ol.steps { margin: 1rem 0 0; padding-left: 1.4rem; }
ol.steps li { padding-left: .3rem; margin-bottom: 1.1rem; max-width: 46rem; }
ol.steps li::marker { color: var(--faint); }
code, pre { font: .84rem/1.5 var(--mono); }
ol.steps code {
  display: block; margin-top: .35rem; padding: .55rem .8rem; background: var(--raised);
  border: 1px solid var(--rule); border-radius: 5px; white-space: pre-wrap; overflow-wrap: anywhere;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.6rem; margin: 1rem 0; font-size: .92rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
details {
  border-top: 1px solid var(--rule); padding: .8rem 0;
}
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary {
  cursor: pointer; color: var(--muted);
}
summary:focus-visible { outline: 2px solid var(--kept); outline-offset: 3px; }
pre {
  margin: .8rem 0 .2rem; padding: 1rem; background: var(--raised); border: 1px solid var(--rule);
  border-radius: 5px; overflow-x: auto;
}
@media (max-width: 40rem) {
  body { padding: 2.5rem 1rem 3rem; } h1 { font-size: 1.7rem; } td.wide { display: none; }
  .figures { grid-template-columns: 1fr 1fr; } .figure b { font-size: 1.6rem; } .figure { padding-right: .8rem; }
  .chart { min-width: 0; } .chart.small text { font-size: 16px; } .chart.broad text { font-size: 21px; }
  .unit { min-width: 0; flex-direction: column; align-items: flex-start; gap: .1rem; }
  .unit .bar { flex: none; width: 4rem; height: 7px; } .unit .cells { max-width: 5.5rem; height: auto; }
  .unit small { white-space: normal; } .map .layer small { display: block; }
  .many .unit .bar { flex: none; width: 3rem; } .many .unit .cells { max-width: 3.4rem; }
  .map.many .layer, .map.many th { white-space: normal; } .many .layer small { overflow-wrap: anywhere; }
  th, td { padding-right: .8rem; } .map th, .map td { padding-right: .5rem; } .unit small { font-size: .75rem; }
  th.n, td.n { white-space: normal; } th:last-child, td:last-child { padding-right: 0; } .more { display: none; }
  dl { grid-template-columns: minmax(5rem, 9rem) 1fr; gap: .25rem 1rem; }
}
@media print { body { padding: 0; } details > *:not(summary) { display: block; } }
"""
