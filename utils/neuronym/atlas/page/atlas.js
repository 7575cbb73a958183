// One renderer for the site and for the explorer in JupyterLab. Nothing here is markup: texts are set as text.
"use strict";
var ATLAS = (() => {
const CONSTANT = 1, DEAD = 2, CHANCE = 4;
const COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#8a8a8a", "#b8a100", "#56b4e9"];
const HELP = "Trust: how far a name can be trusted, found by the notebook trust; 1 is best. Held out: correlation, on " +
  "images kept out of naming, of what the image-text model sees of the name with the unit's activation. p: chance " +
  "that shuffled activations score as high. Methods agree: share of the methods that give the same name.";
const pad = n => String(n).padStart(4, "0");
const number = (x, digits = 2) => x === x && x !== null ? x.toFixed(digits).replace(/^(-?)0\./, "$1.") : "–";

function unpack(text, kind) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new kind(bytes.buffer);
}

function h(tag, ...inside) {  // h("p.dim", {title: "..."}, "text", element, [more])
  const [name, style] = tag.split("."), svg = /^(svg|path|rect|text)$/.test(name);
  const el = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  if (style) el.className = style;
  if (inside[0] && Object.getPrototypeOf(inside[0]) === Object.prototype)
    for (const [key, value] of Object.entries(inside.shift()))
      if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) el.setAttribute(key, value);
  el.append(...inside.flat().filter(x => x || x === 0));
  return el;
}

// ---- files of a site: classic scripts beside the page, which load from file:// too
const told = {}, waiting = {};
function deliver(path, content) {
  told[path] = Promise.resolve(content);
  if (waiting[path]) waiting[path](content);
}
const files = {
  get: path => told[path] ||= new Promise((done, fail) => {
    waiting[path] = done;
    document.head.append(h("script", { src: path + ".js", onerror: () => fail(Error(path + ".js is not there")) }));
  }),
  sheet: async (network, n) => `sheets/${network}/${pad(n)}.webp`,
};

