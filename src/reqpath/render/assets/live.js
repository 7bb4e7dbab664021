// What the page of `reqpath serve` has beside the file: it asks its server for other figures, and shows them.
//
// It does not ask while it is paused or out of sight, and shows nothing while a pointer is held down on it.
"use strict";
(() => {
  const {make} = parts;
  const root = document.documentElement;
  let {live} = JSON.parse(document.getElementById("data").textContent);
  const AGAIN_MS = 2 * live.every_ms;
  /** Answers for which it is said that the server is back. */
  const BACK = 3;
  const state = make("span", {id: "live-state", role: "status", "aria-live": "polite"});
  const clock = make("span", {id: "live-clock", class: "soft"});
  const button = make("button", {id: "pause", class: "act", type: "button", on: {click: pause}}, "Pause");
  const strip = make("div", {id: "live", class: "live"}, state, clock, button);
  const advice = make("p", {id: "advice"});
  document.getElementById("page").append(advice);
  document.body.append(strip);
  // Where the reader is, is held below.
  root.style.overflowAnchor = "none";

  let tag = "";
  let drawn = false;
  let paused = false;
  let gone = false;
  let broken = false;
  let back = 0;
  let asking = false;
  let timer = 0;
  let shown = 0;
  /** The server's clock at its last answer. */
  let answered = "";
  let held = false;
  /** Figures that came while a pointer was held down. */
  let kept = null;
  let mouse = null;

  /** Say how it stands; the words change only when that does, since they are read out. */
  function tell() {
    const usual = !live.waiting ? `Live: ${live.what}.` : drawn ? `${live.waiting} The figures are the last ones.` : `Waiting: ${live.what}.`;
    const [name, words] = broken ? ["gone", "This page can't draw what its server sends now: load it again."]
      : gone ? ["gone", `The server has not answered since ${answered || "this page was opened"}${drawn ? "; the figures are of then" : ""}. It is asked again every ${AGAIN_MS / 1000} s.`]
        : paused ? ["paused", "Paused. The figures stay as they are."]
          : back ? ["back", "The server is back."]
            : [live.waiting ? "waiting" : "live", [usual, live.note].filter(Boolean).join(" ")];
    strip.dataset.state = name;
    if (state.textContent !== words) state.textContent = words;
    clock.textContent = answered && !gone ? `as of ${answered}` : "";
    button.textContent = paused ? "Go on" : "Pause";
  }

  function pause() {
    paused = !paused;
    kept = null;
    // What was kept or is on its way is not shown, so it is asked for again.
    if (paused) tag = "";
    tell();
    ask();
  }

  async function ask() {
    clearTimeout(timer);
    if (asking || paused || broken || document.hidden) return;
    asking = true;
    let next = null;
    try {
      const response = await fetch(`data?after=${tag}`, {cache: "no-store", signal: AbortSignal.timeout(10000)});
      if (response.status === 200) next = await response.json();
      else if (response.status !== 204) throw new Error(`status ${response.status}`);
      const now = new Date(response.headers.get("date")).getTime() + live.offset_min * 60000;
      if (!paused) answered = new Date(now).toISOString().slice(11, 19);
      back = gone ? BACK : Math.max(0, back - 1);
      gone = false;
    } catch {
      gone = true;
    } finally {
      asking = false;
    }
    if (paused) {
      gone = false;
    } else {
      if (next) take(next);
      timer = setTimeout(ask, gone ? AGAIN_MS : live.every_ms);
    }
    tell();
  }

  function take(next) {
    tag = next.live.tag;
    if (held) kept = next;
    else show(next);
  }

  function show(next) {
    live = next.live;
    if (next.report.requests) {
      const hold = holdPlace();
      try {
        reportPage.show(next);
      } catch (error) {
        broken = true;
        tell();
        throw error;
      }
      drawn = true;
      advice.remove();
      hold();
    } else if (!drawn) {
      document.getElementById("sentence").textContent = live.waiting;
      advice.textContent = live.advice;
    }
    root.dataset.updates = String(++shown);
  }

  /** Return what puts back, after something was drawn, what the reader looks at, has the focus on, points at. */
  function holdPlace() {
    const focus = document.activeElement;
    const places = [...document.querySelectorAll("#page > section, .request[open]")];
    const place = window.scrollY > 0 && places.findLast((each) => each.getBoundingClientRect().top <= window.innerHeight / 3);
    const top = place && place.getBoundingClientRect().top;
    return () => {
      if (place && place.isConnected) window.scrollBy({top: place.getBoundingClientRect().top - top, behavior: "instant"});
      if (focus !== document.activeElement && focus.isConnected) focus.focus({preventScroll: true});
      const below = mouse && document.elementFromPoint(mouse.clientX, mouse.clientY);
      // A tip comes with the next move of the mouse, which is this one.
      if (below && below.closest("svg")) below.dispatchEvent(new PointerEvent("pointermove", {...mouse, bubbles: true, pointerType: "mouse"}));
    };
  }

  const letGo = () => {
    // After what the release itself does: the end of a drag, a click.
    setTimeout(() => {
      held = false;
      if (kept && !paused) show(kept);
      kept = null;
      tell();
    });
  };
  addEventListener("pointerdown", (event) => { if (event.button === 0) held = true; }, true);
  for (const type of ["pointerup", "pointercancel"]) addEventListener(type, letGo, true);
  addEventListener("pointermove", (event) => {
    if (event.isTrusted) mouse = event.pointerType === "mouse" ? {clientX: event.clientX, clientY: event.clientY} : null;
  });
  root.addEventListener("pointerleave", () => { mouse = null; });
  document.addEventListener("visibilitychange", ask);
  tell();
  ask();
})();
