"use strict";
(() => {
  // The page follows the server: it asks again and again, and patches what has changed. The elements stay, and with
  // them the focus, the place, open details and what has been typed.
  const live = document.querySelector('meta[name="live"]');
  if (!live) return;
  const $ = (id) => document.getElementById(id);
  const FASTEST = 1000, SHARE = 8;  // milliseconds between two requests; and how many times as long as one takes
  // Elements whose content is made by a script, or by the reader.
  const DRAWN = "script, style, noscript, canvas, #count, #replay, #states, #tags, #rows, #tip, #alarm, #find, #order, #copy, .zoom, #live, #offline";
  let url = live.content, version = live.dataset.version, timer = 0, turn = 0;

  // A form that was refused, or that led here with a notice, must not be the address of this page.
  if (new URL(url, location.href).href !== location.href.split("#")[0]) history.replaceState(null, "", url + location.hash);

  const key = (node) => (node.nodeType === 1 ? node.dataset.key ?? node.id : "");
  const alike = (one, other) => one.nodeName === other.nodeName && key(one) === key(other);

  const patch = (into, wanted) => {
    const stay = new Set(wanted.map(key)), keyed = new Map();
    for (const child of [...into.childNodes]) {
      if (!key(child)) continue;
      if (stay.has(key(child))) keyed.set(key(child), child); else child.remove();
    }
    let at = into.firstChild;
    for (const next of wanted) {
      const known = keyed.get(key(next));
      const found = known && alike(known, next) ? known : !key(next) && at && alike(at, next) ? at : null;
      if (!found) { into.insertBefore(document.adoptNode(next), at); continue; }
      while (at && at !== found && !key(at)) { const gone = at; at = at.nextSibling; gone.remove(); }
      if (at === found) at = at.nextSibling; else into.insertBefore(found, at);
      settle(found, next);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  };

  const settle = (old, next) => {
    if (old.nodeType !== 1) { if (old.data !== next.data) old.data = next.data; return; }
    if (old.matches(DRAWN) || old.isEqualNode(next)) return;
    const own = (name) => name === "style" || (name === "open" && old.matches("details")) || (old.matches("input") && (name === "value" || name === "checked"));
    for (const { name } of [...old.attributes]) if (!own(name) && !next.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of next.attributes) if (!own(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
    if (!old.matches("input, textarea")) patch(old, [...next.childNodes]);
  };

  const status = () => document.querySelector(".pill")?.textContent.trim();
  const take = (html) => {
    const made = new DOMParser().parseFromString(html, "text/html"), focused = document.activeElement, before = status();
    const data = made.getElementById("data");
    document.title = made.title;
    patch(document.body, [...made.body.childNodes]);
    if (data) {
      const count = $("count");
      count.setAttribute("aria-live", "off");  // not each new stage is announced
      document.dispatchEvent(new CustomEvent("flowdeco:update", { detail: { data: JSON.parse(data.textContent), patch } }));
      setTimeout(() => count.removeAttribute("aria-live"), 300);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    if (before !== status() && $("live")) $("live").textContent = `The run is ${status().replace(/^\S+\s+/, "")}`;
  };

  const offline = (said) => {
    const shown = $("offline");
    if (!said) { if (shown) shown.remove(); return; }
    if (shown) { shown.textContent = said; return; }
    const made = document.createElement("p");
    made.id = "offline";
    made.className = "notice bad";
    made.setAttribute("role", "alert");
    made.textContent = said;
    document.querySelector("main").prepend(made);
  };

  const TROUBLE = {
    401: "This page is not signed in any more: open the address that flowdeco ui has printed last.",
    404: "This run is not there any more: it has been deleted.",
    500: "The server failed: its terminal shows why.",
  };

  const ask = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    const began = performance.now(), mine = turn += 1;
    try {
      const reply = await fetch(url, { cache: "no-store", headers: { "If-None-Match": `"${version}"` } });
      const html = reply.status === 200 ? await reply.text() : "";
      if (mine !== turn) return;  // the answer to a later question comes
      offline(TROUBLE[reply.status] ?? (html || reply.status === 304 ? "" : "This page cannot be shown any more: reload it to see why."));
      if (html) {
        version = (reply.headers.get("ETag") || "").replaceAll('"', "");
        take(html);
      }
    } catch {
      if (mine !== turn) return;
      offline("flowdeco ui does not answer any more. This page shows what it knew last, and asks again.");
    }
    timer = setTimeout(ask, Math.max(FASTEST, SHARE * (performance.now() - began)));
  };
  document.addEventListener("visibilitychange", ask);
  timer = setTimeout(ask, FASTEST);

  // The search in the list of runs.

  const search = $("search");
  if (!search) return;
  let soon = 0;
  const seek = () => {
    const fields = [...new FormData(search.form)].filter(([, value]) => value !== "");
    url = fields.length ? `/?${new URLSearchParams(fields)}` : "/";
    history.replaceState(null, "", url);
    ask();
  };
  search.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(seek, 120); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && event.target !== search) { event.preventDefault(); search.focus(); search.select(); }
  });
})();
