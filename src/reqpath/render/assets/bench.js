// The benchmark's page: reads the data and draws it, question by question.
"use strict";
(() => {
  const {UNKNOWN, duration, share, rate, estimate, count, group, shorten, make, section, colour, swatch, legend, table, plot, figure, copyButton, drawDifferences} = parts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const letters = data.palette;
  const TIERS = Object.keys(letters);
  const TIP = {fill: "var(--raised)", stroke: "var(--line)"};
  const {cells, control} = data;
  const several = data.workloads.length > 1;
  const LINES = ["solid", "dashed", "dotted"];
  const DASHES = [null, "7 4", "2 4"];
  const SERIES = 8;
  const MOST_ROWS = 60;

  // A set-up has its colour and its kind of line among those of its workload, in every chart.
  for (const workload of data.workloads) {
    workload.title = shorten(workload.title, 80);
    workload.cells.forEach((cell, i) => Object.assign(cells[cell], {title: workload.title, colour: `var(--series-${i % SERIES})`, line: i % LINES.length}));
  }
  const full = (cell) => (several ? `${cell.title}, ${cell.name}` : cell.name);
  const finite = (value) => value !== null && value !== undefined;
  const short = (ns) => (ns ? duration(ns, 1, 2).replace(".0 ", " ") : "0");
  const signed = (ns) => (ns ? duration(ns, 1, 2, true).replace(".0 ", " ") : "0");

  // --- Parts of this page -------------------------------------------------------------------------------------

  const charts = [];
  function chart(draw) {
    const made = figure(draw);
    charts.push(made);
    return made.element;
  }
  const soft = (...text) => make("p", {class: "soft"}, ...text);
  const sample = (cell) => make("span", {class: "sample", "aria-hidden": "true", style: {borderTop: `3px ${LINES[cell.line]} ${cell.colour}`}});
  const keys = (list, ...more) => make("ul", {class: "legend", "aria-label": "set-ups"}, list.map((cell) => make("li", {}, sample(cell), cell.name)), more);
  const pairs = (list) => make("dl", {class: "pairs"}, list.map(([name, value]) => [make("dt", {}, shorten(name, 100)), make("dd", {}, shorten(value, 400))]));

  /** What is drawn of each workload's set-ups; with more than one workload, under its name. */
  function each(draw) {
    return data.workloads.flatMap((workload, i) => {
      const drawn = draw(workload.cells.map((cell) => cells[cell]), i);
      return drawn.length && several ? [make("h3", {}, workload.title), ...drawn] : drawn;
    });
  }

  const ofWorkload = () => (several ? [{name: "for", kind: "word", value: (row) => row.title, text: (row) => row.title}] : []);
  const setUp = () => ({name: "set-up", kind: "name", value: (row) => row.name, text: (row) => row.name});
  const number = (name, key, text, more = {}) => ({name, value: (row) => row[key], text: (row) => (finite(row[key]) ? text(row[key]) : UNKNOWN), ...more});
  const time = (name, key, more = {}) => number(name, key, (ns) => duration(ns), more);
  const difference = (name, get, more = {}) => ({name, value: (row) => (get(row) ? get(row).value_ns : null), text: (row) => estimate(get(row)), ...more});
  /** In the place of a saturated cell's times, that it is. */
  const stateOf = (cell) => (cell.saturated ? "saturated" : cell.valid ? null : cell.runs ? "no valid run" : UNKNOWN);

  // --- What was compared --------------------------------------------------------------------------------------

  /** Differences with their intervals, one a line of {label, mean}; behind them what could go unnoticed. */
  function drawAnswers(rows) {
    const list = rows.map(({label, mean}, i) => ({line: String(i), label, at: mean.client.value_ns, low: mean.client.low_ns, high: mean.client.high_ns,
      unseen: mean.resolvable_ns, different: mean.outcome === "different", tip: `${label}: ${estimate(mean.client)}`}));
    const bounds = d3.extent([0, ...list.flatMap((row) => [row.at, row.low, row.high, row.unseen, finite(row.unseen) ? -row.unseen : null])]);
    return chart((width) => plot(`differences of the mean latency: ${list.map((row) => row.tip).join("; ")}`, {width, height: 42 * list.length + 46, marginLeft: 30, marginRight: 30, marginTop: 0, marginBottom: 44,
      x: {domain: bounds[0] === bounds[1] ? [-1000, 1000] : bounds, nice: true, label: "← faster · difference of the mean latency · slower →", labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 3 : 8, tickFormat: signed, grid: true},
      fy: {domain: list.map((row) => row.line), axis: null, padding: 0}, color: {type: "identity"},
      marks: [
        Plot.ruleX(list, {x: 0, fy: "line", stroke: "currentColor", insetTop: 20}),
        Plot.rectX(list.filter((row) => finite(row.unseen)), {x1: (row) => -row.unseen, x2: "unseen", fy: "line", fill: "var(--soft)", fillOpacity: 0.14, insetTop: 20, insetBottom: 4}),
        Plot.rectX(list.filter((row) => finite(row.low)), {x1: "low", x2: "high", fy: "line", fill: "var(--accent)", fillOpacity: 0.85, insetTop: 28, insetBottom: 11}),
        Plot.dot(list, {x: "at", fy: "line", frameAnchor: "middle", dy: 8.5, r: 5, fill: (row) => (row.different ? "var(--accent)" : "var(--ground)"), stroke: "var(--accent)", strokeWidth: 2, title: "tip", tip: TIP}),
        ...[true, false].map((different) => Plot.text(list.filter((row) => row.different === different), {fy: "line", text: (row) => shorten(row.label, Math.floor(width / 6.6)), frameAnchor: "top-left", dx: -29, dy: 4, fontSize: 12.5, fill: "currentColor", fontWeight: different ? 600 : 400})),
      ]}));
  }

  const isDifferent = (asked) => [asked.mean, asked.slowest].some((one) => one && one.outcome === "different");

  function drawComparedSection() {
    const rows = [...data.questions, {...control, id: "control", workload: cells[control.cell].workload, compared: "A/A", levels: cells[control.cell].name}]
      .map((row) => ({...row, title: data.workloads[row.workload].title, label: `${row.compared}, ${row.levels}`, kind: row.mean ? (isDifferent(row) ? "strong" : null) : "dim"}));
    const drawn = each((_, workload) => {
      const own = rows.filter((row) => row.mean && row.workload === workload);
      return own.length ? [drawAnswers(own)] : [];
    });
    const figures = (metric, name, behind) => [
      {...difference(name, (row) => (row[metric] ? row[metric].client : null), {title: "with its 95 % interval"}),
        text: (row) => (row[metric] ? estimate(row[metric].client) : metric === "mean" ? "not compared" : "")},
      {name: `found from${behind}`, title: "what would have been found with 80 % chance", wide: metric !== "mean", value: (row) => (row[metric] ? row[metric].resolvable_ns : null), text: (row) => (row[metric] ? duration(row[metric].resolvable_ns, 1, 2) : "")},
      {name: `p${behind}`, title: "Wilcoxon's, adjusted by Holm among all comparisons", wide: true, value: (row) => (row[metric] ? row[metric].p : null), text: (row) => (row[metric] ? row[metric].p_text : "")},
    ];
    const view = table("comparisons", [
      ...ofWorkload(),
      {name: "compared", kind: "word", value: (row) => row.compared, cell: (row) => make("a", {href: `#${row.id}`}, row.compared)},
      {name: "levels", kind: "word", value: (row) => row.levels, text: (row) => row.levels},
      {name: "base", title: "the mean with the first level", wide: true, value: (row) => (row.mean ? row.mean.base_ns : null), text: (row) => (row.mean ? duration(row.mean.base_ns) : "")},
      ...figures("mean", "difference", ""), ...figures("slowest", "slowest 1 %", " there"),
    ], {limit: MOST_ROWS});
    view.show(rows);
    page.append(section("compared", "Which choices make a difference, and how large is it?",
      "Differences of means over blocks, from the first level to the second, with their 95 % intervals. A grey band is what could go unnoticed: a difference beyond it would have been found with 80 % chance.",
      ...drawn, view.element, soft("Found from: what would have been found with 80 % chance. p: Wilcoxon's, adjusted by Holm among all comparisons. A/A: a set-up with itself.")));
  }

  // --- Each question ------------------------------------------------------------------------------------------

  const plain = (ns) => ({value_ns: ns, low_ns: null, high_ns: null});
  const excludesZero = ({low_ns: low, high_ns: high}) => finite(low) && (low > 0 || high < 0);
  const ofTier = (row) => make("span", {}, row.tier ? swatch(row.tier, letters[row.tier]) : null, row.name);

  function drawQuestionSection(question) {
    const element = section(question.id, question.heading, question.sentence);
    page.append(element);
    if (question.parts.length) {
      const used = TIERS.filter((tier) => question.parts.some((part) => part.tier === tier));
      element.append(legend(used, letters));
      for (const [metric, title] of [["mean", "All requests: from the first level to the second"], ["slowest", "The slowest 1 %"]]) {
        element.append(make("h3", {}, title));
        const holder = make("div", {class: "differences"});
        element.append(holder);
        const told = question.parts.filter((part) => part[metric]);
        drawDifferences(holder, [...told.map((part) => ({name: part.name, tier: part.tier, difference: part[metric], dim: !excludesZero(part[metric])})),
          {name: "client", tier: "", difference: question[metric].client, sum: true, dim: false}], {label: `${question.heading} ${title}`, axis: `difference of ${metric === "mean" ? "the mean" : "the slowest 1 %"}, summed up from above`});
      }
      const {mean, slowest} = question;
      const rows = [...question.parts.map((part) => ({...part, kind: part.carries ? "strong" : null})),
        {name: "sum of the segments", kind: "sum", base_ns: mean.base_sum_ns, mean: plain(mean.sum_ns), slowest: plain(slowest.sum_ns)},
        {name: "client", kind: "strong", base_ns: mean.base_ns, mean: mean.client, slowest: slowest.client}];
      element.append(drawParts("segments of the difference", "segment", rows));
      if (question.lens.length) element.append(drawParts("what the worker's thread did", "the worker's thread meanwhile", question.lens.map((part) => ({...part, kind: "dim"}))));
    }
    if (question.own && question.own_names.length) {
      element.append(soft(`The segments in which it lies, ${question.own_names.join(", ")}, by themselves: ${estimate(question.own.client)}, p ${question.own.p_text}; `,
        finite(question.own.resolvable_ns) ? `${duration(question.own.resolvable_ns, 1, 2)} would have been found with 80 % chance.` : "too few blocks to find any."));
    }
    if (question.pairs.length > 1 || question.pairs.some((pair) => pair.note)) {
      const view = table("pairs of set-ups", [
        {name: "first", kind: "word", value: (row) => row.first, text: (row) => row.first},
        {name: "second", kind: "name", value: (row) => row.second, text: (row) => row.second},
        {name: "blocks", value: (row) => row.blocks, text: (row) => group(row.blocks)},
        difference("difference", (row) => row.client),
        {name: "note", hidden: true, text: (row) => row.note},
      ], {limit: MOST_ROWS});
      view.show(question.pairs.map((pair) => ({...pair, kind: pair.note ? "dim" : null})));
      element.append(make("h3", {}, "Pairs of set-ups that differ in this alone"), view.element);
    }
  }

  function drawParts(label, name, rows) {
    const view = table(label, [
      {name, kind: "name", cell: ofTier},
      {name: "before", value: (row) => row.base_ns, text: (row) => duration(row.base_ns)},
      difference("difference", (row) => row.mean),
      difference("slowest 1 %", (row) => row.slowest),
    ], {limit: MOST_ROWS});
    view.show(rows);
    return view.element;
  }

  // --- Latencies ----------------------------------------------------------------------------------------------

  /** Where a share of the requests is on an axis that has as much room for each tenth of those beyond. */
  const depth = (part) => -Math.log10(1 - part);
  const PERCENTILES = [0, 50, 90, 99, 99.9, 99.99, 99.999, 99.9999];

  function logTicks(low, high) {
    const ticks = (steps) => d3.range(3, 12).flatMap((power) => steps.map((step) => step * 10 ** power)).filter((ns) => ns >= low && ns <= high);
    const few = ticks([1, 2, 5]);
    return few.length > 3 ? few : ticks([1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]);
  }

  function drawDistributions(own) {
    const drawn = own.filter((cell) => cell.points.length > 1);
    if (!drawn.length) return [];
    const points = drawn.flatMap((cell) => cell.points.map(([part, ns]) => ({cell, at: depth(part), ns: Math.max(1000, ns),
      tip: `${cell.name}\n${part ? `${(part * 100).toPrecision(part < 0.9 ? 2 : part < 0.999 ? 3 : 5)} % took at most ${duration(ns)}` : `the fastest took ${duration(ns)}`}`})));
    const [low, highest] = d3.extent(points, (point) => point.ns);
    const high = Math.max(highest, low * 1.1);
    const deepest = d3.max(points, (point) => point.at);
    const percents = PERCENTILES.map((percent) => [depth(percent / 100), `${percent}`]).filter(([at]) => at <= deepest + 1e-9);
    const names = new Map(percents);
    const label = `latency by percentile: ${drawn.map((cell) => `${cell.name}: ${cell.percentiles.map(([percent, ns]) => `p${percent} ${duration(ns)}`).join(", ")}`).join("; ")}`;
    const ticks = logTicks(low, high);
    return [keys(drawn), chart((width) => plot(label, {width, height: Math.max(260, Math.min(360, width * 0.42)), marginLeft: 62, marginRight: 16, marginTop: 24, marginBottom: 44,
      x: {domain: [0, deepest], axis: null}, y: {type: "log", domain: [low, high], nice: false, axis: null},
      marks: [
        Plot.gridY(ticks), Plot.gridX(percents.map(([at]) => at)),
        Plot.axisX(percents.map(([at]) => at), {text: (at) => names.get(at), label: "percentile of the requests (%, log scale)", labelAnchor: "center", labelArrow: "none"}),
        Plot.axisY(ticks, {text: short, label: "latency (log scale)", labelArrow: "none"}),
        ...drawn.map((cell) => Plot.line(points.filter((point) => point.cell === cell), {x: "at", y: "ns", stroke: cell.colour, strokeWidth: 2, strokeDasharray: DASHES[cell.line]})),
        Plot.tip(points, Plot.pointer({x: "at", y: "ns", title: "tip", ...TIP})),
      ]}))];
  }

  function drawLatencySection() {
    const has = (percent) => cells.some((cell) => cell.percentiles.some(([own]) => own === percent));
    const percentile = (percent) => ({name: `p${percent}`, wide: true, value: (row) => percentileOf(row, percent), text: (row) => (finite(percentileOf(row, percent)) ? duration(percentileOf(row, percent)) : "")});
    const percentileOf = (cell, percent) => (cell.percentiles.find(([own]) => own === percent) || [null, null])[1];
    const times = (name, key) => ({...time(name, key), text: (row) => (stateOf(row) ? "" : duration(row[key]))});
    const view = table("latency of each set-up", [
      ...ofWorkload(), setUp(),
      {name: "valid runs", wide: true, value: (row) => row.valid, text: (row) => `${row.valid} of ${row.runs}`},
      {...time("mean", "mean_ns"), text: (row) => stateOf(row) || duration(row.mean_ns)},
      times("p50", "p50_ns"), times("p90", "p90_ns"), times("p99", "p99_ns"),
      ...[99.9, 99.99].filter(has).map(percentile),
      {...times("slowest", "highest_ns"), wide: true},
    ], {limit: MOST_ROWS});
    view.show(cells.map((cell) => ({...cell, kind: stateOf(cell) ? "dim" : null})));
    page.append(section("latency", "How long does a request take at each set-up, and how long do the slow ones?",
      "From the planned send to the last byte, over all valid runs of a set-up: so many percent of its requests took at most so long. Lines end where fewer than ten requests were slower; a saturated set-up has no times.",
      ...each(drawDistributions), view.element));
  }

  // --- Tiers --------------------------------------------------------------------------------------------------

  /** Bars of [{name, ns, segments: [[name, tier, ns]…]}], all on one scale, their segments in order. */
  function drawBars(lines, label) {
    const longest = d3.max(lines, (line) => d3.sum(line.segments, ([, , ns]) => Math.max(0, ns)));
    const pieces = lines.flatMap((line) => {
      let at = 0;
      return line.segments.filter(([, , ns]) => ns > 0).map(([name, tier, ns]) => ({line: line.name, tier, x1: at, x2: (at += ns), tip: `${name}: ${duration(ns)} of ${duration(line.ns)}`, text: `${name} ${duration(ns)}`}));
    });
    const summary = `${label}: ${lines.map((line) => `${line.name}, ${duration(line.ns)}: ${pieces.filter((piece) => piece.line === line.name).map((piece) => piece.text).join(", ")}`).join("; ")}`;
    return chart((width) => plot(summary, {width, height: 44 * lines.length + 44, marginLeft: 1, marginRight: 12, marginTop: 0, marginBottom: 44,
      x: {domain: [0, longest], label, labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 4 : 8, tickFormat: short},
      fy: {domain: lines.map((line) => line.name), axis: null, padding: 0}, color: {type: "identity"},
      marks: [
        Plot.text(lines, {fy: "name", text: (line) => `${line.name}, ${duration(line.ns)}`, frameAnchor: "top-left", dy: 5, fontSize: 12.5, fill: "currentColor"}),
        Plot.rectX(pieces, {x1: "x1", x2: "x2", fy: "line", fill: (piece) => colour(piece.tier), insetTop: 21, insetBottom: 1, insetLeft: 0.5, insetRight: 0.5, stroke: "var(--edge)", strokeWidth: 0.75, title: "tip", tip: TIP}),
        Plot.text(pieces.filter((piece) => ((piece.x2 - piece.x1) / longest) * width > 14), {x: (piece) => (piece.x1 + piece.x2) / 2, fy: "line", text: (piece) => letters[piece.tier], frameAnchor: "middle", dy: 10, fill: "#1c1c1c", fontSize: 11, pointerEvents: "none"}),
      ]}));
  }

  const METRICS = [["mean", "mean_ns", "segments"], ["slowest 1 %", "slowest_ns", "slowest_segments"]];

  function drawTiersSection() {
    const known = cells.filter((cell) => cell.mean_ns);
    if (!known.length) return;
    const used = TIERS.filter((tier) => known.some((cell) => cell.segments.some(([, own]) => own === tier)));
    const drawn = each((own) => METRICS.flatMap(([title, total, segments]) => {
      const lines = own.filter((cell) => cell[total]).map((cell) => ({name: cell.name, ns: cell[total], segments: cell[segments]}));
      return lines.length ? [drawBars(lines, title === "mean" ? "mean time of a request" : "mean time of the slowest 1 % of requests")] : [];
    }));
    const view = table("time in each tier", [
      ...ofWorkload(), setUp(),
      {name: "of", kind: "word", value: (row) => row.of, text: (row) => row.of},
      time("client", "ns", {title: "what the client waited"}),
      ...used.map((tier) => ({name: tier === "client" ? "client's own" : tier, wide: !["mysql", "flask"].includes(tier), value: (row) => row.tiers[tier], text: (row) => duration(row.tiers[tier])})),
    ], {limit: 2 * MOST_ROWS});
    view.show(known.flatMap((cell) => METRICS.filter(([, total]) => cell[total]).map(([of, total, segments]) => ({name: cell.name, title: cell.title, of, ns: cell[total],
      tiers: Object.fromEntries(used.map((tier) => [tier, d3.sum(cell[segments], ([, own, ns]) => (own === tier ? ns : 0))]))}))));
    page.append(section("tiers", "Where does the time go in each set-up?", "Means of a request, its segments in the order in which it meets them; each bar adds up to what the client waited.",
      legend(used, letters), ...drawn, view.element));
  }

  // --- Capacity, and what became of what was sent -------------------------------------------------------------

  function drawCapacities(own) {
    const known = own.filter((cell) => finite(cell.capacity_per_s));
    if (!known.length) return [];
    const highest = d3.max(known, (cell) => Math.max(cell.capacity_per_s, cell.rate_per_s || 0));
    const text = (cell) => `${cell.name}, ${rate(cell.capacity_per_s)}${cell.saturated ? ": saturated by what it was sent" : ""}`;
    const steps = known.flatMap((cell) => cell.steps.map(([connections, per_s, errors]) => ({cell: cell.name, connections, per_s,
      tip: `${cell.name}\n${count(connections, "connection")}: ${rate(per_s)}${errors ? `, ${count(errors, "error")}` : ""}`})));
    const sent = known.filter((cell) => finite(cell.rate_per_s));
    return [chart((width) => plot(`capacity: ${known.map((cell) => `${text(cell)}, sent ${finite(cell.rate_per_s) ? rate(cell.rate_per_s) : "nothing"}`).join("; ")}`,
      {width, height: 40 * known.length + 46, marginLeft: 1, marginRight: 12, marginTop: 0, marginBottom: 44,
        x: {domain: [0, highest], label: "requests per second (1/s)", labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 4 : 8, tickFormat: (each) => group(each)},
        fy: {domain: known.map((cell) => cell.name), axis: null, padding: 0}, color: {type: "identity"},
        marks: [
          Plot.text(known, {fy: "name", text, frameAnchor: "top-left", dy: 4, fontSize: 12.5, fill: (cell) => (cell.saturated ? "var(--warn)" : "currentColor")}),
          Plot.rectX(known, {x1: 0, x2: "capacity_per_s", fy: "name", fill: (cell) => (cell.saturated ? "var(--warn)" : "var(--heat)"), fillOpacity: 0.45, insetTop: 20, insetBottom: 3}),
          Plot.ruleX(sent, {x: "rate_per_s", fy: "name", stroke: "currentColor", strokeWidth: 2, insetTop: 18}),
          Plot.dot(steps, {x: "per_s", fy: "cell", frameAnchor: "middle", dy: 8.5, r: 3, fill: "currentColor", title: "tip", tip: TIP}),
        ]}))];
  }

  function drawCapacitySection() {
    const drawn = each(drawCapacities);
    const tools = [...new Set(cells.map((cell) => cell.tool).filter(Boolean))];
    const connections = [...new Set(cells.flatMap((cell) => cell.steps.map(([each]) => each)))].sort((one, other) => one - other);
    const stepOf = (cell, each) => cell.steps.find(([own]) => own === each) || [each, null, 0];
    const view = table("capacity of each set-up", [
      ...ofWorkload(), setUp(),
      number("can do", "capacity_per_s", rate, {title: "the most of any step of the closed loop"}),
      ...connections.map((each) => ({name: `with ${count(each, "connection")}`, wide: true, value: (row) => stepOf(row, each)[1],
        text: (row) => (finite(stepOf(row, each)[1]) ? `${rate(stepOf(row, each)[1])}${stepOf(row, each)[2] ? `, ${count(stepOf(row, each)[2], "error")}` : ""}` : "")})),
      number("sent", "rate_per_s", rate, {title: "planned arrivals of each run"}),
      {name: "of it", title: "sent, as a share of what it can do", value: (row) => (row.capacity_per_s && finite(row.rate_per_s) ? row.rate_per_s / row.capacity_per_s : null),
        text: (row) => (row.capacity_per_s && finite(row.rate_per_s) ? share(row.rate_per_s / row.capacity_per_s) : UNKNOWN)},
      {name: "state", hidden: true, text: (row) => (row.saturated ? "saturated" : "")},
    ], {limit: MOST_ROWS});
    view.show(cells.map((cell) => ({...cell, kind: cell.saturated ? "dim" : null})));
    page.append(section("capacity", "How much can each set-up do, and how much of it was it sent?",
      drawn.length ? `The bar is the most that a closed loop got through (${tools.join(", ") || "before the first run"}), its dots are the steps with so many connections, the upright line is what was sent. All set-ups of a workload are sent the same.`
        : "The rates were given, so no capacity was looked for.", ...drawn, view.element));
  }

  function drawArrivalsSection() {
    const view = table("what became of what was sent", [
      ...ofWorkload(), setUp(),
      number("arrivals", "planned", group, {title: "planned, in all its runs but the A/A ones"}),
      number("answered", "answered_per_s", rate, {title: "good answers per second of what is measured"}),
      {name: "failed", value: (row) => row.failed - row.dropped, text: (row) => (row.planned ? row.failures || "0" : UNKNOWN)},
      number("dropped", "dropped", group, {title: "never sent, as too many were under way"}),
      number("listen overflows", "listen_overflows", group, {title: "connections that a full listen queue did not take"}),
      time("generator's lag, p99", "lag_p99_ns", {wide: true, title: "from the planned send to the true one"}),
      number("under way, of λ·W", "little", share, {wide: true, title: "requests under way over what Little's law expects, the run that is furthest from 1"}),
      {name: "state", hidden: true, text: (row) => (row.saturated ? "saturated" : "")},
    ], {limit: MOST_ROWS});
    view.show(cells.map((cell) => ({...cell, kind: stateOf(cell) ? "dim" : null})));
    page.append(section("arrivals", "What became of what was sent?", "All runs of a set-up, also those that do not count. Set-ups whose requests fail differently often are not compared.", view.element));
  }

  // --- The control --------------------------------------------------------------------------------------------

  function drawControlSection() {
    const cell = cells[control.cell];
    const element = section("control", "Does a set-up differ from itself?", control.sentence);
    page.append(element);
    if (!control.mean || !control.blocks.length) return;
    const {value_ns: value, low_ns: low, high_ns: high} = control.mean.client;
    const list = control.blocks.map(([block, ns]) => ({block: block + 1, ns, tip: `block ${block + 1}: ${duration(ns, 1, 3, true)}`}));
    const band = finite(low) ? [{low, high}] : [];
    const blocks = list.map((each) => each.block);
    element.append(
      soft(`Each block runs ${full(cell)} twice, and a dot is the second run's mean latency less the first one's. Over all blocks: ${estimate(control.mean.client)}`, band.length ? ", drawn as a line with its 95 % interval." : "."),
      chart((width) => plot(`differences of a set-up from itself: ${list.map((each) => each.tip).join(", ")}`, {width: Math.min(width, 720), height: 220, marginLeft: 66, marginRight: 8, marginTop: 24, marginBottom: 40,
        x: {domain: [d3.min(blocks) - 0.5, d3.max(blocks) + 0.5], ticks: blocks.length > 24 ? 12 : blocks, tickFormat: "d", label: "block", labelAnchor: "center", labelArrow: "none"},
        y: {domain: d3.extent([0, low, high, value, ...list.map((each) => each.ns)].filter(finite)), nice: true, label: "difference of the mean latency", labelArrow: "none", ticks: 5, tickFormat: signed, grid: true},
        marks: [
          Plot.rectY(band, {x1: d3.min(blocks) - 0.5, x2: d3.max(blocks) + 0.5, y1: "low", y2: "high", fill: "var(--accent)", fillOpacity: 0.16}),
          Plot.ruleY([0], {stroke: "currentColor"}), Plot.ruleY([value], {stroke: "var(--accent)", strokeWidth: 2}),
          Plot.dot(list, {x: "block", y: "ns", r: 4, fill: "var(--accent)", title: "tip", tip: TIP}),
        ]})));
    const view = table("differences of a set-up from itself", [
      {name: "block", value: (row) => row.block, text: (row) => group(row.block)},
      {name: "difference", value: (row) => row.ns, text: (row) => duration(row.ns, 1, 3, true)},
    ], {limit: 8});
    view.show(list);
    element.append(make("details", {}, make("summary", {}, "As a table"), view.element));
  }

  // --- The runs -----------------------------------------------------------------------------------------------

  function drawDrift(own) {
    const list = data.runs.filter((run) => own.includes(cells[run.cell]) && finite(run.mean_ns));
    const counted = list.filter((run) => !run.left_out);
    if (counted.length < 2) return [];
    const [low, high] = d3.extent(counted, (run) => run.mean_ns);
    const room = (high - low || high) * 0.06;
    const fit = (ns) => Math.min(high + room, Math.max(low - room, ns));
    const points = list.map((run) => ({run, number: run.number, at: fit(run.mean_ns), cell: cells[run.cell],
      tip: `${cells[run.cell].name}${run.twin ? ", A/A" : ""}\nrun ${run.number}, block ${run.block}\nmean ${duration(run.mean_ns)}${run.left_out ? `\ndoes not count: ${shorten(run.left_out, 80)}` : ""}`}));
    const shown = own.filter((cell) => counted.some((run) => cells[run.cell] === cell));
    const starts = d3.rollups(data.runs, (runs) => d3.min(runs, (run) => run.number), (run) => run.block).map(([block, first]) => ({block, first: first - 0.5}));
    const summary = `mean latency of each run, by block: ${shown.map((cell) => `${cell.name}: ${counted.filter((run) => cells[run.cell] === cell && !run.twin).map((run) => duration(run.mean_ns)).join(", ")}`).join("; ")}`;
    const hollow = points.filter((point) => point.run.twin && !point.run.left_out);
    const out = points.filter((point) => point.run.left_out);
    return [keys(shown, hollow.length ? make("li", {}, "○ A/A, the same set-up again") : null, out.length ? make("li", {}, "× does not count") : null), chart((width) => {
      const each = width / starts.length;
      return plot(summary, {width, height: Math.max(240, Math.min(320, width * 0.36)), marginLeft: 62, marginRight: 8, marginTop: 40, marginBottom: 42,
        x: {domain: [0.5, data.runs.length + 0.5], label: "run, in the order in which they were made", labelAnchor: "center", labelArrow: "none", ticks: width < 560 ? 5 : 10, tickFormat: "d"},
        y: {domain: [low - room, high + room], label: "mean latency of a run", labelArrow: "none", ticks: 5, tickFormat: (ns) => duration(ns, 1, high - low < high / 50 ? 4 : 3), grid: true}, color: {type: "identity"},
        marks: [
          Plot.ruleX(starts, {x: "first", stroke: "var(--line)"}),
          Plot.text(starts.filter((_, i) => each > 18 || i % 5 === 0), {x: "first", text: (start) => (each > 56 ? `block ${start.block}` : String(start.block)), frameAnchor: "top", textAnchor: "start", dx: 3, dy: -12, fill: "var(--soft)"}),
          ...shown.map((cell) => Plot.line(points.filter((point) => point.cell === cell && !point.run.left_out && !point.run.twin), {x: "number", y: "at", stroke: cell.colour, strokeWidth: 1.5, strokeOpacity: 0.7, strokeDasharray: DASHES[cell.line]})),
          Plot.dot(points.filter((point) => !point.run.left_out && !point.run.twin), {x: "number", y: "at", r: 3.5, fill: (point) => point.cell.colour}),
          Plot.dot(hollow, {x: "number", y: "at", r: 3.5, fill: "var(--ground)", stroke: (point) => point.cell.colour, strokeWidth: 1.75}),
          Plot.dot(out, {x: "number", y: "at", r: 4, symbol: "times", stroke: "var(--soft)", strokeWidth: 1.5}),
          Plot.tip(points, Plot.pointer({x: "number", y: "at", title: "tip", ...TIP})),
        ]});
    })];
  }

  function drawRunsSection() {
    if (!data.runs.length) return;
    const missing = data.runs.filter((run) => run.left_out);
    const rows = data.runs.map((run) => ({...run, name: `${cells[run.cell].name}${run.twin ? ", A/A" : ""}`, title: cells[run.cell].title, kind: run.left_out ? "dim" : null}));
    const view = table("runs", [
      number("run", "number", group), number("block", "block", group),
      ...ofWorkload(), setUp(),
      {name: "began", wide: true, value: (row) => row.start_ms, text: (row) => row.start},
      {name: "mean", value: (row) => row.mean_ns, text: (row) => (finite(row.mean_ns) ? duration(row.mean_ns) : row.left_out.includes("saturated") ? "saturated" : UNKNOWN)},
      {name: "slowest 1 %", value: (row) => row.slowest_ns, text: (row) => (finite(row.slowest_ns) ? duration(row.slowest_ns) : "")},
      {name: "answered", wide: true, title: "of the planned arrivals", value: (row) => row.answered, text: (row) => (row.answered === row.planned ? group(row.answered) : `${group(row.answered)} of ${group(row.planned)}`)},
      number("CPU", "cpu_share", share, {wide: true, title: "of the machine's CPU time, used"}),
      number("generator", "generator_share", share, {wide: true, title: "of the machine's CPU time, used by the load generator"}),
      number("stolen", "steal_share", share, {wide: true, title: "of the machine's CPU time, taken by other guests"}),
    ], {limit: 12, sort: {name: "run", descending: false}});
    view.show(rows);
    const left = table("runs that do not count", [
      number("run", "number", group), number("block", "block", group), ...ofWorkload(), setUp(),
      {name: "why", kind: "name", cell: (row) => row.left_out},
    ], {limit: MOST_ROWS});
    left.show(missing.map((run) => ({...run, name: `${cells[run.cell].name}${run.twin ? ", A/A" : ""}`, title: cells[run.cell].title})));
    page.append(
      section("drift", "In which order was it run, and did the machine hold still?", "Each block runs every set-up once, in random order; a dot is one run's mean latency. What drifts through all set-ups alike makes no difference between them: differences are taken within a block.",
        ...each(drawDrift), view.element),
      section("invalid", "Which runs count for nothing, and why?", missing.length ? `${count(missing.length, "run")} of ${group(data.runs.length)}: no figure on this page is made of them, but for what became of what was sent.` : `None: all ${group(data.runs.length)} count.`,
        missing.length ? left.element : null));
  }

  // --- What to know, and how to do it again -------------------------------------------------------------------

  function drawNotesSection() {
    if (!data.notes.length) return;
    page.append(section("notes", "What limits these figures?", "What the machine and the runs have that is to be known beside them.",
      make("ul", {class: "notes"}, data.notes.map(([what, meaning]) => make("li", {}, what, ": ", make("span", {class: "soft"}, meaning))))));
  }

  function drawAgainSection() {
    const like = "reqpath bench --like RESULT.json --output mine.json";
    const command = (text) => make("p", {class: "command"}, make("span", {class: "code"}, text), " ", copyButton(text, "copy the command"));
    const element = section("again", "How was it set up, and how is it run again?", "The same plan at the same rates, on any machine; then both results compared.",
      data.command ? command(data.command) : null, command(like), command("reqpath bench compare RESULT.json mine.json"),
      make("div", {class: "columns"}, make("div", {}, make("h3", {}, "Machine"), pairs(data.machine)), make("div", {}, make("h3", {}, "Plan"), pairs(data.plan))));
    // A file's name, and under it each text that it has, with the set-ups that have it.
    const files = new Map();
    for (const cell of cells) for (const [name, text] of cell.files) {
      if (!files.has(name)) files.set(name, new Map());
      const texts = files.get(name);
      texts.set(text, [...(texts.get(text) || []), full(cell)]);
    }
    if (files.size) element.append(make("h3", {}, "Configuration"));
    for (const [name, texts] of d3.sort(files, ([one], [other]) => d3.ascending(one, other))) {
      element.append(make("details", {class: "file"}, make("summary", {}, make("span", {class: "code"}, name)), [...texts].map(([text, of]) => [
        make("p", {class: "soft"}, of.length === cells.length ? "every set-up" : of.join("; ")),
        make("pre", {class: "code scroll", tabindex: "0", role: "region", "aria-label": `${name} of ${of.length === cells.length ? "every set-up" : of.join("; ")}`}, data.files[text].map(([indent, line]) => " ".repeat(indent) + line).join("\n"))])));
    }
    page.append(element, make("footer", {}, "Made by reqpath; drawn with D3 7.9.2 and Observable Plot 0.6.17 (ISC licence), which are in this file. It asks nothing of any network."));
  }

  drawComparedSection();
  data.questions.forEach(drawQuestionSection);
  drawLatencySection();
  drawTiersSection();
  drawCapacitySection();
  drawArrivalsSection();
  drawControlSection();
  drawRunsSection();
  drawNotesSection();
  drawAgainSection();
  for (const each of charts) each.redraw();
  document.documentElement.dataset.ready = "true";
})();
