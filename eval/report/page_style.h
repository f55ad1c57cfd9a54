// The style sheet of the HTML report: system fonts, one accent colour, light, dark, phone and paper.
#pragma once

namespace coppice::eval::report {

constexpr const char* kPageStyle = R"css(
:root{color-scheme:light dark;--paper:#fcfbf9;--raised:#fff;--ink:#1c2226;--muted:#5f686d;--faint:#8b9398;--line:#e4e2dc;--soft:#f3f1ec;--accent:#1d6b4c;--accent-soft:#dcebe3;--warn:#8a5a00;--warn-soft:#fbf1dc}
@media (prefers-color-scheme:dark){:root{--paper:#131618;--raised:#1a1e20;--ink:#e7e9e7;--muted:#a0a9ab;--faint:#7b8487;--line:#2b3134;--soft:#1d2224;--accent:#74c9a0;--accent-soft:#1f3a2e;--warn:#e3b45c;--warn-soft:#2f2818}}
*{box-sizing:border-box}
[hidden]{display:none!important}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
header,main,footer{max-width:1140px;margin:0 auto;padding:0 2rem}
header{padding-top:3.5rem}
h1,h2,h3{line-height:1.2;font-weight:600;letter-spacing:-.012em;margin:0}
h1{font-size:2.25rem;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:0 0 .35rem}
h3{font-size:1rem;letter-spacing:0;margin:1.6rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--accent)}
section{margin-top:3.5rem}
.eyebrow{color:var(--muted);font-size:.875rem;margin:0 0 .4rem}
.lead{font-size:1.125rem;line-height:1.5;color:var(--muted);margin-top:.9rem;overflow-wrap:anywhere}
.note,figcaption{color:var(--muted);font-size:.875rem}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
pre{overflow:auto;margin:.5rem 0;padding:1rem;background:var(--soft);border-radius:8px}
.skip,.sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.skip:focus{position:fixed;left:1rem;top:1rem;width:auto;height:auto;clip-path:none;padding:.5rem 1rem;background:var(--raised);z-index:9}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
.warnings{margin-top:2rem;padding:.9rem 1.2rem;background:var(--warn-soft);border-radius:8px;font-size:.9375rem}
.warnings h2{font-size:1rem;color:var(--warn)}
.warnings ul{margin:.3rem 0;padding-left:1.2rem}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:0 2.5rem;margin:2.6rem 0 0}
.tiles>div{border-top:1px solid var(--line);padding:.8rem 0 0}
.tiles dt{color:var(--muted);font-size:.875rem}
.tiles dd{margin:0}
.tiles .big{font-size:1.6rem;line-height:1.3;font-weight:600;letter-spacing:-.015em;white-space:nowrap}
.tiles .small{color:var(--muted);font-size:.875rem}
.good{color:var(--accent)}
.bar-top{display:flex;flex-wrap:wrap;gap:.5rem 2rem;align-items:flex-end;justify-content:space-between;margin-bottom:.75rem}
.controls{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:center;font-size:.9375rem}
.controls label{display:inline-flex;gap:.5rem;align-items:center;color:var(--muted)}
select,button.plain{font:inherit;color:var(--ink);background:var(--raised);border:1px solid var(--line);border-radius:7px;padding:.4rem .7rem;min-height:2.4rem;max-width:100%}
button.plain{cursor:pointer}
button.plain[aria-pressed=true]{background:var(--accent-soft);border-color:var(--accent)}
figure{margin:0}
#plot{position:relative}
#plot svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--muted);font-size:12.5px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .frontline{fill:none;stroke:var(--accent);stroke-width:1.75;stroke-linejoin:round}
svg .err{stroke:var(--faint);stroke-width:1;opacity:.75}
svg .mark{fill:var(--accent);fill-opacity:.82;stroke:var(--paper);stroke-width:1.25}
svg .tied .mark{fill:var(--paper);fill-opacity:.85;stroke:var(--accent);stroke-width:1.75}
svg .dominated .mark{fill:var(--faint);fill-opacity:.38;stroke:none}
svg .undone .mark{stroke:var(--ink);stroke-width:1.25;stroke-dasharray:2.5 2.5}
svg .dominated .err{opacity:.35}
svg .name{fill:var(--ink);stroke:var(--paper);stroke-width:3px;stroke-linejoin:round;paint-order:stroke}
svg .names{pointer-events:none}
svg .name.dominated{fill:var(--muted)}
svg .knee{fill:none;stroke:var(--accent);stroke-width:1.25}
svg .pt{cursor:pointer;outline:none}
svg .pt:focus-visible .halo,svg .pt:hover .halo{stroke:var(--ink);stroke-width:1.5}
svg .halo{fill:transparent}
.tip{position:absolute;z-index:3;width:max-content;max-width:min(21rem,92%);padding:.7rem .9rem;background:var(--raised);border:1px solid var(--line);border-radius:8px;box-shadow:0 6px 24px rgb(0 0 0/.14);font-size:.8125rem;line-height:1.45;pointer-events:none}
.tip strong{display:block;font-size:.875rem}
.tip span{display:block;color:var(--muted)}
.tip .fact{color:var(--ink);margin-top:.35rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;list-style:none;margin:.4rem 0 .6rem;padding:0}
.legend li{display:inline-flex;gap:.45rem;align-items:center}
.legend svg{width:22px;height:16px;flex:none}
#multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.9rem 1.5rem}
#multiples button{font:inherit;font-size:.875rem;line-height:1.3;color:var(--ink);text-align:left;background:none;border:0;border-top:2px solid var(--line);padding:.35rem 0;cursor:pointer;display:flex;flex-direction:column;justify-content:space-between;gap:.3rem}
#multiples button[aria-pressed=true]{border-color:var(--accent)}#multiples button:hover{border-color:var(--ink)}
#multiples svg{display:block;width:100%;height:auto}#multiples .mark{stroke-width:1}
.scroll{position:relative;overflow-x:auto;margin:.75rem 0 0;border-top:1px solid var(--line);border-bottom:1px solid var(--line)}
.scroll.tall{max-height:26rem;overflow:auto}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.875rem;line-height:1.4}
th,td{padding:.5rem .55rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child>th,tr:last-child>td{border-bottom:0}
thead th{font-weight:500;color:var(--muted);vertical-align:bottom;background:var(--paper)}
.tall thead th{position:sticky;top:0;z-index:1;box-shadow:inset 0 -1px var(--line)}
th.n,td.n{text-align:right;white-space:nowrap}
tbody th{font-weight:500}
.nw{white-space:nowrap}
.narrow{display:none}
#stage-table th:first-child{position:sticky;left:0;z-index:1;background:var(--paper);padding-left:0;min-width:9.5rem;max-width:14rem;overflow-wrap:anywhere}
#stage-table thead th{padding-top:.3rem;padding-bottom:.3rem}
#stage-table tr.undone td,#stage-table tr.undone tbody th,#stage-table tr.undone a{color:var(--muted)}
#stage-table tr.final th:first-child{box-shadow:inset 3px 0 var(--accent);padding-left:.75rem}
#stage-table th a{color:inherit;text-decoration-color:var(--line);text-underline-offset:3px}
.sub{display:block;color:var(--muted);font-size:.8125rem;font-weight:400}
button.sort{font:inherit;color:inherit;background:none;border:0;padding:.35rem 0;margin:0;cursor:pointer;text-align:inherit;line-height:1.25}
button.sort:hover{color:var(--ink)}
button.sort::after{content:"↕";display:inline-block;width:1em;margin-left:.15em;text-align:center;opacity:.35}
th[aria-sort=ascending] button.sort::after{content:"↑";opacity:1;color:var(--accent)}
th[aria-sort=descending] button.sort::after{content:"↓";opacity:1;color:var(--accent)}
.pv{color:var(--muted);font-size:.625rem;margin-left:.25rem;cursor:help;display:inline-block;width:.75rem;text-align:center;vertical-align:.08em;white-space:nowrap}.pv.modelled{font-size:.875rem;line-height:1;vertical-align:-.02em}
.share{display:block;height:2px;margin:.3rem 1rem .1rem auto;background:var(--line);width:4.2rem}
.share i{display:block;height:2px;background:var(--accent)}
#stage-table td.n .sub{margin-right:1rem}
#stage-table thead th.n{white-space:normal;min-width:5.4rem}#stage-table thead th.n button{padding-right:1rem;position:relative}#stage-table thead th.n button::after{position:absolute;right:0;bottom:.35rem;width:.9rem;margin:0}
.tag{display:inline-block;font-size:.75rem;line-height:1.3;padding:.1rem .5rem;border-radius:99px;border:1px solid var(--line);color:var(--muted);white-space:nowrap}
.tag.final{border-color:var(--accent);color:var(--accent)}
details.stage{border-top:1px solid var(--line)}
details.stage:last-of-type{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:.8rem 0;list-style-position:outside}
details.stage>summary{display:grid;grid-template-columns:1rem minmax(9rem,14rem) 1fr auto;gap:.2rem .9rem;align-items:baseline;list-style:none}
summary::-webkit-details-marker{color:var(--faint)}
details.stage>summary::-webkit-details-marker{display:none}
details.stage>summary::before{content:"›";color:var(--faint);transition:transform .15s}
details.stage[open]>summary::before{transform:rotate(90deg)}
summary .title{font-weight:600;overflow-wrap:anywhere}
summary .said{color:var(--muted);font-size:.9375rem;overflow-wrap:anywhere}
.body{padding:0 0 1.8rem 1.9rem}
.body details>summary{list-style-position:inside;color:var(--accent);font-size:.9375rem;padding:.5rem 0}
dl.pairs{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.25rem 1.6rem;margin:.5rem 0;font-size:.875rem}
dl.pairs dt{color:var(--muted)}
dl.pairs dd{margin:0;overflow-wrap:anywhere}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 3.5rem}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1rem 1.5rem;margin:.75rem 0 1.25rem}
.curves figure{margin:0}.curves figcaption{color:var(--ink);overflow-wrap:anywhere}
.curves svg{display:block;width:100%;height:auto}.curves polyline{fill:none;stroke:var(--accent);stroke-width:1.75;stroke-linejoin:round}.curves circle{fill:var(--accent)}
.marks{list-style:none;margin:.5rem 0;padding:0;font-size:.875rem}
.marks li{display:grid;grid-template-columns:1.4rem 6.5rem 1fr;color:var(--muted);padding:.1rem 0}
.marks b{color:var(--ink);font-weight:500}
footer{margin-top:4rem;padding-bottom:3rem;color:var(--muted);font-size:.875rem}
@media (max-width:860px){.tiles{grid-template-columns:1fr 1fr;gap:1.5rem 2rem}}
@media (max-width:600px){header,main,footer{padding-left:1.1rem;padding-right:1.1rem}header{padding-top:2rem}h1{font-size:1.75rem}.lead{font-size:1.05rem}section{margin-top:2.75rem}.tiles .big{font-size:1.3rem}.tiles{gap:1.25rem 1.25rem}
#multiples{grid-template-columns:1fr 1fr;gap:.9rem 1rem}.controls,.controls label,select{width:100%}.controls label{flex-direction:column;align-items:stretch;gap:.2rem}
#stage-table th:first-child{min-width:7.2rem;max-width:7.6rem;padding-right:.5rem}
.share,.wide{display:none}.narrow{display:inline}
details.stage>summary{grid-template-columns:.8rem 1fr auto}summary .said{grid-column:2/-1;grid-row:2}.body{padding-left:0}
dl.pairs{grid-template-columns:minmax(6rem,40%) 1fr;gap:.25rem 1rem}.tall table{min-width:41rem}}
@page{size:A4 landscape;margin:12mm;@bottom-right{content:counter(page) " / " counter(pages);font:8pt system-ui,sans-serif;color:#444}}
@media print{:root{--paper:#fff;--raised:#fff;--ink:#000;--muted:#444;--faint:#777;--line:#ccc;--soft:#f5f5f5;--accent:#1d6b4c;--accent-soft:#fff}
body{font-size:10.5pt}header,main,footer{max-width:none;padding:0}.controls,.skip,.tip,button.sort::after{display:none}.scroll,.scroll.tall{overflow:visible;max-height:none}section{margin-top:1.2rem}h1{font-size:20pt}.lead{font-size:11pt;margin-top:.4rem;max-width:none}.eyebrow{margin:0}.tiles{margin-top:.8rem}.tiles .big{font-size:15pt}
#plot svg{width:auto;max-width:100%;height:86mm;margin:0 auto}#multiples{grid-template-columns:repeat(6,1fr);gap:.5rem 1rem}#multiples button{font-size:8pt;break-inside:avoid}
summary,.body details>summary{padding:.3rem 0}.body{padding-bottom:.8rem}.body details:not([open]){display:none}table{font-size:7.5pt}.sub{font-size:6.5pt}th,td{padding:.25rem .3rem}#stage-table thead th.n{min-width:0}button.sort{padding:0!important}#stage-table th:first-child{position:static;min-width:24mm}.pv{font-size:6pt}.pv.modelled{font-size:8pt}.share,.wide{display:none}tr,figure,.tiles,details.stage>summary{break-inside:avoid}h2,h3{break-after:avoid}}
@media (prefers-reduced-motion:reduce){*{transition:none!important}}
)css";

}  // namespace coppice::eval::report
