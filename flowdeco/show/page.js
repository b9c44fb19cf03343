"use strict";
(() => {
  // Everything is put in as text, by textContent: nothing in the data is markup.
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const MARKS = data.marks;
  const BATCH = 200;
  const $ = (id) => document.getElementById(id);
  const list = $("rows"), find = $("find"), more = $("more"), chart = $("chart"), tip = $("tip");

  const el = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // A long name breaks behind signs and, in what has none, after sixteen letters; not within a word.
  const named = (name) => {
    const made = el("span", "name");
    const pieces = name.length > 24 && name.match(/[^_\[\](){}<>\/.,:;=\s-]{0,15}[_\[\](){}<>\/.,:;=\s-]+|.{1,16}/gu) || [name];
    pieces.forEach((piece, index) => { if (index) made.append(el("wbr")); made.append(piece); });
    return made;
  };

  // What is shown: rows that match, with what they are in; what is folded or closed is left out.

  const unfolded = new Set(), closed = new Set(), opened = new Set();
  let STEPS = data.turns, step = STEPS, order = "ran";
  const pressed = { state: new Set(), tag: new Set() };
  let visible = [], done = 0, current = -1;

  const inWords = (state) => (state === "pending" ? data.unreached : state);
  const warned = (row) => row.s === "recovered" || row.a > 1 || row.again !== undefined;
  const states = (row) => {
    const found = [row.s];
    if (row.by !== undefined) found.push("inserted");
    if (row.a > 1 || row.again !== undefined) found.push("retried");
    return found;
  };
  // The pipeline, group or branch that a row is in: between the two are the stages that inserted it.
  const inside = (row) => {
    let at = rows[row.p];
    while (at && at.k === "stage") at = rows[at.p];
    return at;
  };
  const folds = new Map(), turns = [], bars = [];
  const prepare = () => {
    rows.forEach((row, index) => {
      const acts = row.acts || [];
      row.i = index;
      row.find = [row.n, row.ti || "", ...acts.map((act) => act.n)].join(" ").toLowerCase();
      // A tag is that of the stage, of what it is in, or of one of its actions.
      const around = inside(row);
      row.all = [row.tags, around ? around.all : [], ...acts.map((act) => act.tags)].flatMap((some) => some || []);
    });
    for (let index = rows.length - 1; index >= 0; index -= 1) {
      const row = rows[index], up = rows[row.p];
      if (up && up.k !== "stage" && row.r !== undefined) up.r = Math.min(up.r ?? Infinity, row.r);
    }
    folds.clear();
    turns.length = bars.length = 0;
    for (const row of rows) {
      if (row.h !== undefined) (folds.get(row.h) || folds.set(row.h, []).get(row.h)).push(row);
      if (row.k === "stage" && row.r !== undefined) turns.push(row);
      if (row.k === "stage" && row.x !== undefined && row.s !== "skipped") bars.push(row);
    }
    turns.sort((a, b) => a.r - b.r);
  };
  prepare();

  // A replay shows the stages that had begun at one of its steps, and those of the plan that were still to come.
  const replaying = () => step < STEPS;
  const begun = (row) => row.r !== undefined && row.r < step;
  const ahead = (row) => replaying() && row.k !== "fold" && !begun(row);
  const unborn = (row) => replaying() && (row.k === "fold" ? !folds.get(row.f).some(begun) && row.fresh : !begun(row) && row.by !== undefined);

  const filtering = () => find.value.trim() !== "" || pressed.state.size > 0 || pressed.tag.size > 0;

  const matcher = () => {
    const words = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const tags = words.filter((word) => word.startsWith("tag:")).map((word) => word.slice(4));
    const names = words.filter((word) => !word.startsWith("tag:"));
    return (row) => {
      if (row.k !== "stage") return false;
      const its = row.all;
      return names.every((word) => row.find.includes(word))
        && tags.every((tag) => its.some((one) => one.toLowerCase() === tag || (tag !== "" && one.toLowerCase().startsWith(tag))))
        && [...pressed.tag].every((tag) => its.includes(tag))
        && (pressed.state.size === 0 || states(row).some((state) => pressed.state.has(state)));
    };
  };

  const choose = () => {
    visible = [];
    let stages = 0;
    if (order === "slow") {
      const matches = matcher();
      visible = rows.filter((row) => row.e !== undefined && matches(row) && !ahead(row)).sort((a, b) => b.e - a.e).map((row) => row.i);
      stages = visible.length;
    } else if (filtering()) {
      const matches = matcher();
      const wanted = new Set();
      for (const row of rows) {
        if (!matches(row) || unborn(row)) continue;
        stages += 1;
        for (let at = row; at && !wanted.has(at.i); at = rows[at.p]) wanted.add(at.i);
      }
      for (const row of rows) if (wanted.has(row.i)) visible.push(row.i);
    } else {
      let hidden = Infinity;
      for (const row of rows) {
        if (row.k === "stage") stages += 1;
        if (row.d > hidden) continue;
        hidden = Infinity;
        if (unborn(row)) { hidden = row.d; continue; }
        if (row.k === "fold" ? unfolded.has(row.f) : row.h !== undefined && !unfolded.has(row.h)) {
          if (row.k !== "fold") hidden = row.d;
          continue;
        }
        visible.push(row.i);
        if (closed.has(row.i)) hidden = row.d;
      }
    }
    $("count").textContent = filtering() ? `${stages.toLocaleString()} of ${data.stages.toLocaleString()} match`
      : order === "slow" ? `${stages.toLocaleString()}, the slowest first` : data.said;
  };

  const select = () => {
    choose();
    current = visible.length ? visible[0] : -1;
    list.replaceChildren(first(BATCH));
  };

  const first = (count) => {
    const piece = document.createDocumentFragment();
    if (!visible.length) piece.append(el("li", "nothing", filtering() ? "No stage matches." : "Nothing has run."));
    for (done = 0; done < Math.min(visible.length, count); done += 1) piece.append(item(rows[visible[done]]));
    return piece;
  };

  const append = () => {
    const piece = document.createDocumentFragment();
    const until = Math.min(visible.length, done + BATCH);
    for (; done < until; done += 1) piece.append(item(rows[visible[done]]));
    list.append(piece);
  };

  // One row.

  const bar = (row) => {
    const track = el("span", "track");
    track.setAttribute("aria-hidden", "true");
    if (row.x !== undefined) {
      const filled = el("i");
      filled.style.left = `${Math.min(row.x, 0.995) * 100}%`;
      filled.style.width = `${row.w * 100}%`;
      track.append(filled);
    }
    return track;
  };

  const headline = (row, into) => {
    const mark = el("span", `mark ${row.s}`);
    const sign = el("span", "", ahead(row) ? "·" : MARKS[row.s] || "");
    sign.setAttribute("aria-hidden", "true");
    const status = ahead(row) ? "to come" : row.s;
    mark.append(sign, el("span", "unseen", status));
    const what = el("span", "what");
    what.append(named(row.n));
    if (ahead(row)) { into.append(mark, " ", what, " ", el("span", "track"), " ", el("span", "time")); return; }
    if (row.kind) what.append(el("span", "kind", row.kind));
    for (const tag of row.tags || []) what.append(el("span", "tag", `#${tag}`));
    if (row.by !== undefined) {
      if (order === "slow" || row.via === row.by) what.append(el("span", "by", `+ inserted by ${row.by}`));
      else if (row.via !== undefined) what.append(el("span", "by", `+ by ${row.via}`));
      else what.append(el("span", "unseen", `inserted by ${row.by}`));
    }
    if (row.kids && closed.has(row.i)) what.append(el("span", "by", `${row.kids.toLocaleString()} inserted`));
    if (row.re) what.append(el("span", "note", "restored"));
    if (row.a > 1) what.append(el("span", "note warn", `${row.a} attempts`));
    if (row.again !== undefined) what.append(el("span", "note warn", row.again));
    const said = [row, ...(row.acts || [])].reduce((sum, one) => sum + (one.log || []).length, 0);
    if (said) what.append(el("span", "note", said === 1 ? "1 message" : `${said.toLocaleString()} messages`));
    if (row.note) what.append(el("span", `note ${row.s === "recovered" ? "warn" : row.s === "failed" ? "bad" : ""}`, row.note));
    for (const part of [...what.children].slice(1)) part.before(" ");  // for those who listen
    into.append(mark, " ", what, " ", bar(row), " ", el("span", "time", row.t || ""));
  };

  const classes = (row) => [row.s, row.re ? "old" : "", row.by !== undefined ? "new" : "", row.k !== "stage" ? "container" : "", warned(row) ? "warned" : ""].filter(Boolean).join(" ");

  const item = (row) => {
    const li = el("li", `${classes(row)}${ahead(row) ? " ahead" : ""}${replaying() && row.r === step - 1 && row.k === "stage" ? " now" : ""}`);
    li.style.setProperty("--d", order === "slow" ? 0 : Math.min(row.d, 24));
    li.dataset.i = row.i;
    if (row.k === "fold") {
      const so = replaying() ? folds.get(row.f).filter(begun).length : 0;
      const button = el("button", `fold${row.fresh ? "" : " plain"}`, replaying() ? `… ${so.toLocaleString()} more so far` : row.n);
      button.type = "button";
      button.tabIndex = row.i === current ? 0 : -1;
      li.append(button);
      return li;
    }
    const line = el("button", "line");
    line.type = "button";
    line.tabIndex = row.i === current ? 0 : -1;
    line.setAttribute("aria-expanded", String(row.k === "stage" ? opened.has(row.i) : !closed.has(row.i)));
    headline(row, line);
    li.append(line);
    if (row.kids && order === "ran" && !filtering()) {
      const twist = el("button", "twist", closed.has(row.i) ? "▸" : "▾");
      twist.type = "button";
      twist.tabIndex = -1;
      twist.setAttribute("aria-label", `${closed.has(row.i) ? "Show" : "Hide"} the stages that ${row.n} inserted`);
      li.append(twist);
    }
    if (opened.has(row.i)) li.append(detail(row));
    return li;
  };

  // What a row opens to.

  const pairs = (pairsOf) => {
    const dl = el("dl", "pairs");
    for (const [what, value] of pairsOf) {
      if (value === undefined || value === "") continue;
      const dd = el("dd");
      dd.append(value);
      dl.append(el("dt", "", what), dd);
    }
    return dl;
  };

  const failure = (told) => {
    const box = el("div");
    const said = el("p", "said");
    said.append(el("b", "", told.type), told.message ? `: ${told.message}` : "");
    box.append(said);
    if (told.notes.length) box.append(el("p", "notes", told.notes.join("\n")));
    if (told.frames.length) {
      const trace = el("details", "trace");
      trace.open = told.frames.length <= 8;
      trace.append(el("summary", "", `Traceback (${told.frames.length} ${told.frames.length === 1 ? "call" : "calls"})`));
      const ol = el("ol");
      for (const [file, line, name, source] of told.frames) {
        const li = el("li");
        li.append(el("span", "place", `${file}:${line}, in ${name}`), el("pre", "", source));
        ol.append(li);
      }
      trace.append(ol);
      box.append(trace);
    }
    for (const [how, other] of [[told.link, told.cause], ...told.parts.map((part, index) => [`${index + 1} of ${told.parts.length}`, part])]) {
      if (!other) continue;
      const cause = el("div", "cause");
      cause.append(el("p", "", how), failure(other));
      box.append(cause);
    }
    return box;
  };

  const trouble = (number) => {
    const box = el("div", "trouble");
    box.append(failure(data.failures[number]));
    return box;
  };

  // Messages of an action, and the errors of its attempts between them.

  const TAGS = new Set(["h3", "h4", "h5", "h6", "p", "em", "strong", "del", "code", "pre", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "hr", "br", "a"]);
  const built = ([kind, ...inside]) => {
    const [tag, side] = kind.split(".");
    if (!TAGS.has(tag)) return "";
    const made = el(tag, side || "");
    if (tag === "a") {
      made.href = inside.shift();
      made.rel = "noopener noreferrer";
    }
    made.append(...inside.map((each) => typeof each === "string" ? each : built(each)));
    return made;
  };

  const value = (told, name) => {
    const box = el("div", "shown");
    if (told.md) { box.classList.add("prose"); box.append(...told.md.map(built)); }
    if (told.text) box.append(el("pre", "", told.text));
    if (told.src) box.append(Object.assign(el("img"), { src: told.src, alt: `Image shown by ${name}`, decoding: "async" }));
    if (told.html) {
      const frame = Object.assign(el("iframe"), { title: `Value shown by ${name}`, srcdoc: told.html });
      frame.setAttribute("sandbox", "");  // no scripts, and no access to this page
      frame.style.height = `${told.high}px`;
      box.append(frame);
    }
    if (told.note) box.append(el("p", "notes", told.note));
    return box;
  };

  const message = (told, name) => {
    const li = el("li", `m-${told.k}`);
    const time = el("time", "", told.t);
    time.title = told.d;
    const what = el("div");
    if (told.k === "show") what.append(value(told, name));
    else if (told.k === "emit") {
      what.append(el("b", "", told.n));
      for (const [key, content] of told.of) what.append(" ", el("span", "key", key), "\u00a0", el("span", "value", content));
    } else if (told.k === "log") {
      what.append(el("span", `level ${told.l.toLowerCase()}`, told.l), " ", el("span", "told", told.text));
    } else if (told.k === "ended") {
      const [mark, done] = told.s === "failed" ? ["failed", "failed; the run was resumed"] : ["suspended", `${told.s}; the run was resumed`];
      what.append(el("span", `mark ${mark}`, MARKS[mark]), " ", el("span", "told", told.text), " ", el("span", "notes", done));
    } else what.append(el("span", "notes", told.text));
    li.append(time, " ", what);
    return li;
  };

  const attempts = (row, box) => {
    const log = row.log || [], tries = row.tries || [];
    for (let number = 0, at = 0; number <= tries.length; number += 1) {
      const ol = el("ol", "log");
      ol.setAttribute("aria-label", `Messages of ${row.n}`);
      for (; at < log.length && (log[at].a <= number || number === tries.length); at += 1) ol.append(message(log[at], row.n));
      if (ol.children.length) box.append(ol);
      if (number < tries.length) box.append(el("p", "notes", `Attempt ${number + 1} failed`), trouble(tries[number]));
    }
  };

  const detail = (row) => {
    const box = el("div", "detail");
    if (row.ti && row.ti !== row.n) box.append(el("p", "", row.ti));
    if (row.de) box.append(el("p", "", row.de));
    let by;
    if (row.by !== undefined) {
      by = el("button", "link", row.by);
      by.type = "button";
      by.addEventListener("click", () => jump(nearest(row)));
    }
    box.append(pairs([
      ["status", inWords(row.s)], ["inserted by", by], ["started", row.at], ["took", row.t],
      ["attempts", row.a > 1 ? String(row.a) : undefined], ["inserted", row.ins], ["reads", row.reads], ["middleware", row.use], ["data", row.data],
    ]));
    if (row.id !== undefined) {
      const link = el("a", "here", `#stage-${row.id}`);
      link.href = `#stage-${row.id}`;
      box.querySelector("dl").append(el("dt", "", "link"), Object.assign(el("dd"), {}));
      box.querySelector("dl dd:last-child").append(link);
    }
    attempts(row, box);
    if (row.fail !== undefined) box.append(trouble(row.fail));
    const acts = row.acts || [];
    if (acts.length) {
      const ol = el("ol", "acted");
      ol.setAttribute("aria-label", "Actions");
      for (const act of acts) {
        const li = el("li", classes({ ...act, k: "stage" }));
        headline(act, li);
        attempts(act, li);
        if (act.fail !== undefined && act.fail !== row.fail) li.append(trouble(act.fail));
        ol.append(li);
      }
      box.append(ol);
    }
    return box;
  };

  const nearest = (row) => {
    const up = rows[row.p];
    if (row.via !== row.by && up && up.k === "stage") return row.p;
    const name = row.by.split("/")[0];
    for (let index = row.i - 1; index >= 0; index -= 1) {
      if (rows[index].k === "stage" && (rows[index].n === name || row.by.startsWith(`${rows[index].n}/`))) return index;
    }
    return row.i;
  };

  // Opening, moving, jumping.

  const toggle = (li) => {
    const row = rows[Number(li.dataset.i)];
    const line = li.firstElementChild;
    if (row.k === "fold") {
      unfolded.add(row.f);
      const next = row.i + 1;
      keepingPlace(() => select(), next);
      return;
    }
    if (row.k !== "stage") {
      if (closed.has(row.i)) closed.delete(row.i); else closed.add(row.i);
      keepingPlace(() => select(), row.i);
      return;
    }
    if (opened.has(row.i)) { opened.delete(row.i); li.querySelector(".detail").remove(); } else { opened.add(row.i); li.append(detail(row)); address(row); }
    line.setAttribute("aria-expanded", String(opened.has(row.i)));
  };

  const twist = (row) => {
    if (closed.has(row.i)) closed.delete(row.i); else closed.add(row.i);
    keepingPlace(() => select(), row.i);
  };

  // The address of the page leads to the stage that was opened last.
  const address = (row) => { if (row.id !== undefined) history.replaceState(null, "", `#stage-${row.id}`); };
  const arrive = () => {
    const found = location.hash.match(/^#stage-(\d+)$/);
    const row = found && rows.find((one) => one.id === Number(found[1]));
    if (row) jump(row.i);
  };
  addEventListener("hashchange", arrive);

  const keepingPlace = (change, index) => {
    const top = window.scrollY;
    change();
    const li = show(index);
    window.scrollTo({ top, behavior: "instant" });
    if (li) focus(li);
  };

  const show = (index) => {
    const place = visible.indexOf(index);
    if (place < 0) return null;
    while (done <= place) append();
    return list.children[place];
  };

  const focus = (li) => {
    const line = li.firstElementChild;
    const before = list.querySelector('li > button[tabindex="0"]');
    if (before) before.tabIndex = -1;
    current = Number(li.dataset.i);
    line.tabIndex = 0;
    line.focus({ preventScroll: true });
    line.scrollIntoView({ block: "nearest", behavior: "instant" });
  };

  const jump = (index) => {
    if (index < 0 || !rows[index]) return;
    find.value = "";
    go(STEPS);
    order = $("order").value = "ran";
    for (const kind of Object.values(pressed)) kind.clear();
    for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", "false");
    for (let at = rows[index]; at; at = rows[at.p]) { closed.delete(at.i); if (at.h !== undefined) unfolded.add(at.h); }
    select();
    const li = show(index);
    if (!li) return;
    if (rows[index].k === "stage" && !opened.has(index)) toggle(li);
    focus(li);
    li.scrollIntoView({ block: "center", behavior: "instant" });
  };

  list.addEventListener("click", (event) => {
    const small = event.target.closest("button.twist");
    if (small) { twist(rows[Number(small.parentElement.dataset.i)]); return; }
    const line = event.target.closest("button.line, button.fold");
    if (line) { current = Number(line.parentElement.dataset.i); toggle(line.parentElement); }
  });

  list.addEventListener("keydown", (event) => {
    const line = event.target.closest("button.line, button.fold");
    if (!line) return;
    const li = line.parentElement;
    const expanded = line.getAttribute("aria-expanded");
    const row = rows[Number(li.dataset.i)];
    const move = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (move) {
      event.preventDefault();
      if (move === "nextElementSibling" && !li.nextElementSibling) append();
      if (li[move]) focus(li[move]);
    } else if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      const last = event.key === "End" ? show(visible[visible.length - 1]) : list.firstElementChild;
      if (last) focus(last);
    } else if (row.kids && ((event.key === "ArrowRight" && closed.has(row.i)) || (event.key === "ArrowLeft" && expanded === "false" && !closed.has(row.i)))) {
      event.preventDefault();
      twist(row);
    } else if ((event.key === "ArrowRight" && expanded === "false") || (event.key === "ArrowLeft" && expanded === "true")) {
      event.preventDefault();
      toggle(li);
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && event.target !== find) { event.preventDefault(); find.focus(); find.select(); }
    if (event.key === "Escape" && event.target === find) { find.value = ""; select(); }
    if (event.key === "ArrowDown" && event.target === find && visible.length) { event.preventDefault(); focus(list.firstElementChild); }
  });

  let soon = 0;
  find.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(select, rows.length > 2000 ? 60 : 0); });

  // Chips.

  const chip = (kind, value, label, count) => {
    const button = el("button", "chip", label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(pressed[kind].has(value)));
    button.dataset.key = value;
    button.append(" ", el("small", "", count.toLocaleString()));
    button.addEventListener("click", () => {
      const on = !pressed[kind].has(value);
      if (on) pressed[kind].add(value); else pressed[kind].delete(value);
      button.setAttribute("aria-pressed", String(on));
      select();
    });
    return button;
  };
  const chips = {
    states: () => data.states.map(([state, count]) => chip("state", state, inWords(state), count)),
    tags: () => data.tags.map(([tag, count]) => chip("tag", tag, `#${tag}`, count)),
  };
  for (const [id, made] of Object.entries(chips)) $(id).append(...made());

  $("order").addEventListener("change", () => { order = $("order").value; select(); });

  // The replay of the run: a slider, and a button that moves it.

  const slider = $("step"), play = $("play"), told = $("told");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let playing = 0;
  const label = () => {
    const last = turns[step - 1];
    told.textContent = replaying() ? `${step.toLocaleString()} of ${STEPS.toLocaleString()} stages` : "";
    slider.setAttribute("aria-valuetext", `${step} of ${STEPS} stages${last ? `, ${last.n}` : ""}`);
    play.textContent = playing ? "Pause" : still.matches && replaying() ? "Next stage" : "Replay";
  };
  const go = (to) => {
    if (to === step) { label(); return; }
    step = to;
    slider.value = step;
    label();
    select();
    draw();
  };
  const stop = () => { cancelAnimationFrame(playing); playing = 0; label(); };
  const run = () => {
    const from = replaying() ? step : 0, began = performance.now(), speed = STEPS / Math.min(8000, Math.max(2500, STEPS * 350));
    const frame = (now) => {
      const to = Math.min(STEPS, from + Math.floor((now - began) * speed));
      playing = to < STEPS ? requestAnimationFrame(frame) : 0;
      if (to !== step) {
        go(to);
        const newest = list.querySelector("li.now");
        if (newest) newest.scrollIntoView({ block: "nearest", behavior: "instant" });
      }
      if (!playing) label();
    };
    playing = requestAnimationFrame(frame);
    label();
  };
  play.addEventListener("click", () => {
    if (playing) stop();
    else if (still.matches) go(replaying() ? step + 1 : 0);  // nothing moves by itself
    else run();
  });
  slider.addEventListener("input", () => { if (playing) stop(); go(Number(slider.value)); });

  // The chart: a lane for each branch that ran at the same time.

  const LANE = 16, AXIS = 22;
  let zoom = 1;
  const draw = () => {
    const width = chart.parentElement.clientWidth * zoom, lanes = Math.max(1, data.lanes);
    const lane = Math.max(3, Math.min(LANE, 480 / lanes));
    const height = lanes * lane + AXIS;
    const ratio = Math.min(window.devicePixelRatio || 1, 30000 / width);  // no browser draws more
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    chart.style.width = `${width}px`;
    chart.style.height = `${height}px`;
    chart.width = Math.round(width * ratio);
    chart.height = Math.round(height * ratio);
    const pen = chart.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11.5px system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";
    pen.textBaseline = "bottom";
    let free = -1;
    for (const [x, label, broken] of data.ticks[zoom < 4 ? 0 : zoom < 16 ? 1 : 2]) {
      const at = Math.round(x * width) + 0.5;
      pen.strokeStyle = color("--line");
      pen.setLineDash(broken ? [2, 3] : []);
      pen.beginPath(); pen.moveTo(at, 0); pen.lineTo(at, height - AXIS + 4); pen.stroke();
      const wide = pen.measureText(label).width;
      const left = Math.max(0, Math.min(at - (x === 0 ? 0 : wide / 2), width - wide));
      if (left > free) { pen.fillStyle = color("--soft"); pen.fillText(label, left, height); free = left + wide + 10; }
    }
    pen.setLineDash([]);
    const paint = { static: color("--static"), fresh: color("--new"), warn: color("--amber"), bad: color("--bad") };
    for (const row of bars) {
      pen.fillStyle = ["failed", "cancelled", "crashed"].includes(row.s) ? paint.bad : warned(row) ? paint.warn : row.by !== undefined ? paint.fresh : paint.static;
      pen.globalAlpha = ahead(row) ? 0.12 : row.re ? 0.45 : 1;
      const long = Math.max(1.5, row.w * width - (row.w * width > 5 ? 1 : 0));
      const left = Math.min(row.x * width, width - long), top = (row.lane || 0) * lane;
      if (long > 5 && lane > 8) { pen.beginPath(); pen.roundRect(left, top + 1, long, lane - 3, 2.5); pen.fill(); } else pen.fillRect(left, top + 1, long, Math.max(1, lane - 3));
    }
    pen.globalAlpha = 1;
    chart.dataset.lane = lane;
  };
  const enlarge = (by) => {
    const pane = chart.parentElement, middle = (pane.scrollLeft + pane.clientWidth / 2) / (pane.clientWidth * zoom);
    zoom = Math.max(1, Math.min(64, by === 0 ? 1 : zoom * by));
    draw();
    pane.scrollLeft = middle * pane.clientWidth * zoom - pane.clientWidth / 2;
    $("zoom-out").disabled = $("whole").disabled = zoom === 1;
    $("zoom-in").disabled = zoom === 64;
  };
  $("zoom-in").addEventListener("click", () => enlarge(2));
  $("zoom-out").addEventListener("click", () => enlarge(0.5));
  $("whole").addEventListener("click", () => enlarge(0));
  chart.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    enlarge(event.deltaY < 0 ? 2 : 0.5);
  }, { passive: false });
  const under = (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, lane = Math.floor((event.clientY - box.top) / Number(chart.dataset.lane));
    let best = null, far = 6 / box.width;
    for (const row of bars) {
      if ((row.lane || 0) !== lane) continue;
      const off = Math.max(row.x - x, x - row.x - row.w, 0);
      if (off <= far) { best = row; far = off; if (off === 0) far = 0; }
    }
    return best;
  };
  chart.addEventListener("pointermove", (event) => {
    const row = under(event);
    tip.hidden = !row;
    if (!row) return;
    tip.textContent = `${row.n}, ${row.t}`;
    tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  chart.addEventListener("pointerleave", () => { tip.hidden = true; });
  chart.addEventListener("click", (event) => { const row = under(event); if (row) jump(row.i); });
  new ResizeObserver(draw).observe(chart.parentElement);
  for (const kind of ["(prefers-color-scheme: dark)", "(forced-colors: active)", "print"]) matchMedia(kind).addEventListener("change", draw);
  still.addEventListener("change", label);
  addEventListener("beforeprint", () => { while (done < visible.length) append(); });

  const copy = $("copy");
  if (copy) copy.addEventListener("click", async () => {
    const command = $("command");
    try { await navigator.clipboard.writeText(command.textContent); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(command); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });

  // The failure of the run.

  let blamed = "";
  const blame = () => {
    const alarm = $("alarm"), said = JSON.stringify([data.failures[data.fail], data.culprits]);
    if (!alarm || data.fail === undefined || (said === blamed && alarm.querySelector(".said"))) return;
    blamed = said;
    alarm.querySelectorAll(":scope > div").forEach((old) => old.remove());
    alarm.append(failure(data.failures[data.fail]));
    const acts = el("div", "acts");
    for (const row of data.culprits.map((index) => rows[index])) {
      const go = el("button", "link", "Show the stage ");
      go.append(el("span", "name", row.n));
      go.type = "button";
      go.addEventListener("click", () => jump(row.i));
      acts.append(go);
    }
    if (data.more) acts.append(el("span", "notes", `and ${data.more.toLocaleString()} more that failed`));
    alarm.append(acts);
  };

  const ready = () => {
    blame();
    slider.max = STEPS;
    slider.value = step;
    $("replay").hidden = STEPS < 2;
    $("timeline").hidden = !bars.length;
    label();
  };

  // A server that shows a run as it grows gives its new data, and the function that patches elements. A row stays the
  // same object, and its element the same element; they are recognized by the names of the rows above and their turn.

  const known = new Map();
  const keyed = () => {
    const turn = new Map(), found = new Map();
    for (const row of rows) {
      const up = rows[row.p], name = `${up ? up.key : ""}/${row.k === "fold" ? "" : row.n}`;
      turn.set(name, (turn.get(name) || 0) + 1);
      const whole = `${name}/${turn.get(name)}`;
      if (!known.has(whole)) known.set(whole, known.size);
      row.key = known.get(whole);
      found.set(row.key, row);
    }
    return found;
  };

  const update = (fresh, patch) => {
    const old = keyed(), focused = rows[current], was = replaying() ? step : Infinity;
    const sets = [[opened, "i"], [closed, "i"], [unfolded, "f"]].map(([set, at]) => [set, at, rows.filter((row) => row[at] !== undefined && set.has(row[at]))]);
    for (const li of list.children) if (li.dataset.i !== undefined) li.dataset.key = rows[li.dataset.i].key;
    rows.length = 0;
    for (const row of fresh.rows) rows.push(row);
    keyed();
    rows.forEach((row, index) => {
      const same = old.get(row.key);
      if (!same) return;
      for (const name of Object.keys(same)) delete same[name];
      rows[index] = Object.assign(same, row);
    });
    Object.assign(data, fresh, { rows });
    prepare();
    for (const [set, at, those] of sets) {
      set.clear();
      for (const row of those) if (rows[row.i] === row && row[at] !== undefined) set.add(row[at]);
    }
    for (const index of opened) for (let at = rows[index]; at; at = rows[at.p]) if (at.h !== undefined) unfolded.add(at.h);
    STEPS = data.turns;
    step = Math.min(STEPS, was);
    for (const [id, made] of Object.entries(chips)) patch($(id), made());
    const shown = Math.max(done, BATCH);
    choose();
    current = focused && visible.includes(focused.i) ? focused.i : visible.length ? visible[0] : -1;
    const drawn = [...first(shown).children];
    for (const li of drawn) if (li.dataset.i !== undefined) li.dataset.key = rows[li.dataset.i].key;
    patch(list, drawn);
    ready();
    draw();
  };
  document.addEventListener("flowdeco:update", (event) => update(event.detail.data, event.detail.patch));

  const watch = new IntersectionObserver((seen) => {
    if (!seen[seen.length - 1].isIntersecting || done >= visible.length) return;
    append();
    watch.unobserve(more);  // asks again, if the end is still near
    watch.observe(more);
  }, { rootMargin: "1500px" });
  watch.observe(more);
  ready();
  select();
  arrive();
})();
