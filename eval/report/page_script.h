// The script of the HTML report: draws the Pareto picture from the embedded JSON, sorts the table. It makes text only
// by textContent and attributes by setAttribute, so that nothing in the data can become markup.
#pragma once

namespace coppice::eval::report {

constexpr const char* kPageScript = R"js(
(function () {
"use strict";
var data = JSON.parse(document.getElementById("data").textContent);
var MARKS = data.marks, NAMES = data.provenances;
var STATUS = ["front", "tied", "dominated"];

// ---- numbers, as in the tables
var PREFIX = {
  B: [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
  s: [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]],
  J: [[1e6, "MJ"], [1e3, "kJ"], [1, "J"], [1e-3, "mJ"], [1e-6, "µJ"], [1e-9, "nJ"]],
  g: [[1e6, "t"], [1e3, "kg"], [1, "g"], [1e-3, "mg"], [1e-6, "µg"], [1e-9, "ng"]],
  W: [[1e3, "kW"], [1, "W"], [1e-3, "mW"]],
  "1": [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]
};
function digits(v, n) {
  if (v === 0) return "0";
  var d = Math.max(0, n - 1 - Math.floor(Math.log10(Math.abs(v))));
  if (d > 0 && Math.abs(+v.toFixed(d)) >= Math.pow(10, n - d)) d--;
  return v.toFixed(d);
}
function quantity(v, unit, tick) {
  var table = PREFIX[unit], chosen = null;
  if (!table) return (tick ? "" + +v.toPrecision(6) : digits(v, 3)) + (unit && unit !== "1" ? " " + unit : "");
  for (var i = 0; i < table.length && !chosen; i++) if (Math.abs(v) / table[i][0] >= 0.9995) chosen = table[i];
  chosen = chosen || table[table.length - 1];
  var s = v / chosen[0], text = tick ? "" + +s.toPrecision(6) : digits(s, 3);
  return text + (chosen[1] ? " " + chosen[1] : "");
}
function points(v, tick) {
  var q = data.quality;
  if (q.unit === "%") return (tick ? "" + +v.toFixed(6) : v.toFixed(2)) + " %";
  v = q.loss ? -v : v;
  return tick ? "" + +v.toPrecision(6) : digits(v, 4);
}
function factor(r) { return r.toFixed(r >= 9.95 ? 0 : r >= 1.995 ? 1 : 2) + "×"; }

// ---- small tools
function svg(name, attributes, children) { return make(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children); }
function html(name, attributes, children) { return make(document.createElement(name), attributes, children); }
function make(node, attributes, children) {
  for (var key in attributes || {}) node.setAttribute(key, attributes[key]);
  (children || []).forEach(function (child) { node.appendChild(typeof child === "string" ? document.createTextNode(child) : child); });
  return node;
}
function niceTicks(low, high, count) {
  var raw = (high - low) / count, power = Math.pow(10, Math.floor(Math.log10(raw))), step = power * 10;
  [5, 2, 1].forEach(function (m) { if (power * m >= raw) step = power * m; });
  var ticks = [];
  for (var i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}
function logTicks(low, high, room) {
  var sets = [[1], [1, 2, 5], [1, 2, 3, 5, 7], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]], best = null;
  sets.forEach(function (set) {
    var ticks = [];
    for (var e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      set.forEach(function (m) { var t = m * Math.pow(10, e); if (t >= low && t <= high) ticks.push(t); });
    if (ticks.length <= room || !best) best = ticks;
  });
  return best.length >= 2 ? best : niceTicks(low, high, Math.min(4, room));
}

// ---- the picture
var plot = document.getElementById("plot"), select = document.getElementById("measure"), upSelect = document.getElementById("up"), zoomButton = document.getElementById("zoom");
var caption = document.getElementById("plot-note"), tip = null, zoomed = data.zoomed;

function measureOf(key) {
  for (var i = 0; i < data.measures.length; i++) if (data.measures[i].key === key) return data.measures[i];
  return null;
}
// What is drawn: a measure across and, up, quality or another measure. A point is [model, status, x, its low, high and
// provenance, models that dominate it, y, its low, high and provenance]. Against quality the report itself says who is on
// the front; for two measures the same rules are applied here.
function current() {
  var across = measureOf(select.value) || data.measures[0], up = upSelect && measureOf(upSelect.value);
  if (!up || up === across)
    return Object.assign({}, across, { up: null, points: across.points.map(function (p) {
      var point = data.points[p[0]];
      return p.concat([point.y[0], point.y[1], point.y[2], point.py]);
    }) });
  var byModel = {};
  up.points.forEach(function (p) { byModel[p[0]] = p; });
  var points = across.points.filter(function (p) { return byModel[p[0]]; }).map(function (p) {
    var y = byModel[p[0]];
    return [p[0], 0, p[2], p[3], p[4], p[5], [], y[2], y[3], y[4], y[5]];
  });
  points.forEach(function (b) {
    points.forEach(function (a) {
      if (a[4] <= b[3] && a[9] <= b[8] && (a[4] < b[3] || a[9] < b[8])) { b[1] = 2; b[6].push(a[0]); }
      else if (b[1] === 0 && a[2] <= b[2] && a[7] <= b[7] && (a[2] < b[2] || a[7] < b[7])) b[1] = 1;
    });
    b[6] = b[6].slice(0, 4);
  });
  var front = points.filter(function (p) { return p[1] === 0; }).sort(function (a, b) { return a[2] - b[2]; });
  var at = kneeOf(front, points);
  return { key: across.key, name: across.name, unit: across.unit, better: across.better, worse: across.worse, up: up, points: points,
    front: front.map(function (p) { return p[0]; }), knee: at === null ? null : front[at][0],
    note: front.length + (front.length === 1 ? " model is" : " models are") + " on the front" + (at === null ? "." : "; its knee, the best exchange of one for the other, is " + data.points[front[at][0]].label + ".") };
}
// The point of the front farthest below the line between its ends; an axis of positive values counts as it is drawn.
function kneeOf(front, points) {
  function seen(at) {
    var log = points.every(function (p) { return p[at] > 0; });
    return front.map(function (p) { return log ? Math.log10(p[at]) : p[at]; });
  }
  var x = seen(2), y = seen(7), n = front.length;
  if (n < 3 || !(x[n - 1] > x[0]) || !(y[0] > y[n - 1])) return null;
  var best = null, depth = 1e-9;
  for (var i = 0; i < n; i++) {
    var below = 1 - (x[i] - x[0]) / (x[n - 1] - x[0]) - (y[i] - y[n - 1]) / (y[0] - y[n - 1]);
    if (below > depth) { depth = below; best = i; }
  }
  return best;
}
function star(x, y, r) {
  var d = "";
  for (var i = 0; i < 10; i++) {
    var a = Math.PI * (i / 5 - 0.5), k = i % 2 ? r * 0.45 : r;
    d += (i ? "L" : "M") + (x + k * Math.cos(a)).toFixed(1) + " " + (y + k * Math.sin(a)).toFixed(1);
  }
  return d + "Z";
}
function describe(measure, p) {
  var point = data.points[p[0]], lines = [], q = data.quality;
  var head = point.label + (point.final ? " (final)" : point.kept ? "" : " (not kept)");
  function shown(v) { return measure.up ? quantity(v, measure.up.unit) : points(v); }
  var y = (measure.up ? measure.up.name : q.name) + " " + shown(p[7]) + (p[9] > p[8] ? ", " + shown(p[8]) + " to " + shown(p[9]) : "");
  lines.push(["fact", y], ["", MARKS[p[10]] + " " + NAMES[p[10]]]);
  var base = null;
  if (point.base !== null) measure.points.forEach(function (o) { if (o[0] === point.base) base = o; });
  var x = measure.name + " " + quantity(p[2], measure.unit) + (p[4] > p[3] ? ", " + quantity(p[3], measure.unit) + " to " + quantity(p[4], measure.unit) : "");
  if (base && base !== p && base[2] > 0 && p[2] > 0) {
    var r = base[2] / p[2];
    x += Math.abs(r - 1) < 0.005 ? "; the same as the baseline" : "; " + (r > 1 ? factor(r) + " " + measure.better : factor(1 / r) + " " + measure.worse);
  }
  lines.push(["fact", x], ["", MARKS[p[5]] + " " + NAMES[p[5]]]);
  if (point.bytes !== null && measure.key !== "file_bytes" && (!measure.up || measure.up.key !== "file_bytes")) lines.push(["fact", "File " + quantity(point.bytes, "B")]);
  var verdict = measure.knee === p[0] ? "On the front, and its knee" : p[1] === 0 ? "On the front" :
    p[1] === 1 ? "Tied: another model is better in value, but not beyond the uncertainty" :
    "Dominated by " + p[6].map(function (i) { return data.points[i].label; }).slice(0, 3).join(", ") + (p[6].length > 3 ? " and others" : "");
  lines.push(["fact", verdict]);
  return { head: head, lines: lines };
}
function showTip(node, measure, p, x, y) {
  hideTip();
  var text = describe(measure, p);
  tip = html("div", { "class": "tip", "aria-hidden": "true" }, [html("strong", {}, [text.head])].concat(text.lines.map(function (l) {
    return html("span", l[0] ? { "class": l[0] } : {}, [l[1]]);
  })));
  plot.appendChild(tip);
  var w = plot.clientWidth, tw = tip.offsetWidth, th = tip.offsetHeight;
  tip.style.left = Math.max(0, Math.min(w - tw, x + 18 + tw > w ? x - tw - 18 : x + 18)) + "px";
  tip.style.top = Math.max(0, y - th / 2) + "px";
}
function hideTip() { if (tip) { tip.remove(); tip = null; } }

function draw() {
  hideTip();
  if (!data.measures.length) return;
  var measure = current(), W = Math.max(280, plot.clientWidth), H = Math.round(Math.max(330, Math.min(480, W * 0.5)));
  var narrow = W < 560, m = { l: 58, r: 14, t: 30, b: 58 };
  var shown = measure.points.filter(function (p) { return !zoomed || measure.up || data.points[p[0]].y[0] >= data.zoom; });
  var hidden = measure.points.length - shown.length;
  if (!shown.length) shown = measure.points;
  var log = shown.every(function (p) { return p[2] > 0 && p[3] > 0; });
  var logUp = measure.up && shown.every(function (p) { return p[7] > 0 && p[8] > 0; });
  var x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  shown.forEach(function (p) {
    x0 = Math.min(x0, p[3]); x1 = Math.max(x1, p[4]); y0 = Math.min(y0, p[8]); y1 = Math.max(y1, p[9]);
  });
  function same(v) { return v; }
  function tenTo(v) { return Math.pow(10, v); }
  var f = log ? Math.log10 : same, g = log ? tenTo : same, h = logUp ? Math.log10 : same;
  var span = f(x1) - f(x0), padding = span > 0 ? span * (narrow ? 0.11 : 0.08) : log ? 0.15 : Math.abs(x0) * 0.2 || 1;
  if (log && span + 2 * padding < 0.12) padding = (0.12 - span) / 2;
  x0 = g(f(x0) - padding); x1 = g(f(x1) + padding);
  span = h(y1) - h(y0); padding = span > 0 ? span * 0.09 : logUp ? 0.15 : Math.abs(y0) * 0.02 || 1;
  if (logUp && span + 2 * padding < 0.12) padding = (0.12 - span) / 2;
  y0 = (logUp ? tenTo : same)(h(y0) - padding); y1 = (logUp ? tenTo : same)(h(y1) + padding);
  if (!measure.up && data.quality.unit === "%") { y1 = Math.min(y1, 100 + padding * 0.4); }
  function X(v) { return m.l + (f(v) - f(x0)) / (f(x1) - f(x0)) * (W - m.l - m.r); }
  function Y(v) { return m.t + (h(y1) - h(v)) / (h(y1) - h(y0)) * (H - m.t - m.b); }

  var root = svg("svg", { viewBox: "0 0 " + W + " " + H, role: "group", "aria-labelledby": "plot-title" });
  root.appendChild(svg("title", { id: "plot-title" }, [(measure.up ? measure.up.name : data.quality.name) + " against " + measure.name.toLowerCase() + ", " + shown.length + " models"]));
  (logUp ? logTicks(y0, y1, 6) : niceTicks(y0, y1, 6)).forEach(function (t) {
    root.appendChild(svg("line", { "class": "grid", x1: m.l, x2: W - m.r, y1: Y(t), y2: Y(t) }));
    root.appendChild(svg("text", { x: m.l - 8, y: Y(t) + 4, "text-anchor": "end" }, [measure.up ? quantity(t, measure.up.unit, true) : points(t, true)]));
  });
  var ticks = log ? logTicks(x0, x1, Math.max(3, Math.floor((W - m.l) / 78))) : niceTicks(x0, x1, Math.max(3, Math.floor((W - m.l) / 110)));
  ticks.forEach(function (t) {
    root.appendChild(svg("line", { "class": "grid", x1: X(t), x2: X(t), y1: m.t, y2: H - m.b }));
    var half = quantity(t, measure.unit, true).length * 3.6;
    var anchor = X(t) + half > W ? "end" : "middle";
    root.appendChild(svg("text", { x: anchor === "end" ? W : X(t), y: H - m.b + 18, "text-anchor": anchor }, [quantity(t, measure.unit, true)]));
  });
  root.appendChild(svg("text", { x: 0, y: 13 }, [measure.up ? "↓ " + measure.up.name + (logUp ? ", log scale" : "") : "↑ " + data.quality.name + (data.quality.loss ? ", lower is better" : "")]));
  root.appendChild(svg("text", { x: W - m.r, y: H - 12, "text-anchor": "end" }, ["← " + measure.name + (log ? ", log scale" : "")]));

  // Bubbles: area by file size.
  var bytes = shown.map(function (p) { return data.points[p[0]].bytes || 0; }), most = Math.max.apply(null, bytes.concat([1]));
  function radius(point) { return point.bytes ? Math.max(4.5, (narrow ? 12 : 15) * Math.sqrt(point.bytes / most)) : 6; }

  var byPoint = {};
  shown.forEach(function (p) { byPoint[p[0]] = p; });
  var line = measure.front.filter(function (i) { return byPoint[i]; }).map(function (i) {
    return X(byPoint[i][2]).toFixed(1) + "," + Y(byPoint[i][7]).toFixed(1);
  });
  if (line.length > 1) root.appendChild(svg("polyline", { "class": "frontline", points: line.join(" ") }));

  // Large and dominated ones first, so that nothing hides a small one on the front.
  var order = shown.slice().sort(function (a, b) { return b[1] - a[1] || radius(data.points[b[0]]) - radius(data.points[a[0]]) || a[0] - b[0]; });
  var boxes = order.map(function (p) {
    var point = data.points[p[0]], r = point.baseline ? 11 : radius(point), x = X(p[2]), y = Y(p[7]);
    return { x0: x - r - 1, x1: x + r + 1, y0: y - r - 1, y1: y + r + 1 };
  });
  var marks = {};
  order.forEach(function (p) {
    var point = data.points[p[0]], x = X(p[2]), y = Y(p[7]), r = point.baseline ? 10 : radius(point);
    var text = describe(measure, p);
    var node = svg("g", { "class": "pt " + STATUS[p[1]] + (point.kept ? "" : " undone"), tabindex: "0", role: "link",
      "aria-label": text.head + ". " + text.lines.map(function (l) { return l[1]; }).join(". ") + "." });
    if (p[4] > p[3]) node.appendChild(svg("line", { "class": "err", x1: X(p[3]), x2: X(p[4]), y1: y, y2: y }));
    if (p[9] > p[8]) node.appendChild(svg("line", { "class": "err", x1: x, x2: x, y1: Y(p[8]), y2: Y(p[9]) }));
    if (measure.knee === p[0]) node.appendChild(svg("circle", { "class": "knee", cx: x, cy: y, r: r + 5 }));
    node.appendChild(point.baseline ? svg("path", { "class": "mark", d: star(x, y, r + 1) }) : svg("circle", { "class": "mark", cx: x, cy: y, r: r }));
    node.appendChild(svg("circle", { "class": "halo", cx: x, cy: y, r: Math.max(r + 3, 12) }));
    node.addEventListener("mouseenter", function () { showTip(node, measure, p, x, y); });
    node.addEventListener("mouseleave", hideTip);
    node.addEventListener("focus", function () { showTip(node, measure, p, x, y); });
    node.addEventListener("blur", hideTip);
    node.addEventListener("click", function () { open(point.anchor); });
    node.addEventListener("keydown", function (e) { if (e.key === "Enter") open(point.anchor); });
    marks[p[0]] = { node: node, x: x, y: y, r: r };
    root.appendChild(node);
  });

  // Names: the front first; the first free place around the point, the whole name, then its number alone.
  var taken = boxes.slice();
  // The front's line is kept clear by boxes along it.
  for (var s = 1; s < line.length; s++) {
    var a = line[s - 1].split(",").map(Number), b = line[s].split(",").map(Number), n = Math.ceil(Math.hypot(b[0] - a[0], b[1] - a[1]) / 8);
    for (var k = 1; k < n; k++) {
      var px = a[0] + (b[0] - a[0]) * k / n, py = a[1] + (b[1] - a[1]) * k / n;
      taken.push({ x0: px - 2, x1: px + 2, y0: py - 2, y1: py + 2 });
    }
  }
  plot.replaceChildren(root);
  var probe = svg("text", {}, [""]), names = svg("g", { "class": "names", "aria-hidden": "true" });
  root.appendChild(probe);
  root.appendChild(names);
  function write(p, text, x, y, anchor) {
    names.appendChild(svg("text", { "class": "name " + STATUS[p[1]], x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor }, [text]));
  }
  order.slice().sort(function (a, b) { return a[1] - b[1] || a[0] - b[0]; }).forEach(function (p) {
    var point = data.points[p[0]], mark = marks[p[0]], done = false;
    var extra = measure.knee === p[0] ? 6 : 1;
    // On a phone names would drift away from their points: numbers, which the table explains, and the two that matter by name.
    var full = !narrow || !point.number || point.final;
    var texts = full ? [point.label + (measure.knee === p[0] ? " (knee)" : ""), point.label, point.number] : [point.number];
    texts.filter(function (t, i) { return t && texts.indexOf(t) === i; }).forEach(function (text) {
      if (done) return;
      probe.textContent = text;
      // A whole name stays beside its point; a number may go farther out, tied to it by a line.
      for (var ring = 0; ring < (text === point.number ? 4 : 1) && !done; ring++) placeAt(mark.r + 5 + extra + 11 * ring, ring > 0);
      function placeAt(d, tied) {
      var w = probe.getComputedTextLength(), q = d * 0.72;
      var places = [[d, 4.5, "start"], [-d, 4.5, "end"], [0, -d - 2, "middle"], [0, d + 11, "middle"], [q, -q, "start"], [q, q + 9, "start"], [-q, -q, "end"], [-q, q + 9, "end"]];
      places.forEach(function (place) {
        if (done) return;
        var x = mark.x + place[0], y = mark.y + place[1], left = place[2] === "start" ? x : place[2] === "end" ? x - w : x - w / 2;
        var box = { x0: left - 2, x1: left + w + 2, y0: y - 11.5, y1: y + 3.5 };
        if (box.x0 < m.l - 2 || box.x1 > W || box.y0 < m.t - 14 || box.y1 > H - m.b) return;
        var free = taken.every(function (o) { return o.x1 <= box.x0 || o.x0 >= box.x1 || o.y1 <= box.y0 || o.y0 >= box.y1; });
        if (!free) return;
        taken.push(box);
        if (tied) names.appendChild(svg("line", { "class": "err", x1: mark.x, y1: mark.y, x2: Math.max(box.x0, Math.min(box.x1, mark.x)), y2: Math.max(box.y0, Math.min(box.y1, mark.y)) }));
        write(p, text, x, y, place[2]);
        done = true;
      });
      }
    });
    if (!done) write(p, point.number || point.label, mark.x + mark.r + 4, mark.y + 4.5, "start");
  });
  probe.remove();
  caption.textContent = measure.note + (hidden ? " " + hidden + (hidden === 1 ? " model of much lower quality is" : " models of much lower quality are") + " not shown." : "");
}
// ---- small pictures, one per measure: quality up, the measure across, as in the large one
var multiples = document.getElementById("multiples");
function drawMultiples() {
  if (!multiples) return;
  multiples.replaceChildren.apply(multiples, data.measures.map(function (measure) {
    var W = 150, H = 84, r = 3;
    var shown = measure.points.filter(function (p) { return !zoomed || data.points[p[0]].y[0] >= data.zoom; });
    if (!shown.length) shown = measure.points;
    var log = shown.every(function (p) { return p[2] > 0; }), at = {};
    function across(p) { return log ? Math.log10(p[2]) : p[2]; }
    function up(p) { return data.points[p[0]].y[0]; }
    function scale(f, from, to) {
      var low = Math.min.apply(null, shown.map(f)), high = Math.max.apply(null, shown.map(f));
      return function (p) { return high > low ? from + (f(p) - low) / (high - low) * (to - from) : (from + to) / 2; };
    }
    var X = scale(across, 8, W - 8), Y = scale(up, H - 8, 8);
    var root = svg("svg", { viewBox: "0 0 " + W + " " + H, "aria-hidden": "true" });
    root.appendChild(svg("path", { "class": "grid", fill: "none", d: "M.5 0V" + (H - .5) + "H" + W }));
    shown.forEach(function (p) { at[p[0]] = X(p).toFixed(1) + "," + Y(p).toFixed(1); });
    var line = measure.front.filter(function (i) { return at[i]; }).map(function (i) { return at[i]; });
    if (line.length > 1) root.appendChild(svg("polyline", { "class": "frontline", points: line.join(" ") }));
    shown.slice().sort(function (a, b) { return b[1] - a[1]; }).forEach(function (p) {
      var base = data.points[p[0]].baseline;
      root.appendChild(svg("g", { "class": STATUS[p[1]] }, [base ? svg("path", { "class": "mark", d: star(X(p), Y(p), 6) }) : svg("circle", { "class": "mark", cx: X(p), cy: Y(p), r: r })]));
    });
    var button = html("button", { type: "button", "aria-pressed": "" + (select.value === measure.key) }, [html("span", {}, [measure.name]), root]);
    button.addEventListener("click", function () {
      select.value = measure.key;
      draw();
      remember({ measure: measure.key });
      var place = Array.prototype.indexOf.call(multiples.children, button);
      drawMultiples();
      multiples.children[place].focus({ preventScroll: true });
      document.getElementById("pareto").scrollIntoView({ block: "nearest" });
    });
    return button;
  }));
}
function open(anchor) {
  var details = document.getElementById(anchor);
  if (!details) return;
  details.open = true;
  details.scrollIntoView({ block: "start" });
  var head = details.querySelector("summary");
  if (head) head.focus({ preventScroll: true });
}

// ---- the table
var table = document.getElementById("stage-table");
function sortBy(key, descending) {
  if (!table) return;
  var heads = Array.prototype.slice.call(table.tHead.rows[0].cells), column = -1;
  heads.forEach(function (head, i) { if (head.getAttribute("data-key") === key) column = i; });
  if (column < 0) return;
  heads.forEach(function (head, i) { if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending"); else head.removeAttribute("aria-sort"); });
  var rows = Array.prototype.slice.call(table.tBodies[0].rows);
  function value(row) { var v = row.cells[column].getAttribute("data-v"); return v === null || v === "" ? null : +v; }
  // Rows without a value stay last in both directions; equal ones in the order of the run.
  rows.sort(function (a, b) {
    var u = value(a), v = value(b);
    if (u === null || v === null) return (u === null) - (v === null) || a.getAttribute("data-i") - b.getAttribute("data-i");
    return (descending ? v - u : u - v) || a.getAttribute("data-i") - b.getAttribute("data-i");
  });
  rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
  var live = document.getElementById("live");
  if (live) live.textContent = "Sorted by " + heads[column].textContent.trim() + ", " + (descending ? "descending" : "ascending");
}
if (table) Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head) {
  var button = head.querySelector("button");
  if (!button) return;
  button.addEventListener("click", function () {
    var key = head.getAttribute("data-key"), first = head.hasAttribute("data-descending");
    var was = head.getAttribute("aria-sort");
    var descending = was ? was === "ascending" : first;
    sortBy(key, descending);
    remember({ sort: (descending ? "-" : "") + key });
  });
});

// ---- the address: #measure=file_bytes&sort=-top1 says what is shown, so that a view can be passed on
function state() {
  var result = {};
  location.hash.slice(1).split("&").forEach(function (part) { var at = part.indexOf("="); if (at > 0) result[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1)); });
  return result;
}
function remember(change) {
  var now = state();
  for (var key in change) now[key] = change[key];
  var text = Object.keys(now).map(function (key) { return key + "=" + encodeURIComponent(now[key]); }).join("&");
  try { history.replaceState(null, "", "#" + text); } catch (e) { /* an embedded page without history: only the address stays as it was */ }
}
function restore() {
  var now = state();
  if (now.measure && data.measures.some(function (m) { return m.key === now.measure; })) select.value = now.measure;
  if (now.up && upSelect && (now.up === "quality" || measureOf(now.up))) upSelect.value = now.up;
  if (now.zoom && zoomButton) { zoomed = now.zoom === "1"; zoomButton.setAttribute("aria-pressed", "" + !zoomed); }
  if (now.sort) sortBy(now.sort.replace(/^-/, ""), now.sort.charAt(0) === "-");
  if (/^#stage-/.test(location.hash)) open(location.hash.slice(1));
}
if (select) {
  select.addEventListener("change", function () { draw(); drawMultiples(); remember({ measure: select.value }); });
  if (upSelect) upSelect.addEventListener("change", function () { draw(); remember({ up: upSelect.value }); });
  if (zoomButton) zoomButton.addEventListener("click", function () {
    zoomed = !zoomed;
    zoomButton.setAttribute("aria-pressed", "" + !zoomed);
    draw();
    drawMultiples();
    remember({ zoom: zoomed ? "1" : "0" });
  });
  document.querySelectorAll(".needs-script").forEach(function (node) { node.hidden = false; });
  restore();
  draw();
  drawMultiples();
  var width = plot.clientWidth;
  window.addEventListener("resize", function () { if (plot.clientWidth !== width) { width = plot.clientWidth; draw(); } });
} else restore();
document.addEventListener("keydown", function (e) { if (e.key === "Escape") hideTip(); });
document.addEventListener("click", function (e) {
  var link = e.target.closest && e.target.closest('a[href^="#stage-"]');
  if (link) { e.preventDefault(); open(link.getAttribute("href").slice(1)); }
});
// On paper: what each stage was told and what it found; figures and layers only where they were opened.
var closed = [];
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details.stage:not([open])").forEach(function (d) {
    if (!d.querySelector(".columns, .curves, .body > .note")) return;
    d.open = true;
    closed.push(d);
  });
});
window.addEventListener("afterprint", function () {
  closed.forEach(function (d) { d.open = false; });
  closed = [];
});
})();
)js";

}  // namespace coppice::eval::report
