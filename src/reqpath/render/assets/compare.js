// The comparison's page: reads the data and draws what differs between two sets of requests, and where.
"use strict";
(() => {
  const {UNKNOWN, duration, share, rate, estimate, count, group, shorten, make, breakable, section, colour, swatch, legend, table, plot, figure, drawDifferences} = parts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const {comparison, palette: letters, meanings} = data;
  const {first, second, total} = comparison;
  const page = document.getElementById("page");
  const SIDES = [["A", first], ["B", second]];
  const resolution = total.resolution_ns;
  const told = (low, high) => low !== null && (low > 0 || high < 0);

  // --- The head -----------------------------------------------------------------------------------------------

  function drawHead() {
    page.prepend(make("p", {class: "soft", id: "what"}, "reqpath compare"));
    page.append(make("dl", {class: "pairs", id: "sides"}, SIDES.map(([name, side], i) =>
      [make("dt", {}, name), make("dd", {}, shorten(side.title, 300), make("span", {class: "soft"}, `, ${data.when[i]}`))])));
    const cells = (name, read, text) => ({name, value: (row) => read(row.side), text: (row) => text(read(row.side), row.side)});
    const time = (ns, side) => (side.requests ? duration(ns, side.resolution_ns) : UNKNOWN);
    const view = table("the two sides", [
      {name: "side", kind: "word", value: (row) => row.name, text: (row) => row.name},
      cells("requests", (side) => side.requests, (value) => group(value)),
      {...cells("rate", (side) => side.rate_per_s, (value) => (value === null ? UNKNOWN : rate(value))), wide: true},
      cells("mean", (side) => side.latency.mean_ns, time),
      cells("p50", (side) => side.latency.p50_ns, time),
      cells("p90", (side) => side.latency.p90_ns, time),
      cells("p99", (side) => side.latency.p99_ns, time),
      {...cells("slowest", (side) => side.latency.max_ns, time), wide: true},
      {...cells("errors", (side) => side.errors, (value) => group(value)), title: "statuses of 500 and more", wide: true},
    ]);
    view.show(SIDES.map(([name, side]) => ({name, side})));
    page.append(section("latency", "The two sides", "How long do requests take?", view.element,
      make("p", {class: "soft"}, `Percentiles stand beside each other; only means add up.${data.extent ? ` Here ${data.extent}.` : ""}`)));
  }

  // --- The difference -----------------------------------------------------------------------------------------

  const sum = (name, difference) => ({name, tier: null, difference, sum: true});

  /** What a waterfall can be of: [{name, rows of parts, what the parts' differences lead to}]. */
  function listViews() {
    const views = [{name: "all requests", rows: comparison.parts, whole: total.difference}];
    if (comparison.routes.length > 1) {
      views.push({name: "all requests, within routes: without the mix of routes", whole: total.within,
        rows: comparison.parts.map((part) => ({...part, first_ns: null, second_ns: null, difference: part.within, differs: told(part.within.low_ns, part.within.high_ns)}))});
    }
    if (comparison.routes.length > 1) {
      for (const route of comparison.routes) if (route.parts.length) views.push({name: route.route, rows: route.parts, whole: route.difference});
    }
    return views;
  }

  function drawDifferenceSection() {
    const views = listViews();
    const holder = make("div");
    const select = make("select", {id: "of", "aria-label": "requests that are compared"}, views.map((view, i) => make("option", {value: i}, shorten(view.name, 120))));
    const fine = (row) => row.resolution_ns ?? 1;
    const list = table("segments", [
      {name: "segment", kind: "name", cell: (row) => (row.kind ? "total" : make("span", {title: meanings[row.name] ? `${meanings[row.name][0]}; without: ${meanings[row.name][1]}` : "the total less all of the above"},
        swatch(row.tier, letters[row.tier]), row.name))},
      {name: "A", value: (row) => row.first_ns, text: (row) => duration(row.first_ns, fine(row)), wide: true},
      {name: "B", value: (row) => row.second_ns, text: (row) => duration(row.second_ns, fine(row)), wide: true},
      {name: "difference [95 %]", value: (row) => row.difference.value_ns, text: (row) => estimate(row.difference)},
      {name: "told", kind: "mark", title: "no chance: the difference is beyond what the segments differ by anyway", value: (row) => Number(row.differs), text: (row) => (row.differs ? "✓" : "")},
    ], {limit: 30});
    const note = make("p", {class: "soft"});
    page.append(section("difference", "What changed, where", "In which segments is B slower or faster than A?",
      views.length > 1 ? make("p", {}, make("label", {for: "of"}, "of "), select) : null,
      legend([...new Set(comparison.parts.map((part) => part.tier))], letters), holder, list.element, note));
    const rowsOf = (view) => [...view.rows.map((row) => ({...row, dim: !row.differs})), sum("total", view.whole)];
    const chart = drawDifferences(holder, rowsOf(views[0]), {axis: "B less A, summed up from above"});
    const show = () => {
      const view = views[select.value || 0];
      chart.show(rowsOf(view));
      const means = (key) => view.rows.reduce((all, row) => (row[key] === null ? null : all + row[key]), 0);
      list.show([...view.rows, {name: "total", kind: "sum", first_ns: means("first_ns"), second_ns: means("second_ns"), difference: view.whole, differs: view === views[0] ? total.differs : told(view.whole.low_ns, view.whole.high_ns), resolution_ns: resolution}]);
      note.textContent = "Means of all these requests: a bar begins where the one above it ended, so that they lead to the total. The line across a bar's end is its 95 % interval, from slices of time. "
        + "Pale: chance could bring it about, alone or among so many segments.";
    };
    select.addEventListener("change", show);
    show();
  }

  // --- The paths ----------------------------------------------------------------------------------------------

  function drawPathSection() {
    const pieces = [];
    for (const [name, key] of [["A", "first_ns"], ["B", "second_ns"]]) {
      let at = 0;
      for (const part of comparison.parts) {
        const ns = Math.max(0, part[key]);
        if (ns) pieces.push({side: name, name: part.name, tier: part.tier, x1: at, x2: at + ns, tip: `${part.name} in ${name}: ${duration(ns, part.resolution_ns)}`});
        at += ns;
      }
    }
    const longest = d3.max(pieces, (piece) => piece.x2) || 1;
    const summary = ["A", "B"].map((name) => `${name}: ${pieces.filter((piece) => piece.side === name).map((piece) => `${piece.name} ${duration(piece.x2 - piece.x1)}`).join(", ")}`).join("; ");
    const chart = figure((width) => plot(`the mean path of each side: ${summary}`, {width, height: 150, marginLeft: 26, marginRight: 12, marginTop: 4, marginBottom: 42,
      x: {domain: [0, longest], label: "mean time, in the order of the path", labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 3 : 6, tickFormat: (ns) => (ns ? duration(ns, 1, 2).replace(".0", "") : "0"), grid: true},
      y: {type: "band", domain: ["A", "B"], label: null, tickSize: 0, padding: 0.25}, color: {type: "identity"},
      marks: [
        Plot.barX(pieces, {x1: "x1", x2: "x2", y: "side", fill: (piece) => colour(piece.tier), stroke: "var(--edge)", strokeWidth: 0.75}),
        Plot.text(pieces.filter((piece) => ((piece.x2 - piece.x1) / longest) * (width - 40) > 14), {x: (piece) => (piece.x1 + piece.x2) / 2, y: "side", text: (piece) => letters[piece.tier], fill: "#1c1c1c", fontSize: 11}),
        Plot.tip(pieces, Plot.pointer({x: (piece) => (piece.x1 + piece.x2) / 2, y: "side", title: "tip", fill: "var(--raised)", stroke: "var(--line)"})),
      ]}));
    page.append(section("path", "The path of each", "What is a request's time made of, before and after?", chart.element));
    chart.redraw();
  }

  // --- Routes -------------------------------------------------------------------------------------------------

  function drawMixSection() {
    if (comparison.routes.length < 2) return;
    const holder = make("div");
    const mean = (sum_ns, requests) => (requests ? sum_ns / requests : null);
    const view = table("routes", [
      {name: "route", kind: "name", value: (row) => row.route, cell: (row) => make("span", {class: "code"}, breakable(shorten(row.route, 200)))},
      {name: "requests, A", wide: true, value: (row) => row.first_requests, text: (row) => `${group(row.first_requests)}, ${share(row.first_requests / first.requests)}`},
      {name: "requests, B", wide: true, value: (row) => row.second_requests, text: (row) => `${group(row.second_requests)}, ${share(row.second_requests / second.requests)}`},
      {name: "mean, A", wide: true, value: (row) => mean(row.first_sum_ns, row.first_requests), text: (row) => duration(mean(row.first_sum_ns, row.first_requests), resolution)},
      {name: "mean, B", wide: true, value: (row) => mean(row.second_sum_ns, row.second_requests), text: (row) => duration(mean(row.second_sum_ns, row.second_requests), resolution)},
      {name: "difference [95 %]", value: (row) => (row.difference ? row.difference.value_ns : null), text: (row) => (row.difference ? estimate(row.difference) : row.first_requests ? "only in A" : "only in B")},
      {name: "of the whole", title: "what this route brings to the whole difference: by its own and by its share of the requests", value: (row) => row.within_ns + row.mix_ns, text: (row) => duration(row.within_ns + row.mix_ns, 1, 2, true)},
    ]);
    view.show(comparison.routes);
    page.append(section("routes", "Routes, and their mix", "Did routes change, or are there more requests of slow ones?", holder,
      make("p", {class: "soft"}, "Within routes: as if both sides had the same shares of each route. Mix: by more requests of some routes and fewer of others. A route that one side lacks is mix."), view.element));
    const row = (name, difference) => ({name, tier: "app", difference, dim: !told(difference.low_ns, difference.high_ns)});
    drawDifferences(holder, [row("within routes", total.within), row("mix of routes", total.mix), sum("total", total.difference)],
      {label: "the difference within routes and by their mix", axis: "B less A, summed up from above"});
  }

  // --- Slices of time -----------------------------------------------------------------------------------------

  function drawSlicesSection() {
    const dots = SIDES.flatMap(([name, side]) => side.slices.map((slice, i) => ({name, i: i + 1, ns: slice.total_ns / slice.requests, requests: slice.requests})));
    const means = SIDES.map(([name, side]) => ({name, ns: side.mean_ns}));
    const label = `mean of each slice of time; ${SIDES.map(([name, side]) => `${name} has ${count(side.slices.length, "slice")}`).join(", ")}`;
    const most = Math.max(...SIDES.map(([, side]) => side.slices.length));
    const chart = figure((width) => plot(label, {width, height: 220, marginLeft: 62, marginRight: 8, marginTop: 22, marginBottom: 42,
      x: {domain: [0.5, most + 0.5], label: "slice of the side's time", labelAnchor: "center", labelArrow: "none", ticks: 4, tickFormat: (i) => (Number.isInteger(i) ? String(i) : "")},
      fx: {domain: ["A", "B"], label: null, axis: "top", padding: 0.08},
      y: {zero: true, label: "mean time", labelArrow: "none", ticks: 5, tickFormat: (ns) => (ns ? duration(ns, 1, 2).replace(".0", "") : "0"), grid: true},
      marks: [
        Plot.ruleY(means, {y: "ns", fx: "name", stroke: "var(--soft)", strokeDasharray: "4 3"}),
        Plot.lineY(dots, {x: "i", y: "ns", fx: "name", stroke: "var(--heat)", strokeOpacity: 0.5}),
        Plot.dot(dots, {x: "i", y: "ns", fx: "name", r: 3, fill: "var(--heat)"}),
        Plot.tip(dots, Plot.pointer({x: "i", y: "ns", fx: "name", title: (dot) => `${duration(dot.ns)}\n${count(dot.requests, "request")}`, fill: "var(--raised)", stroke: "var(--line)"})),
      ]}));
    page.append(section("slices", "Over time", "How steady is each side?", chart.element,
      make("p", {class: "soft"}, "Requests that follow each other are alike, so a slice of time counts as one observation, and the intervals above come from how these dots scatter.")));
    chart.redraw();
  }

  // --- What is to be known ------------------------------------------------------------------------------------

  function drawNotesSection() {
    page.append(section("notes", "What else is to be known", "What else differs, and what do these figures not have?",
      data.notes.length ? make("ul", {class: "notes"}, data.notes.map(([what, meaning]) => make("li", {}, what, ": ", make("span", {class: "soft"}, meaning))))
        : make("p", {}, "Nothing: both sides have every stamp, and nothing else is known to differ.")));
    page.append(make("footer", {}, "Made by reqpath; drawn with D3 7.9.2 and Observable Plot 0.6.17 (ISC licence), which are in this file. It asks nothing of any network."));
  }

  drawHead();
  if (first.requests && second.requests) {
    drawDifferenceSection();
    drawPathSection();
    drawMixSection();
    drawSlicesSection();
  }
  drawNotesSection();
  document.documentElement.dataset.ready = "true";
})();