function mount(root, meta, source, options = {}) {
  const began = performance.now(), inPage = options.hash !== false;
  const U = meta.layers.reduce((n, l) => n + l.units, 0), layerOf = new Uint16Array(U), first = [];
  meta.layers.reduce((n, l, k) => (first.push(n), layerOf.fill(k, n, n + l.units), n + l.units), 0);
  const Code = meta.wide ? Uint32Array : Uint16Array, col = {}, by = {};
  for (const name in meta.columns) col[name] = unpack(meta.columns[name], Float32Array);
  for (const name in meta.by)
    by[name] = { label: unpack(meta.by[name].label, Code), held: unpack(meta.by[name].held, Float32Array) };
  by[""] = { label: unpack(meta.label, Code), held: col.held };
  const odd = unpack(meta.odd, Uint8Array), kindOf = unpack(meta.kindOf, Uint8Array);
  const lower = meta.words.map(word => " " + word.toLowerCase().replace(/[-_,]/g, " "));
  const trusted = col.trust.some(x => x === x), worth = trusted ? col.trust : col.held;
  const worthName = trusted ? "trust" : "held out";
  col.agree = new Float32Array(U);
  for (const m of meta.methods)
    for (let i = 0; i < U; i++) col.agree[i] += (by[m].label[i] === by[""].label[i]) / meta.methods.length;
  const COLUMNS = { layer: "layer", label: "name", trust: "trust", held: "held out", score: "score",
    agree: "methods agree", p: "p", active: "above 0" };
  const RISING = ["layer", "label", "p"];
  const usual = { view: "grid", q: "", layer: "", method: "", kind: "", least: 0, chance: 1, dead: "", up: "",
    sort: U > 2e5 ? "layer" : trusted ? "trust" : "held", a: "", b: "", ma: "", mb: "" };
  let state = { ...usual }, hits = [], picked = -1, shown = 0, only = null, calls = () => 0;
  const orders = {};

  const layer = i => meta.layers[layerOf[i]], network = i => meta.networks[layer(i).network];
  const unitOf = i => i - first[layerOf[i]];
  const nameOf = (i, method = state.method) => meta.words[by[method].label[i]] || "(no name)";
  const place = i => (meta.networks.length > 1 ? network(i).name + " · " : "") + `${layer(i).name} · unit ${unitOf(i)}`;

  // ---- choosing
  function order(name, up) {  // made once for each column, so that a search is one walk through it
    return orders[name + up] ||= (() => {
      const value = name === "label" ? by[""].label : name === "layer" ? null : col[name];
      const all = new Uint32Array(U).map((_, i) => i), sign = up ? 1 : -1;
      if (!value) return up ? all : all.reverse();
      const key = Float64Array.from(value, x => x === x ? sign * x : Infinity);
      return all.sort((a, b) => key[a] - key[b] || a - b);
    })();
  }
  function search() {
    const q = state.q.trim().toLowerCase(), has = q && Uint8Array.from(lower, word => word.includes(" " + q));
    const lists = (state.method ? [state.method] : ["", ...meta.methods]).map(m => by[m].label);
    calls = i => q && !has[lists[0][i]] && meta.methods.find(m => has[by[m].label[i]]);
    const kind = meta.kinds.indexOf(state.kind), [from, to] = span(state.layer);
    const up = RISING.includes(state.sort) ? !state.up : !!state.up;
    hits = [];
    for (const i of only ? only.keys() : order(state.sort, up))
      if (i >= from && i < to && (state.chance || !(odd[i] & CHANCE)) && (state.dead || !(odd[i] & (DEAD | CONSTANT)))
        && (!(state.least > 0) || worth[i] >= state.least) && (!state.kind || kindOf[lists[0][i]] === kind)
        && (!q || lists.some(codes => has[codes[i]]))) hits.push(i);
  }
  function span(text) {  // units of "", a network's number, or NUMBER/LAYER
    const [which, ...name] = text.split("/");
    const some = [...meta.layers.keys()].filter(k => !text ||
      (meta.layers[k].network === +which && (!name.length || meta.layers[k].name === name.join("/"))));
    const last = some[some.length - 1];
    return some.length ? [first[some[0]], first[last] + meta.layers[last].units] : [0, 0];
  }

  // ---- addresses: every view and unit has one
  const address = i => "#/unit/" + [network(i).name, layer(i).name, unitOf(i)].map(encodeURIComponent).join("/");
  function hash(some) {
    const set = Object.entries(some).filter(([key, x]) => key in usual && key !== "view" && String(x) !== String(usual[key]));
    const text = new URLSearchParams(set).toString();
    return `#/${some.view}` + (text && "?" + text);
  }
  function read(text) {
    const [path, query] = text.replace(/^#\/?/, "").split("?"), [view, ...parts] = path.split("/");
    if (view === "unit") {
      const [net, name, unit] = parts.map(decodeURIComponent);
      const k = meta.layers.findIndex(l => l.name === name && meta.networks[l.network].name === net);
      return { ...state, view, asked: parts.join("/"), unit: k >= 0 && +unit < meta.layers[k].units ? first[k] + +unit : -1 };
    }
    return { ...usual, ...Object.fromEntries(new URLSearchParams(query)), view: VIEWS[view] ? view : "grid" };
  }
  function go(change, quietly) {
    const view = change.view || (state.view === "unit" ? "grid" : state.view);
    const to = typeof change === "string" ? change : hash({ ...state, ...change, view });
    if (inPage && !quietly) location.hash = to;
    else { if (inPage) history.replaceState(null, "", to); state = read(to); show(); }
  }
  const open = i => { picked = i; go(address(i)); };
  const to = e => { if (!inPage) { e.preventDefault(); go(e.currentTarget.getAttribute("href")); } };
  const link = (i, text) => h("a", { href: address(i), onclick: to }, text);

  // ---- pieces
  function pic(which, n, text, firing) {
    const { across } = meta.sheet, each = across * across;
    const el = h("span.pic", { role: "img", "aria-label": text || "image", title: text || "" }, firing && outline(firing));
    [["across", across], ["c", n % across], ["r", Math.floor(n % each / across)]].forEach(([k, x]) => el.style.setProperty("--" + k, x));
    source.sheet(which, Math.floor(n / each)).then(url => { el.style.backgroundImage = `url("${url}")`; });
    return el;
  }
  function outline([rows, columns, cells]) {  // around where the unit is at half of its highest value or more
    const fine = 24, at = (y, x) => cells[Math.max(0, Math.min(rows - 1, y)) * columns + Math.max(0, Math.min(columns - 1, x))];
    const on = (y, x) => {  // between the middles of the cells, by both distances
      if (y < 0 || x < 0 || y >= fine || x >= fine) return false;
      const v = (y + .5) / fine * rows - .5, u = (x + .5) / fine * columns - .5, j = Math.floor(v), k = Math.floor(u);
      const across = l => at(l, k) * (1 - u + k) + at(l, k + 1) * (u - k);
      return across(j) * (1 - v + j) + across(j + 1) * (v - j) >= 127.5;
    };
    let d = "";
    for (let y = 0; y <= fine; y++)
      for (let x = 0; x <= fine; x++) {
        if (on(y, x) !== on(y - 1, x)) d += `M${x} ${y}h1`;
        if (on(y, x) !== on(y, x - 1)) d += `M${x} ${y}v1`;
      }
    const line = (stroke, width) => h("path", { d, stroke, "stroke-width": width, "stroke-linecap": "square" });
    return h("svg", { viewBox: `0 0 ${fine} ${fine}`, "aria-hidden": true }, line("#000", 1), line("#fff", .5));
  }
  function bar(x) {
    const el = h("span.bar", { "aria-hidden": true }, h("i"));
    el.firstChild.style.width = Math.max(0, Math.min(1, x || 0)) * 100 + "%";
    return el;
  }
  function badge(i) {
    const text = odd[i] & CONSTANT ? "constant" : odd[i] & DEAD ? "dead" : odd[i] & CHANCE ? "no better than chance" : "";
    return text && h("span.badge", text);
  }
  function also(i) {  // which other method gives the name that was searched
    const m = calls(i);
    return m && h("small", ` “${nameOf(i, m)}” by ${m}`);
  }
  function card(i, text = only && only.has(i) ? `${number(only.get(i), 1)} deviations` : `${worthName} ${number(worth[i])}`) {
    const pics = h("span.pics");
    source.get("tops/" + pad(Math.floor(i / meta.tops))).then(few => {
      const at = i % meta.tops * meta.few;
      pics.append(...[...few.subarray(at, at + meta.few)].filter(n => n >= 0).map(n => pic(layer(i).network, n)));
    }, () => 0);
    return h("a.card", { href: address(i), onclick: to, "data-unit": i }, pics, h("b", nameOf(i), also(i)), h("small", place(i)),
      h("br"), bar(worth[i]), h("small", " ", text), badge(i));
  }
  function list(main, into, make, step) {
    const more = () => {
      into.append(...hits.slice(shown, shown + step).map(make));
      shown = Math.min(hits.length, shown + step);
      button.hidden = shown === hits.length;
    }, button = h("button", { onclick: more }, "show more");
    shown = 0;
    more();
    main.append(h("p", button));
  }
  const rowsOf = (titles, body) => h("div.scroll", { tabindex: 0, role: "region", "aria-label": "table" },
    h("table", h("thead", h("tr", titles.map(title => h("th", { scope: "col" }, title)))), body));

  // ---- views
  function counted() {
    const all = U.toLocaleString("en"), some = hits.length.toLocaleString("en");
    return h("p.dim", { role: "status" }, hits.length === U ? `${all} units` : `${some} of ${all} units` +
      (hits.length ? "" : ": nothing fits; loosen what is chosen above"));
  }
  function grid(main) {
    const box = h("div.grid");
    main.append(counted(), box);
    list(main, box, i => card(i), 60);
  }
  function table(main) {
    const body = h("tbody"), value = (x, digits) => h("td.n", number(x, digits)), barred = x => h("td.n", bar(x), " ", number(x));
    const heads = Object.keys(COLUMNS).map(key => h("button", { onclick: () => go({ sort: key, up: key === state.sort && !state.up ? 1 : "" }) },
      COLUMNS[key], key === state.sort && (state.up ? " ▴" : " ▾")));
    main.append(counted(), rowsOf(heads, body));
    list(main, body, i => h("tr", { "data-unit": i }, h("td", link(i, place(i))), h("td", nameOf(i), also(i), badge(i)),
      barred(col.trust[i]), barred(by[state.method].held[i]), value(col.score[i]), value(col.agree[i]), value(col.p[i], 3),
      value(col.active[i])), 100);
  }
  function map(main) {
    const canvas = h("canvas", { role: "img", "aria-label": "map of all units; the table has them as text" });
    const tip = h("p.dim", { role: "status" }, " "), kinds = meta.kinds.length > 1;
    const groups = kinds ? meta.kinds : meta.layers.map(l => l.name);
    const colour = i => COLOURS[(kinds ? kindOf[by[state.method].label[i]] : layerOf[i]) % COLOURS.length];
    main.append(counted(), h("p.dim", `Units that fire together lie together; size is ${worthName}, colour the ` +
      `${kinds ? "kind of name" : "layer"}. Drag, wheel, click.`), canvas, tip, h("p", groups.map((name, k) => {
      const key = h("span.key");
      key.style.background = COLOURS[k % COLOURS.length];
      return [key, name || "other"];
    }).flat()));
    let zoom = .94, ox = 0, oy = 0, near = -1, from = null, moved = 0;
    const on = new Uint8Array(U), dpr = devicePixelRatio || 1;
    hits.forEach(i => { on[i] = 1; });
    const half = () => [canvas.width / 2, canvas.height / 2];
    const where = i => {
      const [w, v] = half();
      return [w + (col.x[i] + ox) * zoom * w, v + (col.y[i] + oy) * zoom * v];
    };
    function paint() {
      const ctx = canvas.getContext("2d"), style = getComputedStyle(root);
      canvas.width = canvas.clientWidth * dpr;
      canvas.height = canvas.clientHeight * dpr;
      const base = Math.max(1, Math.min(11, 90 / Math.sqrt(U) * Math.sqrt(zoom))) * dpr;
      for (const pass of [0, 1])
        for (let i = 0; i < U; i++) if (on[i] === pass) {
          const [x, y] = where(i), r = base * (.4 + .8 * Math.max(0, worth[i] || 0));
          ctx.globalAlpha = pass ? .85 : .1;
          ctx.fillStyle = colour(i);
          if (r < 2) ctx.fillRect(x - r, y - r, 2 * r, 2 * r);
          else { ctx.beginPath(); ctx.arc(x, y, r, 0, 7); ctx.fill(); }
        }
      ctx.globalAlpha = 1;
      ctx.font = `${12 * dpr}px system-ui, sans-serif`;
      ctx.fillStyle = style.color;
      ctx.strokeStyle = style.backgroundColor;
      ctx.lineWidth = 3 * dpr;
      const taken = new Set(), best = [...hits.slice(0, 3000)].sort((a, b) => (worth[b] || 0) - (worth[a] || 0));
      for (const i of near >= 0 ? [near, ...best] : best) {  // names where there is room, the most trusted first
        const [x, y] = where(i), wide = Math.ceil(ctx.measureText(nameOf(i)).width / (12 * dpr)), cells = [];
        for (let k = -1; k <= wide; k++) cells.push(Math.floor(x / (12 * dpr)) + k + "," + Math.round(y / (15 * dpr)));
        if (cells.some(cell => taken.has(cell))) continue;
        cells.forEach(cell => taken.add(cell));
        ctx.strokeText(nameOf(i), x + base, y + 4 * dpr);
        ctx.fillText(nameOf(i), x + base, y + 4 * dpr);
      }
    }
    function under(e) {
      const box = canvas.getBoundingClientRect(), mx = (e.clientX - box.left) * dpr, my = (e.clientY - box.top) * dpr;
      const far = i => { const [x, y] = where(i); return (x - mx) ** 2 + (y - my) ** 2; };
      const best = hits.reduce((b, i) => { const d = far(i); return d < b[1] ? [i, d] : b; }, [-1, (18 * dpr) ** 2]);
      return best[0];
    }
    canvas.onpointerdown = e => { from = e; moved = 0; canvas.setPointerCapture(e.pointerId); };
    canvas.onpointerup = e => { from = null; const i = under(e); if (moved < 5 && i >= 0) open(i); };
    canvas.onpointermove = e => {
      if (from) {
        const [w, v] = half(), dx = e.clientX - from.clientX, dy = e.clientY - from.clientY;
        ox += dx * dpr / w / zoom; oy += dy * dpr / v / zoom; moved += Math.abs(dx) + Math.abs(dy); from = e;
      } else if (under(e) === near) return;
      else { near = under(e); tip.textContent = near < 0 ? " " : `${nameOf(near)}: ${place(near)}`; }
      paint();
    };
    canvas.addEventListener("wheel", e => {
      e.preventDefault();
      zoom = Math.max(.5, Math.min(60, zoom * Math.exp(-e.deltaY / 400)));
      paint();
    }, { passive: false });
    requestAnimationFrame(paint);
  }
  function compare(main) {
    const a = +(state.a || 0), b = +(state.b || a), ma = state.ma || meta.networks[meta.layers[a].network].main;
    const mb = state.mb || meta.methods.find(m => m !== ma) || ma, rows = h("tbody");
    const layers = meta.layers.map((l, k) => [k, `${meta.networks[l.network].name} · ${l.name}`]);
    const pick = (text, key, some, value) => h("label.dim", text, " ", h("select", { onchange: e => go({ [key]: e.target.value }) },
      some.map(([v, t]) => h("option", { value: v, ...(String(v) === String(value) ? { selected: "" } : {}) }, t))));
    const methods = meta.methods.map(m => [m, m]);
    const mean = (m, k) => {
      const some = [...by[m].held.subarray(first[k], first[k] + meta.layers[k].units)].filter(x => x === x);
      return number(some.reduce((x, y) => x + y, 0) / some.length, 3);
    };
    main.append(h("p.wide", pick("left", "a", layers, a), pick("by", "ma", methods, ma)), h("p.wide", pick("right", "b", layers, b),
      pick("by", "mb", methods, mb)), h("p", `Mean held-out correlation: left ${mean(ma, a)}, right ${mean(mb, b)}.`));
    const fill = (pairs, text, titles) => {
      main.append(h("p.dim", text), rowsOf(titles, rows));
      rows.append(...pairs.slice(0, 300).map(([i, j, ...numbers]) => {
        const x = by[ma].held[i], y = by[mb].held[j];
        const cell = (k, m, mine, other) => h(mine > other ? "td.better" : "td", nameOf(k, m), " ", h("small", number(mine)));
        return h("tr", h("td", link(i, place(i))), i !== j && h("td", link(j, place(j))), cell(i, ma, x, y), cell(j, mb, y, x),
          numbers.map(n => h("td.n", number(n))));
      }));
    };
    if (a === b) {
      const pairs = [], gap = ([i]) => Math.abs(by[ma].held[i] - by[mb].held[i]) || 0;
      for (let i = first[a]; i < first[a] + meta.layers[a].units; i++)
        if (by[ma].label[i] !== by[mb].label[i]) pairs.push([i, i]);
      return fill(pairs.sort((p, q) => gap(q) - gap(p)), `${pairs.length} of ${meta.layers[a].units} units have another ` +
        "name; the largest difference of held-out correlation first.", ["unit", "left: " + ma, "right: " + mb]);
    }
    const pair = meta.matches.find(two => two.includes(a) && two.includes(b));
    if (!pair) return main.append(h("p.dim", "Only layers of different networks over the same images are matched unit by unit."));
    source.get("matches/" + pair.join("-")).then(m => {
      const [left, right] = pair[0] === a ? [m.a, m.b] : [m.b, m.a];
      fill(Array.from(left, (u, k) => [first[a] + u, first[b] + right[k], m.r[k], m.held[k]]), `${left.length} units paired one ` +
        "to one by their correlation over the images for naming; beside it that over the images held out.",
        ["left", "right", "left: " + ma, "right: " + mb, "match", "held out"]);
    });
  }
  function unit(main) {
    const i = state.unit;
    if (!(i >= 0)) return main.append(h("p", `There is no unit ${state.asked} here. `), h("a", { href: "#/grid", onclick: to }, "All units"));
    const l = layer(i), net = network(i), u = unitOf(i), slot = h("div", "loading …");
    const step = (d, text) => layerOf[i + d] === layerOf[i] && link(i + d, text), held = m => by[m].held[i];
    const named = meta.methods.filter(m => meta.words[by[m].label[i]]).sort((m, n) => (held(n) || -2) - (held(m) || -2));
    main.append(h("p.wide", h("a", { href: hash({ ...usual, layer: `${l.network}/${l.name}` }), onclick: to }, `${net.name} / ${l.name}`),
      `unit ${u} of ${l.units}, counted from 0`, step(-1, "‹ previous"), step(1, "next ›"),
      options.choose && h("button", { onclick: () => options.choose(i) }, "choose this unit")),
    h("h2", nameOf(i, "")), h("p", "trust ", bar(col.trust[i]), ` ${number(col.trust[i])} · held out `, bar(col.held[i]),
      ` ${number(col.held[i])} · p ${number(col.p[i], 3)} · above 0 on ${Math.round(col.active[i] * 100)} % of ` +
      `${net.images.toLocaleString("en")} images`, badge(i)),
    h("h3", "What each method calls it"), h("table", h("tbody", named.map(m => h("tr", h("td", m), h("td", h("b", nameOf(i, m))),
      h("td.n", bar(held(m)), " held out ", number(held(m))))))), slot);
    source.get(`units/${layerOf[i]}/${pad(Math.floor(u / meta.shard))}`).then(some =>
      slot.replaceChildren(...details(i, some[u % meta.shard], net, l)), e => { slot.textContent = e.message; });
  }
  function details(i, d, net, l) {
    const out = [], parts = meta.parts[l.network], cells = d.w && unpack(d.w[2], Uint8Array), each = d.w && d.w[0] * d.w[1];
    const section = (title, ...inside) => out.push(h("h3", title), ...inside);
    const pictures = (title, test) => section(title, h("div.wide", d.p.map((n, k) => test(parts[k]) && h("figure",
      pic(l.network, n, `${parts[k]}, activation ${d.v[k]}`, parts[k] === "top" && d.w && [d.w[0], d.w[1], cells.subarray(k * each, (k + 1) * each)]),
      h("figcaption", (parts[k].endsWith("%") ? parts[k] + ": " : "") + d.v[k])))));
    if (d.p) {
      pictures("Highest activations" + (d.w ? "; the line surrounds half of the highest value or more" : ""), part => part === "top");
      if (parts.includes("50 %")) pictures("Across the range: images above that share of all", part => part.endsWith("%"));
      if (parts.includes("lowest")) pictures("Lowest activations", part => part === "lowest");
    }
    section("How its activations are spread", histogram(d.h, nameOf(i, "")));
    if (d.k.length) out.push(h("p.dim", `${net.main}, best first: ` + d.k.map(([text, score]) => `${text} (${score})`).join(", ")));
    for (const key in d.x) section(key, h("p", d.x[key]));
    section("Units that fire on the same images", h("div.wide", d.n.map(([k, u, r]) => card(first[k] + u, "correlation " + number(r)))));
    const mine = meta.matches.filter(pair => pair.includes(layerOf[i])), partners = h("div.wide");
    if (mine.length) section("Its partners in other networks", partners);
    for (const pair of mine) source.get("matches/" + pair.join("-")).then(m => {
      const [own, other, k] = pair[0] === layerOf[i] ? [m.a, m.b, pair[1]] : [m.b, m.a, pair[0]], at = own.indexOf(unitOf(i));
      if (at >= 0) partners.append(card(first[k] + other[at], "held out " + number(m.held[at])));
    });
    section("The command that reproduces it", h("pre", net.command));
    section("To cite it", h("pre", `${net.name}, ${l.name}, unit ${unitOf(i)} (counted from 0): "${nameOf(i, "")}" by ${net.main}, ` +
      `${net.clip}, ${net.concepts} concepts, ${net.images} images of ${net.probe}. ${inPage ? location.href : ""}`));
    return out;
  }
  function histogram(d, text) {
    const n = d.all.length, most = Math.max(...d.all), box = h("svg", { viewBox: "0 0 480 126", width: "100%", style: "max-width:560px" });
    const bars = (counts, fill) => counts.forEach((x, k) => {
      const tall = x && 8 + 92 * Math.sqrt(x / most);
      box.append(h("rect", { x: k * 480 / n, width: 480 / n - 1, y: 104 - tall, height: tall, fill }));
    });
    bars(d.all, "color-mix(in srgb, var(--fill) 55%, var(--bg))");
    bars(d.label || [], "var(--fill2)");
    [[0, "start", d.low], [480, "end", d.high]].forEach(([x, anchor, value]) => box.append(h("text", { x, y: 121,
      "text-anchor": anchor, fill: "var(--dim)", "font-size": 12 }, number(value))));
    return h("div", box, h("p.dim", "Images by activation; heights by square root. " + (d.label ?
      `Orange: the 5 % of images that the image-text model finds most like "${text}".` : "")));
  }

  // ---- frame
  const VIEWS = { grid, table, map, compare, unit }, main = h("main"), least = h("span");
  const choice = (key, some) => h("select", { onchange: e => go({ [key]: e.target.value }) }, some.map(([v, text]) => h("option", { value: v }, text)));
  const tick = key => h("input", { type: "checkbox", onchange: e => go({ [key]: e.target.checked ? 1 : "" }) });
  const input = {
    q: h("input", { type: "search", placeholder: "names by any method  ( / )", oninput: e => go({ q: e.target.value }, true) }),
    layer: choice("layer", [["", "all"], ...meta.networks.flatMap((net, k) => [[String(k), net.name], ...meta.layers.filter(l => l.network === k)
      .map(l => [`${k}/${l.name}`, `${l.name} (${l.units})`])])]),
    method: choice("method", [["", "the main one"], ...meta.methods.map(m => [m, m])]),
    kind: choice("kind", [["", "all"], ...meta.kinds.filter(k => k).map(k => [k, k])]),
    least: h("input", { type: "range", min: 0, max: 1, step: .05, oninput: e => go({ least: e.target.value }, true) }),
    sort: choice("sort", Object.entries(COLUMNS)), chance: tick("chance"), dead: tick("dead"),
  };
  const titles = { q: "search", layer: "layer", method: "method", kind: "kind of name", least: [worthName + " at least ", least], sort: "sort by" };
  const filters = h("div.filters", { role: "search" }, Object.entries(titles).map(([key, title]) => h("label", title, input[key])),
    h("label", input.chance, " names no better than chance"), h("label", input.dead, " dead and constant units"));
  const tabs = [["grid", "Pictures"], ["table", "Table"], ["map", "Map"], ["compare", "Compare"]].filter(([v]) => v !== "map" || meta.mapped)
    .map(([v, text]) => h("button", { "data-view": v, onclick: () => go({ view: v }) }, text));
  root.replaceChildren(h("header", h("h1", meta.title), h("nav", { "aria-label": "views" }, tabs), filters,
    h("details.dim", h("summary", "what the numbers mean"), HELP)), main);

  function show() {
    for (const key in input)
      if (key in { chance: 1, dead: 1 }) input[key].checked = !!state[key];
      else if (String(input[key].value) !== String(state[key])) input[key].value = state[key];
    least.textContent = number(+state.least);
    tabs.forEach(el => el.setAttribute("aria-current", el.dataset.view === state.view));
    filters.hidden = state.view === "unit" || state.view === "compare";
    const before = performance.now();
    main.replaceChildren();
    if (!filters.hidden) search();
    VIEWS[state.view](main);
    root.dataset.took = (performance.now() - before).toFixed(1);
    if (options.seen) options.seen(state, hits);
  }
  function keys(e) {
    const typing = /INPUT|SELECT|TEXTAREA/.test(e.target.tagName), box = main.querySelector(".grid");
    if (e.altKey || e.ctrlKey || e.metaKey || e.defaultPrevented) return;
    if (e.key === "/" && !typing) {
      e.preventDefault();
      if (filters.hidden) go({ view: "grid" });
      setTimeout(() => input.q.focus(), 60);
    } else if (e.key === "Escape") {
      if (typing) e.target.blur();
      else if (state.view === "unit") inPage ? history.back() : go({ view: "grid" });
    } else if (state.view === "unit") {
      const i = state.unit + { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (i === i && layerOf[i] === layerOf[state.unit]) open(i);
    } else if (hits.length && (!typing || e.target === input.q) && (box || state.view === "table")) {
      const across = box ? getComputedStyle(box).gridTemplateColumns.split(" ").length : 1, at = hits.indexOf(picked);
      const d = { ArrowDown: across, ArrowUp: -across, ArrowRight: !typing && 1, ArrowLeft: !typing && -1 }[e.key];
      if (d) {
        e.preventDefault();
        picked = hits[at < 0 ? 0 : Math.max(0, Math.min(shown - 1, at + d))];
        main.querySelectorAll("[data-unit]").forEach(el => +el.dataset.unit === picked ?
          (el.setAttribute("aria-current", "true"), el.scrollIntoView({ block: "nearest" })) : el.removeAttribute("aria-current"));
      } else if (e.key === "Enter" && at >= 0 && (typing || !e.target.closest("a, button, summary"))) open(picked);
    }
  }
  (inPage ? document : root).addEventListener("keydown", keys);
  if (inPage) {
    document.title = meta.title;
    addEventListener("hashchange", () => { state = read(location.hash); show(); scrollTo(0, 0); });
    state = read(location.hash);
  }
  show();
  root.dataset.loaded = (performance.now() - began).toFixed(1);
  return { go, only: some => { only = some && new Map(some); go({ ...usual }); } };
}

const pairs = m => ({ a: unpack(m.a, Int32Array), b: unpack(m.b, Int32Array), r: unpack(m.r, Float32Array), held: unpack(m.held, Float32Array) });
const opened = { tops: text => unpack(text, Int32Array), units: some => some, matches: pairs };  // what a file says, by its folder
return {
  mount, opened,
  index: meta => mount(document.getElementById("atlas"), meta, files),
  units: (layer, n, some) => deliver(`units/${layer}/${pad(n)}`, some),
  tops: (n, text) => deliver("tops/" + pad(n), opened.tops(text)),
  matches: (a, b, m) => deliver(`matches/${a}-${b}`, pairs(m)),
};
})();
