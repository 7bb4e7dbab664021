// What reqpath's pages are made of: figures as text, elements, tables, bars. Everything that comes from a request
// is put on the page as text, never as markup.
"use strict";
const parts = (() => {
  const UNITS = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
  const UNKNOWN = "-";
  const unitOf = (ns) => UNITS.find(([size]) => ns >= size) || [1, "ns"];
  const group = (value, decimals = 0) =>
    value.toLocaleString("en-US", {minimumFractionDigits: decimals, maximumFractionDigits: decimals});

  /** Round half to even, as Python does. */
  function round(value) {
    const down = Math.floor(value);
    const rest = value - down;
    return rest < 0.5 ? down : rest > 0.5 ? down + 1 : down % 2 ? down + 1 : down;
  }

  /** The same text as `reqpath.render.units.format_duration`. */
  function duration(ns, resolution = 1, digits = 3, sign = false) {
    if (ns === null || ns === undefined) return UNKNOWN;
    const finest = Math.max(resolution, 1000);
    const size = Math.abs(ns);
    if (size < finest / 2) return ns === 0 && (resolution < 1000 || sign) ? "0" : `<1 ${unitOf(finest)[1]}`;
    const step = Math.max(finest, 10 ** (String(Math.trunc(size)).length - digits));
    const rounded = Math.max(1, round(size / step)) * step;
    const [unitSize, unit] = unitOf(rounded);
    let decimals = Math.max(0, digits - String(Math.floor(rounded / unitSize)).length);
    decimals = Math.min(decimals, unitSize >= finest ? String(Math.floor(unitSize / finest)).length - 1 : 0);
    return `${ns < 0 ? "-" : sign ? "+" : ""}${group(rounded / unitSize, decimals)} ${unit}`;
  }

  /** The same text as `reqpath.render.units.format_share`. */
  function share(value) {
    const percent = value * 100;
    const size = Math.abs(percent);
    if (size === 0) return "0 %";
    if (size < 0.1) return "<0.1 %";
    return size < 9.95 || (size > 90 && size < 99.95) ? `${percent.toFixed(1)} %` : `${percent.toFixed(0)} %`;
  }

  /** The same text as `reqpath.render.units.format_rate`. */
  function rate(perSecond) {
    for (const [seconds, unit] of [[1, "s"], [60, "min"], [3600, "h"]]) {
      const value = perSecond * seconds;
      if (value >= 1 || unit === "h") return `${value >= 10 ? group(round(value)) : value.toFixed(1)}/${unit}`;
    }
    return "";
  }

  /** The same text as `reqpath.render.bench_sentence.format_estimate`, of {value_ns, low_ns, high_ns}. */
  function estimate(difference, sign = true) {
    if (!difference) return UNKNOWN;
    const {value_ns: value, low_ns: low, high_ns: high} = difference;
    if (low === null || high === null) return duration(value, 1, 3, sign);
    const largest = Math.max(Math.abs(value), Math.abs(low), Math.abs(high));
    const [size, unit] = UNITS.find((entry) => largest >= entry[0]) || UNITS[UNITS.length - 1];
    const width = Math.max(high - low, largest / 100, 1);
    const decimals = Math.min(Math.max(0, -Math.floor(Math.log10(width / size / 3))), unit === "µs" ? 1 : 2);
    const write = (ns) => {
      const rounded = round((ns / size) * 10 ** decimals) / 10 ** decimals;
      return rounded ? `${sign && rounded > 0 ? "+" : ""}${group(rounded, decimals)}` : "0";
    };
    return `${write(value)} ${unit} [${write(low)}, ${write(high)}]`;
  }

  const count = (number, noun) => `${group(number)} ${noun}${number === 1 ? "" : "s"}`;
  const shorten = (text, limit) => (text.length > limit ? `${text.slice(0, limit)}…` : text);

  /** Make an element; children are elements or text. */
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (value === null || value === undefined) continue;
      if (key === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
      else if (key === "style") Object.assign(element.style, value);
      else if (key === "data") Object.assign(element.dataset, value);
      else element.setAttribute(key, value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** Text that may go on in a new line after a slash. */
  const breakable = (text) => text.split(/(?<=\/)/).flatMap((part) => [part, make("wbr")]);

  /** A section with its title and the question that it answers; returns it. */
  function section(id, title, question, ...children) {
    return make("section", {id, "aria-labelledby": `${id}-title`},
      make("h2", {id: `${id}-title`}, title), make("p", {class: "question"}, question), ...children);
  }

  const colour = (tier) => `var(--tier-${tier})`;
  const swatch = (tier, letter) =>
    make("span", {class: "swatch", "aria-hidden": "true", style: {background: colour(tier)}}, letter);
  const legend = (tiers, letters) =>
    make("ul", {class: "legend", "aria-label": "tiers"},
      tiers.map((tier) => make("li", {}, swatch(tier, letters[tier]), tier)));

  /** A small bar of parts, [[tier, value]…], as wide as the cell that it is in. */
  function bar(values) {
    const known = values.filter(([, value]) => value > 0);
    const sum = known.reduce((all, [, value]) => all + value, 0);
    const text = known.map(([tier, value]) => `${tier} ${share(value / sum)}`).join(", ");
    return make("div", {class: "bar", role: "img", "aria-label": text, title: text},
      known.map(([tier, value]) =>
        make("i", {style: {background: colour(tier), width: `${(100 * value) / sum}%`}})));
  }

  /**
   * A table whose columns sort it.
   *
   * A column is {name, title, value(row), text(row), cell(row), kind}: `value` sorts and is kept as data-value,
   * `text` is what is read, `cell` makes an element instead, `kind` "name" is text on the left, "word" a short one, `wide` is left out
   * on a narrow screen.
   */
  function table(label, columns, {sort = null, limit = 12, empty = "None.", sums = null} = {}) {
    let order = sort;
    let rows = [];
    let all = false;
    const head = make("tr");
    const body = make("tbody");
    const more = make("button", {class: "act", type: "button", on: {click: () => { all = !all; draw(); }}});
    const wrap = make("div", {},
      make("div", {class: "scroll", role: "region", "aria-label": `${label}, a table that scrolls`, tabindex: "0"},
        make("table", {"aria-label": label}, make("thead", {}, head), body)),
      more);
    for (const column of columns) {
      const properties = {scope: "col", class: [column.kind, column.wide ? "wide" : ""].filter(Boolean).join(" "), title: column.title};
      if (!column.value) { head.append(make("th", properties, column.hidden ? make("span", {class: "unseen"}, column.name) : column.name)); continue; }
      const cell = make("th", properties, make("button", {type: "button", on: {click: () => {
        const descending = order && order.name === column.name ? !order.descending : !["name", "word"].includes(column.kind);
        order = {name: column.name, descending};
        draw();
      }}}, column.name));
      column.head = cell;
      head.append(cell);
    }
    const compare = (one, other) => {
      if (one === other) return 0;
      if (one === null || one === undefined) return 1;
      if (other === null || other === undefined) return -1;
      const sign = order.descending ? -1 : 1;
      return sign * (typeof one === "string" ? one.localeCompare(other) : one - other);
    };
    function draw() {
      for (const column of columns) {
        if (!column.head) continue;
        column.head.removeAttribute("aria-sort");
        if (order && order.name === column.name) {
          column.head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
        }
      }
      const by = order && columns.find((column) => column.name === order.name);
      const sorted = by ? rows.slice().sort((one, other) => compare(by.value(one), by.value(other))) : rows;
      const shown = all ? sorted : sorted.slice(0, limit);
      body.replaceChildren(...shown.map((row) => make("tr", {class: row.kind},
        columns.map((column) => {
          const value = column.value ? column.value(row) : undefined;
          const properties = {class: [column.kind, column.wide ? "wide" : ""].filter(Boolean).join(" ") || null};
          if (value !== undefined && value !== null) properties.data = {value: String(value)};
          return make("td", properties, column.cell ? column.cell(row) : column.text(row));
        }))));
      if (!rows.length) body.append(make("tr", {}, make("td", {class: "name", colspan: columns.length}, empty)));
      more.hidden = rows.length <= limit;
      more.textContent = all ? "Show fewer" : `Show all ${group(rows.length)}`;
    }
    return {element: wrap, show(next) { rows = next; draw(); }};
  }

  /** Draw a chart that a screen reader takes for one picture, of which `label` says what is to be seen. */
  function plot(label, options) {
    const svg = Plot.plot({style: {background: "transparent", overflow: "visible", fontSize: "12px", fontFamily: "inherit"}, ariaLabel: label, ...options});
    svg.setAttribute("role", "img");
    // A group without a role can't have a name.
    for (const mark of svg.querySelectorAll("g[aria-label]")) {
      mark.dataset.mark = mark.getAttribute("aria-label");
      mark.removeAttribute("aria-label");
    }
    return svg;
  }

  /** A figure that is drawn anew when its width changes: `draw(width)` returns an element. */
  function figure(draw) {
    const element = make("figure");
    let width = 0;
    const redraw = () => {
      width = Math.max(260, Math.floor(element.clientWidth));
      element.replaceChildren(draw(width));
    };
    new ResizeObserver(() => { if (Math.floor(element.clientWidth) !== width) redraw(); }).observe(element);
    return {element, redraw(next) { if (next) draw = next; if (element.isConnected) redraw(); }};
  }

  /**
   * Draw a waterfall of differences: each row begins where the one before it ended, so that they lead to the sum.
   *
   * A row is {name, tier, difference: {value_ns, low_ns, high_ns}, sum, dim}: the line across a bar's end is its
   * interval, a row with `sum` begins at 0, one with `dim` is no difference that can be told. The figure goes into
   * `container`; returns what draws other rows in it.
   */
  function drawDifferences(container, rows, {label = "differences by tier", axis = "difference, summed up from above"} = {}) {
    const LINE = 25;
    const place = (list) => {
      let at = 0;
      return list.map((row, i) => {
        const {value_ns: value, low_ns: low, high_ns: high} = row.difference;
        const start = row.sum ? 0 : at;
        const end = start + value;
        if (!row.sum) at = end;
        const known = low !== null && high !== null;
        return {...row, i, start, end, low: known ? start + low : null, high: known ? start + high : null,
          text: estimate(row.difference), short: duration(value, 1, 3, true)};
      });
    };
    const draw = (list) => (width) => {
      const placed = place(list);
      const narrow = width < 560;
      const left = narrow ? 118 : 160;
      const right = narrow ? 66 : 190;
      const ends = placed.flatMap((row) => [row.start, row.end, row.low ?? row.end, row.high ?? row.end, 0]);
      const [low, high] = d3.extent(ends.length ? ends : [0]);
      const pad = (high - low || 1000) * 0.03;
      // So wide that a difference next to nothing is still seen.
      const least = ((high - low) * 1.5) / (width - left - right);
      const known = placed.filter((row) => row.low !== null);
      const caps = known.flatMap((row) => [[row.i, row.low], [row.i, row.high]]);
      const fill = (row) => (row.sum ? "var(--soft)" : colour(row.tier));
      return plot(`${label}: ${placed.map((row) => `${row.name} ${row.text}`).join(", ")}`, {width, height: placed.length * LINE + 56,
        marginLeft: left, marginRight: right, marginTop: 6, marginBottom: 42,
        x: {domain: [low - pad, high + pad], label: axis, labelAnchor: "center", labelArrow: "none", ticks: narrow ? 3 : 6,
          tickFormat: (ns) => (ns ? duration(ns, 1, 2, true).replace(".0", "") : "0"), grid: true},
        y: {type: "linear", domain: [placed.length - 0.4, -0.6], axis: null}, color: {type: "identity"}, opacity: {type: "identity"},
        marks: [
          Plot.ruleX([0], {stroke: "var(--soft)"}),
          Plot.rect(placed, {x1: (row) => Math.min(row.start, row.end) - (row.start === row.end ? least / 2 : 0), x2: (row) => Math.max(row.start, row.end, Math.min(row.start, row.end) + least),
            y1: (row) => row.i - 0.34, y2: (row) => row.i + 0.34, fill, fillOpacity: (row) => (row.dim ? 0.45 : 1), stroke: "var(--edge)", strokeWidth: 0.75}),
          Plot.link(placed.filter((row, i) => !row.sum && i + 1 < placed.length), {x1: "end", x2: "end", y1: (row) => row.i + 0.34, y2: (row) => row.i + 0.66, stroke: "var(--soft)"}),
          Plot.link(known, {x1: "low", x2: "high", y1: "i", y2: "i", stroke: "currentColor", strokeWidth: 1.25}),
          Plot.link(caps, {x1: ([, ns]) => ns, x2: ([, ns]) => ns, y1: ([i]) => i - 0.14, y2: ([i]) => i + 0.14, stroke: "currentColor", strokeWidth: 1.25}),
          ...[[placed.filter((row) => !row.sum), null], [placed.filter((row) => row.sum), 600]].map(([some, fontWeight]) =>
            Plot.text(some, {frameAnchor: "left", y: "i", text: (row) => shorten(row.name, narrow ? 18 : 24), textAnchor: "start", dx: -left + 2, fontWeight,
              fill: (row) => (row.dim ? "var(--soft)" : "currentColor")})),
          Plot.text(placed, {frameAnchor: "right", y: "i", text: narrow ? "short" : "text", textAnchor: "end", dx: right - 2,
            fill: (row) => (row.dim ? "var(--soft)" : "currentColor")}),
          Plot.tip(placed, Plot.pointerY({x: "end", y: "i", title: (row) => `${row.name}\n${row.text}`, fill: "var(--raised)", stroke: "var(--line)"})),
        ]});
    };
    const chart = figure(draw(rows));
    container.append(chart.element);
    chart.redraw();
    return {element: chart.element, show: (next) => chart.redraw(draw(next))};
  }

  /** Copy text; tells on the button whether it could. */
  function copyButton(text, label) {
    const button = make("button", {class: "act", type: "button", "aria-label": label}, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.textContent = "select it and copy";
      }
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    });
    return button;
  }

  return {UNKNOWN, duration, share, rate, estimate, count, group, shorten, make, breakable, section, colour, swatch, legend, bar, table, plot, figure, drawDifferences, copyButton};
})();
