// The report's page: reads the data, draws it, and narrows it to what is selected on the heat map.
//
// Each part is made once, by a `draw…Section`; what is in it is drawn by what it gave to `onData` and `onSelect`.
// The page of `reqpath serve` hands in new data with `reportPage.show`, and all else stays as it is.
"use strict";
const reportPage = (() => {
  const {duration, share, rate, count, group, shorten, make, breakable, section, colour, swatch, legend, bar, table, plot, figure, copyButton} = parts;
  let data = JSON.parse(document.getElementById("data").textContent);
  const {palette: letters, meanings} = data;
  const live = Boolean(data.live);
  const page = document.getElementById("page");
  const TIERS = Object.keys(letters);
  let report, grid, cells, tierOf, names, rows, resolution, slowestName, zone, manyDays;

  function take(next) {
    data = next;
    ({report, grid, cells} = data);
    tierOf = Object.fromEntries(report.segments.map((segment) => [segment.name, segment.tier]));
    tierOf.residual = "residual";
    names = report.segments.map((segment) => segment.name);
    rows = grid.edges_ns.length - 1;
    resolution = data.resolution_ns;
    slowestName = report.requests > 100 ? "slowest 1 %" : "slowest one";
    const minutes = Math.abs(grid.offset_min);
    zone = `UTC${grid.offset_min < 0 ? "−" : "+"}${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
    manyDays = grid.columns * grid.width_ms > 864e5;
  }

  const instant = (ms) => new Date(ms + grid.offset_min * 60000);
  const clock = (ms, fine = grid.width_ms < 1000) => instant(ms).toISOString().slice(11, fine ? 23 : 19);
  const day = (ms) => instant(ms).toISOString().slice(0, 10);
  const columnStart = (column) => grid.first_ms + column * grid.width_ms;
  const when = (ms) => (manyDays ? `${day(ms)} ${clock(ms).slice(0, 5)}` : clock(ms));

  const drawings = [];
  const picture = [];
  /** What is drawn when there is other data. */
  const onData = (draw) => drawings.push(draw);
  /** What is drawn when there is other data or another selection; it is told `summarise()`. */
  const onSelect = (draw) => picture.push(draw);

  // --- The head -----------------------------------------------------------------------------------------------

  function drawHead() {
    const what = make("p", {class: "soft", id: "what"});
    const latency = make("dl", {class: "facts", id: "latency", "aria-label": "latency"});
    const left = make("p", {class: "soft"});
    page.prepend(what);
    page.append(latency, left);
    onData(() => {
      const first = report.first_ns / 1e6;
      const last = report.last_ns / 1e6;
      const line = [`${count(report.requests, "request")} in ${data.span}`,
        report.rate_per_s === null ? null : rate(report.rate_per_s),
        report.errors ? count(report.errors, "error") : null,
        `${day(first)} ${clock(first, false)} to ${day(first) === day(last) ? "" : `${day(last)} `}${clock(last, false)} ${zone}`];
      const total = report.total_ns;
      what.textContent = `reqpath ${live ? "serve" : "report"} · ${line.filter(Boolean).join(" · ")}`;
      document.getElementById("sentence").textContent = report.sentence;
      latency.replaceChildren(...[["mean", total.mean], ["median (p50)", total.p50], ["p90", total.p90], ["p99", total.p99], ["slowest", total.max]]
        .map(([name, ns]) => make("div", {}, make("dt", {}, name),
          make("dd", {data: {value: ns}}, duration(ns, resolution)))));
      left.hidden = !data.left_out;
      left.textContent = data.left_out || "";
    });
  }

  // --- The path -----------------------------------------------------------------------------------------------

  /** Bars of the ordered path, one a line of [{name, ns, parts: [[segment, ns]…]}], each as wide as the page. */
  function drawPath(lines, label) {
    const pieces = [];
    for (const line of lines) {
      const known = line.parts.map(([name, ns]) => [name, Math.max(0, ns || 0)]);
      const sum = known.reduce((all, [, ns]) => all + ns, 0) || 1;
      let at = 0;
      for (const [name, ns] of known) {
        if (!ns) continue;
        pieces.push({line: line.name, name, ns, x1: at / sum, x2: (at + ns) / sum, letter: letters[tierOf[name]],
          tip: `${name}: ${duration(ns, resolution)}, ${share(ns / sum)} of ${line.name}`});
        at += ns;
      }
    }
    const title = (line) => `${line.name}, ${duration(line.ns, resolution)}`;
    const titles = Object.fromEntries(lines.map((line) => [line.name, title(line)]));
    const list = (line) => pieces.filter((piece) => piece.line === line.name).map((piece) => `${piece.name} ${duration(piece.ns, resolution)}`).join(", ");
    const summary = `${label}: ${lines.map((line) => `${titles[line.name]}: ${list(line)}`).join("; ")}`;
    return (width) => plot(summary, {width, height: 54 * lines.length + 42, marginLeft: 1, marginRight: 1, marginTop: 0, marginBottom: 44,
      x: {domain: [0, 100], percent: true, label: "share of the request's time (%)", labelAnchor: "center", labelArrow: "none", ticks: 5},
      fy: {domain: lines.map((line) => line.name), axis: null, padding: 0}, color: {type: "identity"},
      marks: [
        Plot.text(lines, {fy: "name", text: (line) => titles[line.name], frameAnchor: "top-left", dy: 10, fontSize: 12.5, fill: "currentColor"}),
        Plot.rectX(pieces, {x1: "x1", x2: "x2", fy: "line", fill: (piece) => colour(tierOf[piece.name]), insetTop: 27,
          stroke: "var(--edge)", strokeWidth: 0.75, title: "tip", tip: {fill: "var(--raised)", stroke: "var(--line)"}}),
        Plot.text(pieces.filter((piece) => (piece.x2 - piece.x1) * width > 14), {x: (piece) => (piece.x1 + piece.x2) / 2, fy: "line", text: "letter", frameAnchor: "middle",
          dy: 14, fill: "#1c1c1c", fontSize: 11, pointerEvents: "none"}),
      ]});
  }

  function drawPathSection() {
    const legends = make("div");
    const chart = figure(() => make("span"));
    const holder = make("div");
    const note = make("p", {class: "soft"});
    page.append(section("path", "The path", "Where does the time of a request go, and what is different in the slow ones?",
      legends, chart.element, holder, note));
    const text = (row, ns, sign = false) => duration(ns, row.resolution, 3, sign);
    const difference = (row) => (row.median === null || row.slow === null ? null : row.slow - row.median);
    const makeTable = () => table("segments of the path", [
      {name: "segment", kind: "name", cell: (row) => row.kind ? "total" : make("span", {title: meanings[row.name] ? `${meanings[row.name][0]}; without: ${meanings[row.name][1]}` : "the total less all of the above"},
        swatch(tierOf[row.name], letters[tierOf[row.name]]), row.name)},
      {name: "median path", value: (row) => row.median, text: (row) => text(row, row.median)},
      {name: slowestName, value: (row) => row.slow, text: (row) => text(row, row.slow)},
      {name: "difference", value: difference, text: (row) => text(row, difference(row), true)},
      {name: "of all time", wide: true, value: (row) => row.share, text: (row) => row.share === null ? "" : share(row.share), title: "share of the total time of all requests"},
    ], {limit: 30});
    let view = null;
    let head = null;
    onData(() => {
      const slice = (key) => [...report.segments.map((segment) => [segment.name, segment[key]]), ["residual", report.residual[key]]];
      const lines = [{name: "median", ns: report.median_path.total_ns, parts: slice("median_path_ns")},
        {name: slowestName, ns: report.slowest.total_ns, parts: slice("slowest_ns")}];
      const used = TIERS.filter((tier) => lines.some((line) => line.parts.some(([name, ns]) => ns > 0 && tierOf[name] === tier)));
      legends.replaceChildren(legend(used, letters));
      const segments = report.segments.filter((segment) => segment.known && segment.share);
      const nothing = report.segments.filter((segment) => segment.known && !segment.share).map((segment) => segment.name);
      const list = [...segments.map((segment) => ({name: segment.name, median: segment.median_path_ns, slow: segment.slowest_ns, share: segment.share, resolution: segment.resolution_ns})),
        {name: "residual", median: report.residual.median_path_ns, slow: report.residual.slowest_ns, share: report.residual.share, resolution}];
      if (head !== slowestName) {
        head = slowestName;
        view = makeTable();
        holder.replaceChildren(view.element);
      }
      view.show([...list, {name: "total", kind: "sum", median: report.median_path.total_ns, slow: report.slowest.total_ns, share: null, resolution}]);
      note.textContent = `Means of the requests around the median and of the slowest, so that each column adds up. Attributed: ${share(report.attributed_share)} of the time.`
        + (nothing.length ? ` No time in ${nothing.join(", ")}.` : "");
      chart.redraw(drawPath(lines, "the path"));
    });
  }

  // --- The selection ------------------------------------------------------------------------------------------

  /** {t0, t1, l0, l1}: columns from t0 up to t1, rows from l0 up to l1, the ends excluded; null is all. */
  let selection = null;
  /** The same as instants, ms, and latencies, ns, so that it holds on another grid; null is an end left open. */
  let wanted = null;
  const everything = () => ({t0: 0, t1: grid.columns, l0: 0, l1: rows});
  const isEmpty = () => selection !== null && selection.t0 >= selection.t1;
  const inside = (cell) => {
    const t = cells.column[cell];
    const l = cells.row[cell];
    return t >= selection.t0 && t < selection.t1 && l >= selection.l0 && l < selection.l1;
  };

  /** What is selected: a flag for each cell, and sums over the cells; `fresh`: the data is other, not the selection. */
  function summarise(fresh) {
    const chosen = cells.requests.map((_, cell) => selection === null || inside(cell));
    const sum = (column, flag = true) => column.reduce((all, value, cell) => (chosen[cell] === flag ? all + value : all), 0);
    return {chosen, sum, fresh, requests: sum(cells.requests), total: sum(cells.total_ns)};
  }

  function select(next) {
    if (next) {
      const fit = (value, low, high) => Math.min(high, Math.max(low, value));
      next = {t0: fit(next.t0, 0, grid.columns - 1), l0: fit(next.l0, 0, rows - 1), t1: fit(next.t1, next.t0 + 1, grid.columns), l1: fit(next.l1, next.l0 + 1, rows)};
      if (next.t0 === 0 && next.l0 === 0 && next.t1 === grid.columns && next.l1 === rows) next = null;
    }
    selection = next;
    wanted = next && {
      t0: next.t0 === 0 ? null : columnStart(next.t0), t1: next.t1 === grid.columns ? null : columnStart(next.t1),
      l0: next.l0 === 0 ? null : grid.edges_ns[next.l0], l1: next.l1 === rows ? null : grid.edges_ns[next.l1],
    };
    drawPicture(false);
  }

  function drawPicture(fresh) {
    const now = summarise(fresh);
    for (const draw of picture) draw(now);
  }

  /** The cells of the present grid that `wanted` touch; none where they lie beyond it. */
  function place() {
    if (wanted === null) return null;
    const column = (ms) => (ms - grid.first_ms) / grid.width_ms;
    const edges = grid.edges_ns;
    const placed = {
      t0: wanted.t0 === null ? 0 : Math.max(0, Math.floor(column(wanted.t0) + 1e-6)),
      t1: wanted.t1 === null ? grid.columns : Math.min(grid.columns, Math.ceil(column(wanted.t1) - 1e-6)),
      l0: wanted.l0 === null ? 0 : Math.max(0, d3.bisectRight(edges, wanted.l0) - 1),
      l1: wanted.l1 === null ? rows : Math.min(rows, d3.bisectLeft(edges, wanted.l1)),
    };
    return placed.t0 < placed.t1 && placed.l0 < placed.l1 ? placed : {t0: 0, t1: 0, l0: 0, l1: 0};
  }

  const describe = () => {
    const edge = (ns) => duration(ns, 1, 2);
    if (isEmpty()) {
      const range = (low, high, text, until) => (low === null ? (high === null ? null : `${until} ${text(high)}`) : high === null ? `from ${text(low)}` : `${text(low)} to ${text(high)}`);
      return [range(wanted.t0, wanted.t1, (ms) => `${when(ms)} ${zone}`, "until"), range(wanted.l0, wanted.l1, edge, "up to")].filter(Boolean).join(", ");
    }
    const end = manyDays ? when(columnStart(selection.t1)) : clock(columnStart(selection.t1));
    return `${when(columnStart(selection.t0))} to ${end} ${zone}, ${edge(grid.edges_ns[selection.l0])} to ${edge(grid.edges_ns[selection.l1])}`;
  };

  // --- Latency over time --------------------------------------------------------------------------------------

  function drawHeatSection() {
    let edges, list, most, sparse, timeFormat;
    const prepare = () => {
      edges = grid.edges_ns;
      list = cells.requests.map((requests, cell) => ({requests,
        x1: instant(columnStart(cells.column[cell])), x2: instant(columnStart(cells.column[cell] + 1)),
        y1: edges[cells.row[cell]], y2: edges[cells.row[cell] + 1],
        tip: `${count(requests, "request")}\n${when(columnStart(cells.column[cell]))}\n${duration(edges[cells.row[cell]], 1, 2)} to ${duration(edges[cells.row[cell] + 1], 1, 2)}`}));
      most = d3.max(list, (cell) => cell.requests) || 1;
      const ticks = [];
      for (let base = 1000; base <= edges[rows]; base *= 10) for (const step of [1, 2, 5]) {
        if (base * step >= edges[0] && base * step <= edges[rows]) ticks.push(base * step);
      }
      if (ticks.length < 4) {
        for (let base = 1000; base <= edges[rows]; base *= 10) for (const step of [3, 4, 6, 7, 8, 9]) {
          if (base * step >= edges[0] && base * step <= edges[rows]) ticks.push(base * step);
        }
      }
      sparse = ticks.length > 9 ? ticks.filter((tick) => String(tick)[0] === "1") : ticks;
      const spanS = (grid.columns * grid.width_ms) / 1000;
      timeFormat = spanS > 3 * 86400 ? "%m-%d" : spanS > 86400 ? "%m-%d %H:%M" : spanS > 600 ? "%H:%M" : spanS > 4 ? "%H:%M:%S" : "%H:%M:%S.%L";
    };
    let scales;
    let brush;
    let layer;
    const draw = (width) => {
      const height = Math.max(240, Math.min(340, width * 0.42));
      const svg = plot(`heat map of latency over time, from ${duration(edges[0], 1, 2)} to ${duration(edges[rows], 1, 2)}; the sliders below select of it`, {width, height, marginLeft: 58, marginBottom: 42, marginTop: 22, marginRight: 8,
        x: {type: "utc", domain: [instant(columnStart(0)), instant(columnStart(grid.columns))], label: `time of the request's start (${zone})`, labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor(width / 130)), tickFormat: d3.utcFormat(timeFormat)},
        y: {type: "log", domain: [edges[0], edges[rows]], axis: null},
        opacity: {type: "sqrt", domain: [0, most], range: [0.1, 1]},
        marks: [
          Plot.gridY(sparse),
          Plot.axisY(sparse, {text: (ns) => duration(ns, 1, 2).replace(".0", ""), label: "latency (log scale)", labelArrow: "none"}),
          Plot.rect(list, {x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: "var(--heat)", fillOpacity: "requests", inset: 0, shapeRendering: "crispEdges"}),
          Plot.tip(list, Plot.pointer({x: (cell) => new Date((+cell.x1 + +cell.x2) / 2), y: (cell) => Math.sqrt(cell.y1 * cell.y2), title: "tip", fill: "var(--raised)", stroke: "var(--line)", maxRadius: 12})),
        ]});
      scales = {x: svg.scale("x"), y: svg.scale("y")};
      const [left, right] = scales.x.range;
      const [bottom, top] = scales.y.range;
      brush = d3.brush().extent([[left, top], [right, bottom]]).on("end", (event) => {
        if (!event.sourceEvent) return;
        if (!event.selection) return select(null);
        const [[x0, y0], [x1, y1]] = event.selection;
        const column = (x) => (scales.x.invert(x) - instant(grid.first_ms)) / grid.width_ms;
        const row = (y) => d3.bisectRight(edges, scales.y.invert(y) * (1 + 1e-9)) - 1;
        select({t0: Math.floor(column(x0) + 1e-6), t1: Math.ceil(column(x1) - 1e-6), l0: row(y1), l1: d3.bisectLeft(edges, scales.y.invert(y0) * (1 - 1e-9))});
      });
      // Below the tip, so that this can be read.
      layer = d3.select(svg).insert("g", "[data-mark=tip]").attr("class", "brush").call(brush);
      show();
      return svg;
    };
    const show = () => {
      if (!layer) return;
      if (selection === null || isEmpty()) return layer.call(brush.move, null);
      const x = (column) => scales.x.apply(instant(columnStart(column)));
      layer.call(brush.move, [[x(selection.t0), scales.y.apply(edges[selection.l1])], [x(selection.t1), scales.y.apply(edges[selection.l0])]]);
    };
    const chart = figure(draw);

    // Keyboard and fingers: four sliders say the same as the drag.
    const base = () => (selection === null || isEmpty() ? everything() : selection);
    const slider = (label, max, get, set, text) => {
      const input = make("input", {type: "range", min: 0, step: 1, "aria-label": label, id: `slider-${label.replace(/ /g, "-")}`});
      const output = make("output", {});
      input.addEventListener("input", () => select(set(base(), Number(input.value))));
      onSelect(() => {
        const value = get(base());
        input.max = max();
        input.value = value;
        input.setAttribute("aria-valuetext", text(value));
        output.textContent = text(value);
      });
      return make("label", {}, make("span", {}, `${label}: `, output), input);
    };
    const edge = (row) => duration(edges[row], 1, 2);
    const sliders = make("details", {class: "onscreen"}, make("summary", {}, "Select by sliders"), make("div", {class: "sliders"},
      slider("from", () => grid.columns - 1, (s) => s.t0, (s, v) => ({...s, t0: v, t1: Math.max(s.t1, v + 1)}), (v) => when(columnStart(v))),
      slider("until", () => grid.columns, (s) => s.t1, (s, v) => ({...s, t1: Math.max(1, v), t0: Math.min(s.t0, Math.max(0, v - 1))}), (v) => when(columnStart(v))),
      slider("latency from", () => rows - 1, (s) => s.l0, (s, v) => ({...s, l0: v, l1: Math.max(s.l1, v + 1)}), edge),
      slider("latency up to", () => rows, (s) => s.l1, (s, v) => ({...s, l1: Math.max(1, v), l0: Math.min(s.l0, Math.max(0, v - 1))}), edge)));
    const status = make("span", {role: "status", "aria-live": "polite", id: "selected"});
    const clear = make("button", {class: "act onscreen", type: "button", id: "clear", on: {click: () => select(null)}}, "Show all");
    const slow = make("button", {class: "act onscreen", type: "button", id: "select-slow", on: {click: () => select(slowest(0.01))}}, "Select the slow ones");
    const strip = make("div", {class: "selection"}, status, slow, clear);
    const scale = make("p", {class: "soft"});
    page.append(section("heat", "Latency over time", "Since when is it slow, and is it all requests or some? Drag over a region to narrow everything below to its requests.",
      chart.element, scale, sliders), strip);
    onData(() => {
      prepare();
      scale.textContent = `One cell is ${grid.width} wide; the strongest colour is ${count(most, "request")}, the faintest 1.`;
      chart.redraw();
    });
    onSelect((now) => {
      show();
      clear.hidden = selection === null;
      slow.hidden = selection !== null || rows < 2;
      // What was done is read out, and not what goes on by itself.
      status.setAttribute("aria-live", now.fresh ? "off" : "polite");
      status.replaceChildren(...(selection === null ? [make("strong", {}, `All ${count(report.requests, "request")}`)]
        : [make("strong", {}, `${group(now.requests)} of ${count(report.requests, "request")}`), ` selected: ${describe()}`]));
    });
  }

  /** The rows of the grid that hold the slowest share of the requests. */
  function slowest(part) {
    const byRow = new Array(rows).fill(0);
    cells.requests.forEach((requests, cell) => { byRow[cells.row[cell]] += requests; });
    let sum = 0;
    let row = rows;
    while (row > 1 && sum < report.requests * part) sum += byRow[--row];
    return {t0: 0, t1: grid.columns, l0: Math.max(1, row), l1: rows};
  }

  // --- The tiers' share by percentile -------------------------------------------------------------------------

  const PERCENTILES = [0, 10, 25, 50, 75, 90, 95, 99, 99.9, 100];

  /** Means within slices of a selection; within a row of the grid requests are taken for alike. */
  function sliceSelection(chosen) {
    const byRow = d3.range(rows).map(() => ({requests: 0, total_ns: 0, residual_ns: 0, segments_ns: {}}));
    chosen.forEach((flag, cell) => {
      if (!flag) return;
      const row = byRow[cells.row[cell]];
      row.requests += cells.requests[cell];
      row.total_ns += cells.total_ns[cell];
      row.residual_ns += cells.residual_ns[cell];
      for (const name in cells.segments_ns) row.segments_ns[name] = (row.segments_ns[name] || 0) + cells.segments_ns[name][cell];
    });
    const all = d3.sum(byRow, (row) => row.requests);
    const ends = d3.cumsum(byRow, (row) => row.requests);
    // A slice has requests, and not those alone of the row that the one before it has.
    const bounds = [[0, 0]];
    for (const percentile of PERCENTILES.slice(1)) {
      const rank = Math.round((all * percentile) / 100);
      if (rank > bounds.at(-1)[1]) bounds.push([percentile, rank]);
    }
    bounds.at(-1)[0] = 100;
    for (let i = bounds.length - 2; i > 0; i--) {
      const row = (rank) => d3.bisectLeft(ends, rank + 1);
      if (row(bounds[i - 1][1]) === row(bounds[i + 1][1] - 1)) bounds.splice(i, 1);
    }
    const slices = [];
    for (const [[lowest, low], [highest, high]] of d3.pairs(bounds)) {
      const slice = {low: lowest, high: highest, requests: high - low, total_ns: 0, residual_ns: 0, segments_ns: {}};
      let at = 0;
      for (const row of byRow) {
        const part = Math.max(0, Math.min(high, at + row.requests) - Math.max(low, at));
        at += row.requests;
        if (!part) continue;
        const weight = part / row.requests / (high - low);
        slice.total_ns += row.total_ns * weight;
        slice.residual_ns += row.residual_ns * weight;
        for (const name in row.segments_ns) slice.segments_ns[name] = (slice.segments_ns[name] || 0) + row.segments_ns[name] * weight;
      }
      slices.push(slice);
    }
    return slices;
  }

  function byTier(segments, residual) {
    const sums = Object.fromEntries(TIERS.map((tier) => [tier, 0]));
    for (const name in segments) sums[tierOf[name]] += segments[name];
    sums.residual += Math.max(0, residual);
    return sums;
  }

  function drawShareSection() {
    const note = make("p", {class: "soft"});
    const legends = make("div");
    let slices = data.slices;
    const percentile = (slice) => `${slice.low}–${slice.high}`;
    const draw = (width) => {
      const list = [];
      for (const slice of slices) {
        const sums = byTier(slice.segments_ns, slice.residual_ns);
        const all = d3.sum(Object.values(sums)) || 1;
        for (const tier of TIERS) if (sums[tier]) list.push({slice: percentile(slice), tier, part: sums[tier] / all, letter: letters[tier],
          tip: `${tier}: ${share(sums[tier] / all)}, ${duration(sums[tier], resolution)} of ${duration(slice.total_ns, resolution)}\n${count(slice.requests, "request")} from the ${slice.low}th to the ${slice.high}th percentile`});
      }
      const narrow = width < 560;
      const domain = slices.map(percentile);
      const band = (width - 60) / domain.length;
      const summary = slices.map((slice) => `${percentile(slice)} %: ${list.filter((each) => each.slice === percentile(slice)).map((each) => `${each.tier} ${share(each.part)}`).join(", ")}`).join("; ");
      return plot(`share of each tier by percentile of latency: ${summary}`, {width: Math.min(width, 60 + 180 * slices.length), height: 300, marginLeft: 46, marginBottom: 62, marginTop: 22, marginRight: 4,
        x: {type: "band", domain, padding: 0.06, label: `percentile of latency (%)${narrow ? "" : ", with the mean of its requests"}`, labelAnchor: "center", labelArrow: "none", labelOffset: 58, tickSize: 0,
          tickRotate: narrow ? -35 : 0, tickFormat: (name, i) => (narrow ? name : `${name}\n${duration(slices[i].total_ns, resolution, 2)}`)},
        y: {domain: [0, 100], percent: true, label: "share of the time (%)", labelArrow: "none", ticks: 5, grid: true},
        color: {type: "identity"},
        marks: [
          Plot.barY(list, Plot.stackY({x: "slice", y: "part", fill: (each) => colour(each.tier), order: null, stroke: "var(--edge)", strokeWidth: 0.75, title: "tip", tip: {fill: "var(--raised)", stroke: "var(--line)"}})),
          Plot.text(list, Plot.stackY({x: "slice", y: "part", text: (each) => (each.part > 0.06 && band > 18 ? each.letter : ""), order: null, fill: "#1c1c1c", fontSize: 11, pointerEvents: "none"})),
        ]});
    };
    const chart = figure(draw);
    page.append(section("shares", "The tiers' share, from the fastest to the slowest", "What are slow requests made of that fast ones are not?",
      legends, chart.element, note));
    onSelect((now) => {
      slices = selection === null ? data.slices : sliceSelection(now.chosen);
      const used = TIERS.filter((tier) => slices.some((slice) => byTier(slice.segments_ns, slice.residual_ns)[tier] > 0));
      legends.replaceChildren(legend(used, letters));
      note.textContent = "Means of the requests between two percentiles, so that each column adds up."
        + (selection === null ? "" : " In a selection, requests of one row of the heat map are taken for alike.");
      chart.redraw();
    });
  }

  // --- Pairs of cells and values ------------------------------------------------------------------------------

  /** Sums by value of the pairs whose cells are chosen. */
  function total(pairs, chosen) {
    const sums = pairs.values.map(() => ({requests: 0}));
    for (const sum of sums) for (const name in pairs.sums) sum[name] = 0;
    pairs.cell.forEach((cell, i) => {
      if (!chosen[cell]) return;
      const sum = sums[pairs.value[i]];
      sum.requests += pairs.requests[i];
      for (const name in pairs.sums) sum[name] += pairs.sums[name][i];
    });
    return sums;
  }

  const queryName = (figures) => (figures.statement === null ? `(${figures.kind})` : figures.statement);
  const valueName = {
    route: (value) => (value === null ? "(other routes)" : report.routes[value].route),
    query: (value) => (value === null ? "(other queries)" : queryName(report.statements[value])),
    hour: (value) => { const ms = Number(value) / 1e6; const hour = clock(ms).slice(0, 5); return ms < 864e5 ? `from ${hour}, each day` : `${day(ms)} ${hour}`; },
    worker: (value) => (/^\d/.test(value) ? `worker ${value}` : value), core: (value) => `core ${value}`,
  };
  const nameOf = (attribute, value) => (valueName[attribute] && (value !== null || attribute in {route: 1, query: 1}) ? valueName[attribute](value) : value === null ? "unknown or other" : String(value));

  // --- What differs -------------------------------------------------------------------------------------------

  function drawDifferSection() {
    const question = make("p", {class: "soft"});
    const chart = figure(() => make("span"));
    const view = table("attributes that differ", [
      {name: "attribute", kind: "word", value: (row) => row.attribute, text: (row) => row.attribute},
      {name: "value", kind: "name", value: (row) => row.name, cell: (row) => make("span", {class: ["query", "route"].includes(row.attribute) ? "code" : null}, breakable(shorten(row.name, 200)))},
      {name: "of these", title: "share of the selected requests that have it", value: (row) => row.own, text: (row) => share(row.own)},
      {name: "of the rest", title: "share of all other requests that have it", value: (row) => row.other, text: (row) => share(row.other)},
      {name: "difference", title: "in percentage points", value: (row) => row.own - row.other, text: (row) => `${row.own > row.other ? "+" : "−"}${Math.abs((row.own - row.other) * 100).toFixed(Math.abs(row.own - row.other) < 0.1 ? 1 : 0)} pp`},
      {name: "difference as a bar", hidden: true, wide: true, cell: (row) => make("div", {class: "diverge", "aria-hidden": "true"}, make("i", {style: row.own > row.other
        ? {left: "50%", width: `${50 * (row.own - row.other)}%`} : {right: "50%", width: `${50 * (row.other - row.own)}%`}}))},
    ], {limit: 10, empty: "Nothing that could not be chance."});
    page.append(section("differ", "What differs", "Which attributes do these requests have more often than the rest?", question, chart.element, view.element,
      make("p", {class: "soft"}, "Ranked by the difference of the shares, in percentage points; what could be chance (less than three standard errors) is left out.")));
    onSelect((now) => {
      const attributes = {route: data.routes, query: data.statements, ...data.attributes};
      const few = Math.ceil(report.requests / 100);
      const own = selection === null ? few : now.requests;
      const other = report.requests - own;
      const list = [];
      for (const [attribute, pairs] of Object.entries(attributes)) {
        const chosen = selection === null ? pairs.slowest : total(pairs, now.chosen).map((sum) => sum.requests);
        const all = total(pairs, cells.requests.map(() => true));
        pairs.values.forEach((value, i) => {
          if (!all[i].requests || !own || !other) return;
          const row = {attribute, name: nameOf(attribute, value), own: chosen[i] / own, other: (all[i].requests - chosen[i]) / other};
          const mean = all[i].requests / report.requests;
          row.error = Math.sqrt(mean * (1 - mean) * (1 / own + 1 / other));
          if (Math.abs(row.own - row.other) > 3 * row.error && Math.abs(row.own - row.other) >= 0.005) list.push(row);
        });
      }
      list.sort((one, two) => Math.abs(two.own - two.other) - Math.abs(one.own - one.other));
      view.show(list);
      question.textContent = selection === null ? `Nothing is selected, so this is ${slowestName === "slowest one" ? "the slowest request" : `the slowest 1 %, ${count(few, "request")},`} against all others.`
        : `${count(now.requests, "selected request")} against the other ${group(other)}.`;
      const slice = (flag) => {
        const requests = now.sum(cells.requests, flag) || 1;
        return {ns: now.sum(cells.total_ns, flag) / requests, parts: [...names.map((name) => [name, cells.segments_ns[name] ? now.sum(cells.segments_ns[name], flag) / requests : 0]), ["residual", now.sum(cells.residual_ns, flag) / requests]]};
      };
      chart.element.hidden = selection === null || !now.requests || !other;
      if (!chart.element.hidden) chart.redraw(drawPath([{name: "mean of the selected", ...slice(true)}, {name: "mean of the rest", ...slice(false)}], "the path of the selected requests and of the rest"));
    });
  }

  // --- Routes and queries -------------------------------------------------------------------------------------

  /** The middle of the row in which a percentile of a value's requests is, as counts by row. */
  function percentile(byRow, part) {
    const all = d3.sum(byRow);
    let sum = 0;
    for (let row = 0; row < rows; row++) {
      sum += byRow[row];
      if (sum >= Math.ceil(all * part)) return Math.sqrt(grid.edges_ns[row] * grid.edges_ns[row + 1]);
    }
    return null;
  }

  function drawRoutesSection() {
    const note = make("p", {class: "soft"});
    const ns = (key) => ({value: (row) => row[key], text: (row) => row[key] === null ? parts.UNKNOWN : `${row.rough ? "≈ " : ""}${duration(row[key], row.resolution, 2)}`});
    const view = table("routes", [
      {name: "route", kind: "name", value: (row) => row.name, cell: (row) => make("span", {class: "code"}, breakable(shorten(row.name, 200)))},
      {name: "requests", wide: true, value: (row) => row.requests, text: (row) => group(row.requests)},
      {name: "of the time", title: "share of the total time", value: (row) => row.share, text: (row) => share(row.share)},
      {name: "mean", value: (row) => row.mean, text: (row) => duration(row.mean, row.resolution, 2)},
      {name: "p50", wide: true, ...ns("p50")},
      {name: "p99", ...ns("p99")},
      {name: "errors", wide: true, title: "statuses of 500 and more", value: (row) => row.errors, text: (row) => (row.errors ? group(row.errors) : "")},
      {name: "path", wide: true, title: "the tiers' share of the route's time", cell: (row) => bar(row.path)},
    ], {sort: {name: "of the time", descending: true}});
    page.append(section("routes", "Routes", "Which routes take the time?", view.element, note));
    onSelect((now) => {
      note.textContent = selection === null ? "" : "≈: within a selection, percentiles are known as finely as a row of the heat map is high.";
      if (selection === null) {
        const all = report.total_ns.mean * report.requests || 1;
        return view.show(report.routes.map((route, i) => ({name: route.route, requests: route.requests, share: (route.total_ns.mean * route.requests) / all,
          mean: route.total_ns.mean, p50: route.total_ns.p50, p99: route.total_ns.p99, errors: route.errors, resolution: data.route_resolutions_ns[i], rough: false,
          path: TIERS.map((tier) => [tier, tier === "residual" ? route.residual.share : d3.sum(route.segments.filter((segment) => segment.tier === tier), (segment) => segment.share)])})));
      }
      const pairs = data.routes;
      const levels = pairs.values.map(() => new Array(rows).fill(0));
      pairs.cell.forEach((cell, i) => { if (now.chosen[cell]) levels[pairs.value[i]][cells.row[cell]] += pairs.requests[i]; });
      return view.show(total(pairs, now.chosen).map((sum, i) => ({name: valueName.route(pairs.values[i]), requests: sum.requests, share: sum.total_ns / (now.total || 1),
        mean: sum.total_ns / sum.requests, p50: percentile(levels[i], 0.5), p99: percentile(levels[i], 0.99), errors: sum.errors || 0, rough: true,
        resolution: pairs.values[i] === null ? resolution : data.route_resolutions_ns[pairs.values[i]], path: TIERS.map((tier) => [tier, sum[tier] || 0])}))
        .filter((row) => row.requests));
    });
  }

  function drawQueriesSection() {
    const note = make("p", {class: "soft"});
    const view = table("queries", [
      {name: "query", kind: "name", value: (row) => row.name, cell: (row) => make("span", {class: "code"}, shorten(row.name, 240))},
      {name: "count", value: (row) => row.count, text: (row) => group(row.count)},
      {name: "mean", value: (row) => row.mean, text: (row) => duration(row.mean)},
      {name: "p99", wide: true, value: (row) => row.p99, text: (row) => duration(row.p99)},
      {name: "total", value: (row) => row.total, text: (row) => duration(row.total)},
      {name: "errors", wide: true, value: (row) => row.errors, text: (row) => (row.errors ? group(row.errors) : "")},
    ], {sort: {name: "total", descending: true}, empty: "These requests have none."});
    const part = section("queries", "Queries", "Which statements take the database's time, as the app waits for it?", view.element, note);
    page.append(part);
    onSelect((now) => {
      part.hidden = !report.statements.length;
      note.textContent = `${report.operations_mean.toFixed(1)} database operations a request over all.` + (selection === null ? "" : " The p99 of a query is known for all requests only.");
      if (selection === null) {
        return view.show(report.statements.map((each) => ({name: queryName(each), count: each.count, mean: each.mean_ns, p99: each.p99_ns, total: each.total_ns, errors: each.errors})));
      }
      return view.show(total(data.statements, now.chosen).map((sum, i) => ({name: valueName.query(data.statements.values[i]), count: sum.count, mean: sum.time_ns / sum.count,
        p99: null, total: sum.time_ns, errors: sum.errors})).filter((row) => row.count));
    });
  }

  // --- The slowest requests -----------------------------------------------------------------------------------

  function drawWaterfall(request) {
    const list = request.rows.map(([label, tier, start, end, ns, fine, error], i) => ({i, tier, start, end, ns, error,
      name: shorten(label.trim(), 200), indent: label.length - label.trimStart().length, tip: `${label.trim().slice(0, 300)}\n${duration(ns, fine)} from ${duration(start, request.resolution_ns)}`, text: duration(ns, fine)}));
    return (width) => {
      const left = width < 560 ? 110 : 220;
      // A label ends before the bars, in a wide typeface too.
      const limit = Math.floor((left - 8) / 7.2);
      // Wide enough to be seen.
      const least = (3 * request.total_ns) / (width - left - 62);
      for (const row of list) row.end = Math.max(row.end, row.start + least);
      return plot(`waterfall: ${list.map((row) => row.tip.replace("\n", ", ")).join("; ")}`, {width, height: list.length * 20 + 64, marginLeft: left, marginRight: 62, marginTop: 8, marginBottom: 40,
        x: {domain: [0, request.total_ns || 1], label: "time since the request's start", labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 3 : 6, tickFormat: (ns) => (ns ? duration(ns, 1, 2).replace(".0", "") : "0"), grid: true},
        y: {type: "band", domain: list.map((row) => row.i), padding: 0.25, axis: null}, color: {type: "identity"},
        marks: [
          Plot.ruleY(list.filter((row) => !row.tier), {x1: "start", x2: "end", y: "i", stroke: "var(--soft)"}),
          Plot.barX(list.filter((row) => row.tier), {x1: "start", x2: "end", y: "i", fill: (row) => colour(row.tier), stroke: "var(--edge)", strokeWidth: 0.75}),
          Plot.text(list, {x: 0, y: "i", text: (row) => " ".repeat(row.indent) + shorten(row.name, limit - row.indent), textAnchor: "start", dx: -left + 2, fill: (row) => (row.tier ? "currentColor" : "var(--soft)")}),
          Plot.text(list, {x: "end", y: "i", text: "text", textAnchor: "start", dx: 4, fill: (row) => (row.error ? "var(--warn)" : "var(--soft)")}),
          Plot.tip(list, Plot.pointerY({x: "end", y: "i", title: "tip", fill: "var(--raised)", stroke: "var(--line)"})),
        ]});
    };
  }

  function drawRequest(request) {
    const inner = make("div", {class: "inner"});
    const failed = request.status === null || request.status >= 500;
    const element = make("details", {class: "request", data: {trace: request.trace_id}},
      make("summary", {}, make("b", {data: {value: request.total_ns}}, duration(request.total_ns, request.resolution_ns)),
        make("span", {class: "name code"}, breakable(shorten(request.route, 200))),
        make("span", {class: failed ? "warn" : "soft"}, request.status === null ? "no status" : String(request.status)),
        make("span", {class: "soft"}, request.at)), inner);
    element.addEventListener("toggle", () => {
      if (!element.open || inner.childNodes.length) return;
      const trace = make("p", {}, "trace ", make("span", {class: "code trace"}, request.trace_id), " ", copyButton(request.trace_id, "copy the trace id"));
      if (data.jaeger) trace.append(" ", make("a", {href: `${data.jaeger}/trace/${encodeURIComponent(request.trace_id)}`, rel: "noreferrer noopener"}, "open in Jaeger"));
      inner.append(trace);
      const split = [...request.segments.map(([name, ns]) => [name, ns]), ["residual", request.residual_ns]];
      const path = figure(drawPath([{name: "this request", ns: request.total_ns, parts: split}], "the path"));
      const chart = figure(drawWaterfall(request));
      if (request.rows.length) inner.append(chart.element);
      inner.append(path.element);
      const pairs = (list) => make("dl", {class: "pairs"}, list.map(([name, value]) => [make("dt", {}, shorten(name, 100)), make("dd", {}, shorten(value, 400))]));
      const stamps = make("table", {"aria-label": "stamps"}, make("thead", {}, make("tr", {}, make("th", {class: "name", scope: "col"}, "stamp"), make("th", {scope: "col"}, "at"), make("th", {scope: "col"}, "good to"))),
        make("tbody", {}, request.stamps.map(([name, ns, fine]) => make("tr", {}, make("td", {class: "name"}, name), make("td", {data: {value: ns}}, ns ? duration(ns, fine, 6) : "0"), make("td", {}, fine >= 1e6 ? `${fine / 1e6} ms` : fine >= 1e3 ? `${fine / 1e3} µs` : `${fine} ns`)))));
      const columns = make("div", {class: "columns"},
        make("div", {}, make("h3", {}, "Stamps, since the start"), stamps),
        make("div", {}, make("h3", {}, "Request"), pairs(request.facts),
          request.app.length ? [make("h3", {}, "From the app"), pairs(request.app)] : null));
      inner.append(columns);
      if (request.operations.length) {
        inner.append(make("h3", {}, "Database operations"), make("ol", {class: "operations"}, request.operations.map((each) => make("li", {},
          make("span", {class: "code"}, shorten(each.statement === null ? each.kind : each.statement, 1000)), make("br"), make("span", {class: "soft"}, each.facts.join(", ")),
          each.error ? [make("br"), make("span", {class: "warn"}, each.error)] : null))),
          request.more_operations ? make("p", {class: "soft"}, `and ${count(request.more_operations, "operation")} more`) : "");
      }
      if (request.notes.length) inner.append(make("h3", {}, "To be known"), notes(request.notes));
      chart.redraw();
      path.redraw();
    });
    return element;
  }

  const notes = (list) => make("ul", {class: "notes"}, list.map(([what, meaning]) => make("li", {}, what, ": ", make("span", {class: "soft"}, meaning))));

  function drawRequestsSection() {
    const holder = make("div");
    const note = make("p", {class: "soft"});
    const LIMIT = 10;
    /** Those on the page, by what tells them apart: {request, element, ours}; `ours`: opened, but not by the reader. */
    let shown = new Map();
    page.append(section("requests", "The slowest requests", "What did single slow requests spend their time on?", holder, note));
    onSelect((now) => {
      const found = data.requests.filter((request) => now.chosen[request.cell]);
      const next = new Map();
      for (const request of found.slice(0, LIMIT)) {
        const key = `${request.trace_id} ${request.at} ${request.total_ns}`;
        next.set(key, shown.get(key) || {request, element: drawRequest(request), ours: false});
      }
      let kept = 0;
      for (const [key, each] of shown) {
        if (next.has(key) || !now.fresh || !each.element.open || each.ours) continue;
        next.set(key, each);
        kept++;
      }
      shown = next;
      const wanted = [...next.values()].sort((one, other) => other.request.total_ns - one.request.total_ns).map((each) => each.element);
      // Those that stay are not moved: they would lose the focus.
      wanted.forEach((element, i) => { if (holder.children[i] !== element) holder.insertBefore(element, holder.children[i] || null); });
      while (holder.children.length > wanted.length) holder.lastChild.remove();
      note.textContent = found.length ? `The page has ${count(found.length, "request")} of these in full; ${found.length > LIMIT ? `the slowest ${LIMIT} are shown` : "all are shown"}. Any other: reqpath trace ID.`
        : "The page has none of these in full; reqpath trace ID shows any request.";
      if (kept) note.textContent += ` ${kept === 1 ? "One that you opened is" : `${kept} that you opened are`} not among these any more, and stay until closed.`;
      if (selection === null && holder.firstChild && !now.fresh) {
        const first = [...next.values()].find((each) => each.element === holder.firstChild);
        first.ours = !first.element.open;
        first.element.open = true;
        first.element.querySelector("summary").addEventListener("click", () => { first.ours = false; });
      }
    });
  }

  // --- What is unknown ----------------------------------------------------------------------------------------

  function drawUnknownSection() {
    const holder = make("div");
    page.append(section("unknown", "What is unknown, and how to get it", "What do these figures not have?", holder));
    onData(() => {
      holder.replaceChildren(data.notes.length ? notes(data.notes)
        : make("p", {}, "Nothing: every stamp is there, none contradicts another, and no record was lost."));
    });
    page.append(make("footer", {}, "Made by reqpath; drawn with D3 7.9.2 and Observable Plot 0.6.17 (ISC licence), which are in this file. ",
      live ? "It asks nobody but the server that it came from." : "It asks nothing of any network."));
  }

  /** Draw other data; the selection, the order of the tables and what is open stay. */
  function show(next) {
    const first = report === undefined;
    take(next);
    if (first) {
      drawHead();
      drawPathSection();
      drawHeatSection();
      drawShareSection();
      drawDifferSection();
      drawRoutesSection();
      drawQueriesSection();
      drawRequestsSection();
      drawUnknownSection();
    }
    selection = place();
    for (const draw of drawings) draw();
    drawPicture(!first);
  }

  if (data.report.requests) show(data);
  document.documentElement.dataset.ready = "true";
  return {show};
})();
