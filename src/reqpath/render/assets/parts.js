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

  return {UNKNOWN, duration, share, rate, count, group, shorten, make, breakable, section, colour, swatch, legend, bar, table, plot, figure, copyButton};
})();
