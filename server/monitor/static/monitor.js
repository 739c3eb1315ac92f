// The page keeps itself up to date. It changes nothing at the server: it asks, and shows the answer.
"use strict";
(() => {
  const root = document.documentElement;
  const body = document.body;
  const { live, update } = body.dataset;
  const skew = Number(body.dataset.now) * 1000 - Date.now(); // the server's clock, whatever the reader's says
  const now = () => (Date.now() + skew) / 1000;
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const figures = new Map(); // id -> the figure as it came
  const drawn = new Map(); // id -> what of it is on the page
  const seen = new Set(); // ids near the screen
  let etag = "";
  let fresh = Date.now();

  // ---- ages ---------------------------------------------------------------------------------
  const two = (n) => String(n).padStart(2, "0");
  function span(seconds) { // as server/monitor/wording.py writes it
    const s = Math.max(Math.trunc(seconds), 0);
    if (s < 60) return `${s} s`;
    if (s < 600) return `${Math.trunc(s / 60)} min ${two(s % 60)} s`;
    if (s < 3600) return `${Math.trunc(s / 60)} min`;
    if (s < 86400) return `${Math.trunc(s / 3600)} h ${two(Math.trunc((s % 3600) / 60))} min`;
    const days = Math.trunc(s / 86400);
    return days === 1 ? "1 day" : `${days} days`;
  }
  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  function tick(within = document) {
    const moment = now();
    for (const time of all("time[data-since]", within)) say(time, span(moment - Number(time.dataset.since)));
    for (const time of all("time[data-until]", within)) say(time, span(Number(time.dataset.until) - moment));
    for (const contact of all("[data-heard]", within)) {
      const age = moment - Number(contact.dataset.heard);
      const word = age > Number(contact.dataset.silent) ? "silent" : age > Number(contact.dataset.late) ? "late" : "connected";
      contact.dataset.contact = word;
      say(contact.querySelector(".word"), word);
    }
  }

  // ---- change only what differs: focus, scroll and what is folded open stay ------------------
  const keyOf = (node) => (node.nodeType === 1 ? node.dataset.key || node.id || node.dataset.figure || "" : "");
  const like = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b)
    && (a.nodeName !== "DIV" || a.classList[0] === b.classList[0]);
  const OWN = { DETAILS: ["open"], DIV: ["class"], INPUT: ["value"], FIGURE: ["hidden"], TR: ["hidden"] }; // the reader's, not the server's
  function change(from, to) {
    if (from.nodeType !== 1) {
      if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
      return;
    }
    if (from.hasAttribute("data-keep")) return;
    const own = OWN[from.nodeName] || [];
    for (const { name } of Array.from(from.attributes)) if (!to.hasAttribute(name) && !own.includes(name)) from.removeAttribute(name);
    for (const { name, value } of Array.from(to.attributes)) if (from.getAttribute(name) !== value && !own.includes(name)) from.setAttribute(name, value);
    if (from.nodeName === "SELECT") {
      const chosen = to.value;
      if (!from.isEqualNode(to)) children(from, to);
      if (document.activeElement !== from && from.value !== chosen) from.value = chosen;
      return;
    }
    children(from, to);
  }
  function children(from, to) {
    const wanted = Array.from(to.childNodes);
    const kept = new Set(wanted.map(keyOf).filter(Boolean));
    const keyed = new Map();
    for (const child of from.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
    let at = from.firstChild;
    for (const node of wanted) {
      let match = keyOf(node) ? keyed.get(keyOf(node)) : at;
      while (!keyOf(node) && match && !like(match, node)) match = match.nextSibling;
      if (!match || !like(match, node)) {
        const made = from.insertBefore(document.importNode(node, true), at);
        if (made.nodeName === "TR" || made.nodeName === "LI") made.classList.add("fresh");
        continue;
      }
      while (at && at !== match && !kept.has(keyOf(at))) { // gone: what follows need not move
        const gone = at;
        at = at.nextSibling;
        gone.remove();
      }
      if (match === at) at = at.nextSibling;
      else from.insertBefore(match, at);
      change(match, node);
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }
  const shown = new Map();
  function show(parts) {
    for (const part of all("[data-part]")) {
      const html = parts[part.dataset.part];
      if (html === undefined || shown.get(part) === html) continue;
      shown.set(part, html);
      const made = document.createElement("template");
      made.innerHTML = html; // the server's own escaped text
      tick(made.content);
      children(part, made.content);
    }
    filter();
    fit();
    watchFigures();
  }
  function fit() { // a table that fits may leave its head at the top of the window
    for (const box of all(".flow")) box.classList.toggle("fits", box.scrollWidth <= box.clientWidth);
  }

  // ---- figures -------------------------------------------------------------------------------
  function coloured(value, tokens) { // "var:ink" -> the theme's colour, "scale:seq" -> its colour scale
    if (Array.isArray(value)) return value.map((each) => coloured(each, tokens));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, tokens)]));
    if (typeof value !== "string") return value;
    if (value.startsWith("var:")) return tokens.getPropertyValue(`--${value.slice(4)}`).trim() || value;
    if (value.startsWith("scale:")) {
      const steps = tokens.getPropertyValue(`--scale-${value.slice(6)}`).split(",");
      return steps.map((step, i) => [i / (steps.length - 1), step.trim()]);
    }
    return value;
  }
  function draw(id, force = false) {
    const figure = document.querySelector(`figure[data-figure="${id}"]`);
    const wanted = figures.get(id);
    if (!figure || wanted === undefined) return;
    figure.hidden = wanted === null;
    if (wanted === null || (!force && drawn.get(id) === wanted)) return;
    say(figure.querySelector("[data-alt]"), wanted.alt || "");
    say(figure.querySelector("[data-caption]"), wanted.caption || "");
    if (!window.Plotly || !seen.has(id)) return;
    const tokens = getComputedStyle(root);
    const zoom = parseFloat(tokens.fontSize) / 16;
    const layout = coloured(wanted.layout, tokens);
    layout.autosize = true;
    delete layout.width;
    const data = coloured(wanted.data, tokens);
    if (zoom !== 1) enlarge([data, layout], zoom);
    const plot = figure.querySelector(".plot");
    plot.querySelector(".pending")?.remove();
    drawn.set(id, wanted);
    window.Plotly.react(plot, data, layout, {
      displaylogo: false, showTips: false, modeBarButtons: [["toImage", "resetScale2d"]],
    });
  }
  function enlarge(part, zoom) { // a projector enlarges type: figures go with it
    for (const [name, value] of Object.entries(part)) {
      if (name === "height" && typeof value === "number") part[name] = value * zoom;
      else if (/font$/.test(name) && value && typeof value.size === "number") value.size *= zoom;
      if (value && typeof (Array.isArray(value) ? value[0] : value) === "object") enlarge(value, zoom);
    }
  }
  function redraw() {
    for (const id of figures.keys()) draw(id, true);
  }
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.add(target.dataset.figure);
      draw(target.dataset.figure);
    }
  }, { rootMargin: "700px" });
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target._fullLayout && target.clientWidth && Math.abs(target._fullLayout.width - target.clientWidth) > 1) window.Plotly.Plots.resize(target);
  });
  const observed = new WeakSet();
  function watchFigures() {
    for (const figure of all("figure[data-figure]")) {
      if (observed.has(figure)) continue;
      observed.add(figure);
      drawn.delete(figure.dataset.figure);
      near.observe(figure);
      sizes.observe(figure.querySelector(".plot"));
    }
  }

  // ---- asking --------------------------------------------------------------------------------
  let asking = false;
  let again = false;
  let had = -1; // the revision shown
  let told = null; // a later one that an event told of, until it is asked for
  async function refresh() {
    if (!update) return;
    if (asking) return void (again = true);
    asking = true;
    const query = location.search;
    const since = told === null ? "" : `${query ? "&" : "?"}told=${told}`;
    told = null;
    try {
      const answer = await fetch(update + query + since, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.redirected || answer.status === 401) return void location.reload(); // signed out meanwhile
      if (answer.ok && query === location.search) {
        const news = await answer.json();
        etag = answer.headers.get("ETag") || "";
        for (const [id, figure] of Object.entries(news.figures)) figures.set(id, figure);
        show(news.parts);
        for (const { dataset } of all("figure[data-figure]")) if (!figures.has(dataset.figure)) figures.set(dataset.figure, null);
        const filled = (id) => (figures.get(id) ? 1 : 0); // what is hidden first: the others get its room
        for (const id of Array.from(figures.keys()).sort((a, b) => filled(a) - filled(b))) draw(id);
        document.title = news.title || document.title;
        body.dataset.revision = had = news.revision;
      }
      if (answer.ok || answer.status === 304) connected();
      else lost();
    } catch {
      lost();
    } finally {
      asking = false;
      if (again || query !== location.search) {
        again = false;
        setTimeout(refresh, 300);
      }
    }
  }
  const connection = document.querySelector("[data-connection]");
  function connected() {
    fresh = Date.now();
    if (!connection || !live) return;
    connection.hidden = false;
    connection.classList.remove("lost");
    say(connection, "live");
  }
  function lost() {
    if (!connection) return;
    connection.hidden = false;
    connection.classList.add("lost");
    const at = new Date(fresh);
    say(connection, `connection lost, last update ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`);
  }
  let soon = 0;
  function askSoon() { // many changes in a burst are one question
    clearTimeout(soon);
    soon = setTimeout(refresh, 250);
  }
  if (live) {
    let source = null;
    const listen = () => {
      source = new EventSource(live);
      source.addEventListener("revision", ({ data }) => {
        const { revision } = JSON.parse(data); // the same again: no ledger has changed, but who was heard of
        told = revision > had ? revision : null;
        if (!document.hidden) askSoon();
      });
      source.addEventListener("open", askSoon);
      source.addEventListener("error", () => {
        lost();
        if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
      });
    };
    listen();
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (event) => event.persisted && listen());
    setInterval(() => { // when sites were last heard of changes no ledger
      const late = document.querySelector("[data-late]")?.dataset.late;
      if (late && !document.hidden && Date.now() - fresh > Math.min(10, late / 2) * 1000) askSoon();
    }, 1000);
    document.addEventListener("visibilitychange", () => document.hidden || askSoon());
  }

  // ---- choices: the address says what is looked at -------------------------------------------
  function go(search) {
    history.replaceState(null, "", (search || "?") + location.hash);
    etag = "";
    refresh();
  }
  function set(name, value) {
    const query = new URLSearchParams(location.search);
    if (value) query.set(name, value);
    else query.delete(name);
    history.replaceState(null, "", `?${query}${location.hash}`);
  }
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  function label() {
    for (const button of all("[data-set=theme]")) say(button, dark() ? "Light" : "Dark");
    for (const button of all("[data-set=projector]")) say(button, "projector" in root.dataset ? "Desk view" : "Projector");
  }
  const switches = {
    theme() {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("fedcxr-theme", root.dataset.theme); } catch { /* not remembered, then */ }
      set("theme", root.dataset.theme);
    },
    projector() {
      root.toggleAttribute("data-projector");
      set("projector", "projector" in root.dataset ? "1" : "");
    },
  };
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const link = event.target.closest("a[data-query], a[data-set], [data-copy]");
    if (!link) return;
    if (link.dataset.copy) {
      navigator.clipboard?.writeText(link.dataset.copy).then(() => {
        say(link, "Copied");
        setTimeout(() => say(link, "Copy"), 1500);
      });
      return;
    }
    event.preventDefault();
    if (link.dataset.set) {
      switches[link.dataset.set]();
      label();
      fit();
      redraw();
    } else {
      go(merged(new URL(link.href).searchParams));
    }
  });
  function merged(query) { // theme and projector may have changed since the link was written
    const current = new URLSearchParams(location.search);
    for (const name of ["theme", "projector"]) {
      if (current.has(name)) query.set(name, current.get(name));
      else query.delete(name);
    }
    return `?${query}`;
  }
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-choose]")) return;
    const query = new URLSearchParams(new FormData(event.target.form));
    for (const [name, value] of Array.from(query)) if (value === "") query.delete(name);
    go(merged(query));
  });
  function filter() {
    for (const input of all("[data-filter]")) {
      const wanted = input.value.trim().toLowerCase();
      const rows = all(`[data-rows="${input.dataset.filter}"] > tr`);
      for (const row of rows) row.hidden = !row.dataset.name.includes(wanted);
      const sites = rows.filter((row) => !row.matches(".note"));
      const kept = sites.filter((row) => !row.hidden).length;
      for (const count of all(`[data-shown="${input.dataset.filter}"]`)) say(count, `${kept} of ${sites.length} sites`);
    }
  }
  document.addEventListener("input", (event) => event.target.matches("[data-filter]") && filter());
  document.addEventListener("submit", (event) => event.target.querySelector("[data-filter], [data-choose]") && event.preventDefault());

  // ---- which section is on the screen --------------------------------------------------------
  const links = new Map(all(".sections a").map((link) => [link.hash.slice(1), link]));
  const places = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const [id, link] of links) {
        if (id === target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-25% 0px -70% 0px" });
  for (const section of all("main > section[id]")) if (links.has(section.id)) places.observe(section);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { label(); redraw(); });
  addEventListener("beforeprint", () => { for (const figure of all("figure[data-figure]")) seen.add(figure.dataset.figure); redraw(); });
  addEventListener("resize", fit);
  label();
  tick();
  filter();
  fit();
  watchFigures();
  setInterval(tick, 1000);
  refresh();
})();
