// One renderer for the site and for the explorer in JupyterLab. Nothing here is markup: texts are set as text.
"use strict";
var ATLAS = (() => {
const CONSTANT = 1, DEAD = 2, CHANCE = 4;
const COLOURS = "#0173b2 #de8f05 #029e73 #d55e00 #cc78bc #ca9161 #8a8a8a #b8a100 #56b4e9".split(" ");
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
      key.startsWith("on") ? el.addEventListener(key.slice(2), value) : el.setAttribute(key, value);
  el.append(...inside.flat().filter(x => x || x === 0));
  return el;
}

// files of a site: classic scripts beside the page, which load from file:// too
const told = {}, waiting = {};
function deliver(path, content) {
  told[path] = Promise.resolve(content);
  if (waiting[path]) waiting[path](content);
}
const files = {
  get: path => told[path] ||= new Promise((done, fail) => {
    waiting[path] = done;
    const onerror = () => fail(Error(path + ".js is not there"));
    document.head.append(h("script", { src: path + ".js", onerror }));
  }),
  sheet: async (network, n) => `sheets/${network}/${pad(n)}.webp`,
};

function mount(root, meta, source, options = {}) {
  const began = performance.now(), inPage = options.hash !== false, main = h("main");
  const { layers, networks, methods, words, matches } = meta, first = [], col = {}, by = {}, orders = {};
  const U = layers.reduce((n, l) => (first.push(n), n + l.units), 0), layerOf = new Uint16Array(U);
  layers.forEach((l, k) => layerOf.fill(k, first[k], first[k] + l.units));
  const labels = text => unpack(text, meta.wide ? Uint32Array : Uint16Array);
  for (const name in meta.columns) col[name] = unpack(meta.columns[name], Float32Array);
  for (const m of methods) by[m] = { label: labels(meta.by[m].label), held: unpack(meta.by[m].held, Float32Array) };
  by[""] = { label: labels(meta.label), held: col.held };
  const odd = unpack(meta.odd, Uint8Array), kindOf = unpack(meta.kindOf, Uint8Array);
  const lower = words.map(word => " " + word.toLowerCase().replace(/[-_,]/g, " "));
  const trusted = col.trust.some(x => x === x), worth = trusted ? col.trust : col.held;
  const worthName = trusted ? "trust" : "held out";
  const COLUMNS = { layer: "layer", label: "name", trust: "trust", held: "held out", score: "score",
    agree: "methods agree", p: "p", active: "above 0" };
  const usual = { view: "grid", q: "", layer: "", method: "", kind: "", least: 0, chance: 1, dead: "", up: "",
    sort: U > 2e5 ? "layer" : trusted ? "trust" : "held", a: "", b: "", ma: "", mb: "" };
  let state = { ...usual }, hits = [], picked = -1, shown = 0, only = null, calls;

  const layer = i => layers[layerOf[i]], network = i => networks[layer(i).network];
  const unitOf = i => i - first[layerOf[i]];
  const nameOf = (i, method = state.method) => words[by[method].label[i]] || "(no name)";
  const place = i => (networks[1] ? network(i).name + " · " : "") + `${layer(i).name} · unit ${unitOf(i)}`;

  // ---- choosing
  function order(name, up) {  // made once for each column, so that a search is one walk through it
    return orders[name + up] ||= (() => {
      const value = name === "label" ? by[""].label : col[name], sign = up ? 1 : -1;
      const all = new Uint32Array(U).map((_, i) => i);
      if (!value) return up ? all : all.reverse();
      const key = Float64Array.from(value, x => x === x ? sign * x : Infinity);
      return all.sort((a, b) => key[a] - key[b] || a - b);
    })();
  }
  function search() {
    const q = state.q.trim().toLowerCase(), has = q && Uint8Array.from(lower, word => word.includes(" " + q));
    const lists = (state.method ? [state.method] : ["", ...methods]).map(m => by[m].label);
    const kind = meta.kinds.indexOf(state.kind), [from, to] = state.layer ? state.layer.split("-") : [0, U];
    const up = !!state.up !== ["layer", "label", "p"].includes(state.sort);
    const hidden = (state.chance ? 0 : CHANCE) | (state.dead ? 0 : DEAD | CONSTANT);
    calls = i => q && !has[lists[0][i]] && methods.find(m => has[by[m].label[i]]);
    hits = [];
    for (const i of only ? only.keys() : order(state.sort, up))
      if (i >= from && i < to && !(odd[i] & hidden) && (!(state.least > 0) || worth[i] >= state.least)
        && (!state.kind || kindOf[lists[0][i]] === kind) && (!q || lists.some(codes => has[codes[i]]))) hits.push(i);
  }

  // ---- addresses: every view and unit has one
  const address = i => "#/unit/" + [network(i).name, layer(i).name, unitOf(i)].map(encodeURIComponent).join("/");
  function hash(some) {
    const set = Object.keys(usual).filter(key => key !== "view" && String(some[key]) !== String(usual[key]));
    return `#/${some.view}?` + new URLSearchParams(set.map(key => [key, some[key]]));
  }
  function read(text) {
    const [path, query] = text.replace(/^#\/?/, "").split("?"), [view, ...parts] = path.split("/");
    if (view === "unit") {
      const [net, name, unit] = parts.map(decodeURIComponent);
      const k = layers.findIndex(l => l.name === name && networks[l.network].name === net);
      return { ...state, view, asked: parts.join("/"), unit: k >= 0 && unit < layers[k].units ? first[k] + +unit : -1 };
    }
    return { ...usual, ...Object.fromEntries(new URLSearchParams(query)), view: VIEWS[view] ? view : "grid" };
  }
  function go(change, quietly) {
    const view = change.view || (state.view === "unit" ? "grid" : state.view);
    const to = typeof change === "string" ? change : hash({ ...state, ...change, view });
    if (inPage && !quietly) return location.hash = to;
    if (inPage) history.replaceState(null, "", to);
    state = read(to);
    show();
  }
  const open = i => { picked = i; go(address(i)); };
  const follow = e => { if (!inPage) { e.preventDefault(); go(e.currentTarget.getAttribute("href")); } };
  const link = (href, text) => h("a", { href: href >= 0 ? address(href) : href, onclick: follow }, text);

  // ---- pieces
  function pic(which, n, text = "image", line = "") {  // line: around where the unit fires
    const { across } = meta.sheet, at = n % across ** 2;
    const el = h("span.pic", { role: "img", "aria-label": text, title: text }, line && h("svg", { viewBox: "0 0 100 100" },
      h("path", { d: line, stroke: "#000", "stroke-width": 4 }), h("path", { d: line, stroke: "#fff", "stroke-width": 2 })));
    el.style.cssText = `--across:${across};--c:${at % across};--r:${Math.floor(at / across)}`;
    source.sheet(which, Math.floor(n / across ** 2)).then(url => { el.style.backgroundImage = `url("${url}")`; });
    return el;
  }
  function bar(x) {
    const inner = h("i");
    inner.style.width = Math.max(0, Math.min(1, x || 0)) * 100 + "%";
    return h("span.bar", inner);
  }
  function badge(i) {
    const o = odd[i], text = o & CONSTANT ? "constant" : o & DEAD ? "dead" : o & CHANCE ? "no better than chance" : "";
    return text && h("span.badge", text);
  }
  function also(i) {  // which other method gives the name that was searched
    const m = calls && calls(i);
    return m && h("small", ` “${nameOf(i, m)}” by ${m}`);
  }
  function card(i, text) {
    const pics = h("span.pics"), z = only && only.get(i);
    source.get("tops/" + pad(Math.floor(i / meta.tops))).then(few => {
      const at = i % meta.tops * meta.few, some = [...few.subarray(at, at + meta.few)].filter(n => n >= 0);
      pics.append(...some.map(n => pic(network(i).sheets, n)));
    }, () => 0);
    return h("a.card", { href: address(i), onclick: follow, "data-unit": i }, pics, h("b", nameOf(i), also(i)),
      h("small", place(i)), h("br"), bar(worth[i]), h("small", " ", text || (z ? number(z, 1) + " deviations" :
        `${worthName} ${number(worth[i])}`)), badge(i));
  }
  function list(into, make, step) {
    const more = () => {
      into.append(...hits.slice(shown, shown += step).map(make));
      button.hidden = shown >= hits.length;
    }, button = h("button", { onclick: more }, "show more");
    shown = 0;
    more();
    main.append(h("p", button));
  }
  function tableOf(titles, body) {
    const head = h("thead", h("tr", titles.map(title => h("th", { scope: "col" }, title))));
    return h("div.scroll", { tabindex: 0, role: "region", "aria-label": "table" }, h("table", head, body));
  }
  function counted() {
    const few = hits.length ? "" : ": nothing fits; loosen what is chosen above";
    return h("p.dim", { role: "status" }, `${hits.length.toLocaleString("en")} of ${U.toLocaleString("en")} units${few}`);
  }

  // ---- views
  function grid() {
    const box = h("div.grid");
    main.append(counted(), box);
    list(box, i => card(i), 60);
  }
  function table() {
    const body = h("tbody"), barred = x => h("td.n", bar(x), " ", number(x)), td = (...x) => h("td.n", number(...x));
    const heads = Object.keys(COLUMNS).map(sort => {
      const own = sort === state.sort, onclick = () => go({ sort, up: own && !state.up ? 1 : "" });
      return h("button", { onclick }, COLUMNS[sort], own && (state.up ? " ▴" : " ▾"));
    });
    main.append(counted(), tableOf(heads, body));
    list(body, i => h("tr", { "data-unit": i }, h("td", link(i, place(i))), h("td", nameOf(i), also(i), badge(i)),
      barred(col.trust[i]), barred(by[state.method].held[i]), td(col.score[i]), td(col.agree[i]), td(col.p[i], 3),
      td(col.active[i])), 100);
  }
  function map() {
    const canvas = h("canvas", { role: "img", "aria-label": "map of all units; the table has them as text" });
    const tip = h("p.dim", { role: "status" }, " "), kinds = meta.kinds[1], dpr = devicePixelRatio || 1;
    const colour = k => COLOURS[k % COLOURS.length], on = new Uint8Array(U);
    const group = i => kinds ? kindOf[by[state.method].label[i]] : layerOf[i];
    const keys = (kinds ? meta.kinds : layers.map(l => l.name)).flatMap((name, k) => {
      const key = h("span.key");
      key.style.background = colour(k);
      return [key, name || "other"];
    });
    main.append(counted(), h("p.dim", `Units that fire together lie together; size: ${worthName}, colour: ` +
      `${kinds ? "kind of name" : "layer"}. Drag, wheel, click.`), canvas, tip, h("p", keys));
    let zoom = .94, ox = 0, oy = 0, near = -1, from = null, moved = 0;
    hits.forEach(i => { on[i] = 1; });
    const where = i => [[col.x[i] + ox, canvas.width], [col.y[i] + oy, canvas.height]].map(([x, w]) => (1 + x * zoom) * w / 2);
    function paint() {
      const ctx = canvas.getContext("2d"), style = getComputedStyle(root), taken = new Set();
      canvas.width = canvas.clientWidth * dpr;
      canvas.height = canvas.clientHeight * dpr;
      const base = Math.max(1, Math.min(11, 90 / Math.sqrt(U) * Math.sqrt(zoom))) * dpr;
      for (const pass of [0, 1])
        for (let i = 0; i < U; i++) if (on[i] === pass) {
          const [x, y] = where(i), r = base * (.4 + .8 * Math.max(0, worth[i] || 0));
          ctx.globalAlpha = pass ? .85 : .1;
          ctx.fillStyle = colour(group(i));
          ctx.beginPath();
          ctx.arc(x, y, r, 0, 7);
          ctx.fill();
        }
      Object.assign(ctx, { globalAlpha: 1, font: `${12 * dpr}px system-ui, sans-serif`, fillStyle: style.color,
        strokeStyle: style.backgroundColor, lineWidth: 3 * dpr });
      const best = hits.slice(0, 3000).sort((a, b) => (worth[b] || 0) - (worth[a] || 0));
      for (const i of near >= 0 ? [near, ...best] : best) {  // names where there is room, the most trusted first
        const [x, y] = where(i), text = nameOf(i), wide = Math.ceil(ctx.measureText(text).width / 12 / dpr) + 2;
        const cells = Array.from({ length: wide }, (_, k) => [Math.floor(x / 12 / dpr) + k - 1, Math.round(y / 15 / dpr)].join());
        if (cells.some(cell => taken.has(cell))) continue;
        cells.forEach(cell => taken.add(cell));
        ctx.strokeText(text, x + base, y + 4 * dpr);
        ctx.fillText(text, x + base, y + 4 * dpr);
      }
    }
    function under(e) {
      const box = canvas.getBoundingClientRect(), mx = (e.clientX - box.left) * dpr, my = (e.clientY - box.top) * dpr;
      let best = -1, least = (18 * dpr) ** 2;
      for (const i of hits) {
        const [x, y] = where(i), d = (x - mx) ** 2 + (y - my) ** 2;
        if (d < least) [best, least] = [i, d];
      }
      return best;
    }
    canvas.onpointerdown = e => { from = e; moved = 0; canvas.setPointerCapture(e.pointerId); };
    canvas.onpointerup = e => { from = null; if (moved < 5 && under(e) >= 0) open(under(e)); };
    canvas.onpointermove = e => {
      if (from) {
        const dx = e.clientX - from.clientX, dy = e.clientY - from.clientY;
        ox += dx * 2 / canvas.clientWidth / zoom;
        oy += dy * 2 / canvas.clientHeight / zoom;
        moved += Math.abs(dx) + Math.abs(dy);
        from = e;
      } else if (under(e) === near) return;
      else { near = under(e); tip.textContent = near < 0 ? " " : `${nameOf(near)}: ${place(near)}`; }
      paint();
    };
    canvas.onwheel = e => { e.preventDefault(); zoom = Math.max(.5, Math.min(60, zoom * Math.exp(-e.deltaY / 400))); paint(); };
    requestAnimationFrame(paint);
  }
  function compare() {
    const a = +state.a, b = +(state.b || a), ma = state.ma || networks[layers[a].network].main;
    const mb = state.mb || methods.find(m => m !== ma) || ma, rows = h("tbody");
    const every = layers.map((l, k) => [k, `${networks[l.network].name} · ${l.name}`]), named = methods.map(m => [m, m]);
    const pick = (text, key, some, value) => {
      const el = choice(key, some);
      el.value = value;
      return h("label.dim", text, " ", el);
    };
    const fill = (pairs, text) => {
      const mean = (m, k) => number(pairs.reduce((x, pair) => x + (by[m].held[pair[k]] || 0), 0) / pairs.length);
      main.append(h("p", `${pairs.length} ${text} Mean held-out correlation of these: ${mean(ma, 0)}, ${mean(mb, 1)}.`),
        tableOf(["left", "right", ma, mb, "match", "held out"], rows));
      rows.append(...pairs.slice(0, 300).map(([i, j, ...numbers]) => {
        const x = by[ma].held[i], y = by[mb].held[j], cell = (k, m, mine, better) =>
          h(better ? "td.better" : "td", nameOf(k, m), " ", h("small", number(mine)));
        return h("tr", h("td", link(i, place(i))), h("td", link(j, place(j))), cell(i, ma, x, x > y), cell(j, mb, y, y > x),
          numbers.map(n => h("td.n", number(n))));
      }));
    };
    main.append(h("p.wide", pick("left", "a", every, a), pick("by", "ma", named, ma), pick("right", "b", every, b),
      pick("by", "mb", named, mb)));
    const pair = matches.find(two => two.includes(a) && two.includes(b));
    if (a === b) {
      const gap = ([i]) => Math.abs(by[ma].held[i] - by[mb].held[i]) || 0;
      const all = Array.from({ length: layers[a].units }, (_, u) => [first[a] + u, first[a] + u]);
      fill(all.filter(([i]) => by[ma].label[i] !== by[mb].label[i]).sort((p, q) => gap(q) - gap(p)),
        `of ${all.length} units have another name, the largest difference first.`);
    } else if (!pair) main.append(h("p", "Only layers of two networks over the same images are matched."));
    else source.get("matches/" + pair.join("-")).then(m => {
      const [left, right] = pair[0] === a ? [m.a, m.b] : [m.b, m.a];
      fill(Array.from(left, (u, k) => [first[a] + u, first[b] + right[k], m.r[k], m.held[k]]),
        "pairs of units, one to one, by correlation over the images for naming; beside it that over those held out.");
    });
  }
  function unit() {
    const i = state.unit;
    if (!(i >= 0)) return main.append(h("p", `There is no unit ${state.asked} here. `, link("#/grid", "All units")));
    const l = layer(i), net = network(i), u = unitOf(i), slot = h("div", "loading …"), held = m => by[m].held[i];
    const step = (d, text) => layerOf[i + d] === layerOf[i] && link(i + d, text);
    const named = methods.filter(m => words[by[m].label[i]]).sort((m, n) => (held(n) || -2) - (held(m) || -2));
    main.append(h("p.wide", link(hash({ ...usual, layer: `${i - u}-${i - u + l.units}` }), `${net.name} / ${l.name}`),
      `unit ${u} of ${l.units}, counted from 0`, step(-1, "‹ previous"), step(1, "next ›"),
      options.choose && h("button", { onclick: () => options.choose(i) }, "choose this unit")),
    h("h2", nameOf(i, "")), h("p", "trust ", bar(col.trust[i]), ` ${number(col.trust[i])} · held out `, bar(col.held[i]),
      ` ${number(col.held[i])} · p ${number(col.p[i], 3)} · above 0 on ${Math.round(col.active[i] * 100)} % of ` +
      `${net.images.toLocaleString("en")} images`, badge(i)),
    h("h3", "What each method calls it"), h("table", h("tbody", named.map(m => h("tr", h("td", m),
      h("td", h("b", nameOf(i, m))), h("td.n", bar(held(m)), " held out ", number(held(m))))))), slot);
    source.get(`units/${layerOf[i]}/${pad(Math.floor(u / meta.shard))}`).then(some =>
      slot.replaceChildren(...details(i, some[u % meta.shard], net, l)), e => { slot.textContent = e.message; });
  }
  function details(i, d, net, l) {
    const out = [], parts = meta.parts[l.network], name = nameOf(i, ""), partners = h("div.wide");
    const section = (title, ...inside) => out.push(h("h3", title), ...inside);
    const pictures = (title, test) => parts.some(test) && section(title, h("div.wide", d.p.map((n, k) => test(parts[k]) &&
      h("figure", pic(net.sheets, n, `${parts[k]}, activation ${d.v[k]}`, d.w && d.w[k]),
        h("figcaption", parts[k].endsWith("%") ? parts[k] + ": " : "", d.v[k])))));
    if (d.p) {
      pictures("Highest activations" + (d.w ? "; the line surrounds half of the highest value or more" : ""), x => x === "top");
      pictures("Across the range: images above that share of all", part => part.endsWith("%"));
      pictures("Lowest activations", part => part === "lowest");
    }
    section("How its activations are spread", histogram(d.h, name));
    if (d.k.length) out.push(h("p.dim", `${net.main}, best first: ` + d.k.map(([text, x]) => `${text} (${x})`).join(", ")));
    for (const key in d.x) section(key, h("p", d.x[key]));
    section("Units that fire on the same images",
      h("div.wide", d.n.map(([k, u, r]) => card(first[k] + u, "correlation " + number(r)))));
    const mine = matches.filter(pair => pair.includes(layerOf[i]));
    if (mine.length) section("Its partners in other networks", partners);
    for (const pair of mine) source.get("matches/" + pair.join("-")).then(m => {
      const [own, other, k] = pair[0] === layerOf[i] ? [m.a, m.b, pair[1]] : [m.b, m.a, pair[0]];
      const at = own.indexOf(unitOf(i));
      if (at >= 0) partners.append(card(first[k] + other[at], "held out " + number(m.held[at])));
    });
    section("The command that reproduces it", h("pre", net.command));
    section("To cite it", h("pre", `${net.name}, ${l.name}, unit ${unitOf(i)} (counted from 0): “${name}” by ` +
      `${net.cite} ${inPage ? location.href : ""}`));
    return out;
  }
  function histogram(d, name) {
    const n = d.all.length, most = Math.max(...d.all), box = h("svg", { viewBox: "0 0 480 126", style: "max-width:560px" });
    const bars = (counts, fill) => counts.forEach((x, k) => {
      const height = x && 8 + 92 * Math.sqrt(x / most);
      box.append(h("rect", { x: k * 480 / n, width: 480 / n - 1, y: 104 - height, height, fill }));
    });
    bars(d.all, "color-mix(in srgb, var(--fill) 55%, var(--bg))");
    bars(d.label || [], "var(--fill2)");
    box.append(h("text", { x: 0, y: 121 }, number(d.low)), h("text", { x: 480, y: 121, "text-anchor": "end" }, number(d.high)));
    return h("div", box, h("p.dim", "Images by activation, heights by square root" + (d.label ?
      `; orange: the 5 % of images that the image-text model finds most like “${name}”.` : ".")));
  }

  // ---- frame
  const VIEWS = { grid, table, map, compare, unit }, least = h("span");
  function choice(key, some) {
    const onchange = e => go({ [key]: e.target.value });
    return h("select", { onchange }, some.map(([value, text]) => h("option", { value }, text)));
  }
  const tick = key => h("input", { type: "checkbox", onchange: e => go({ [key]: e.target.checked ? 1 : "" }) });
  const typed = (key, more) => h("input", { ...more, oninput: e => go({ [key]: e.target.value }, true) });
  const input = {
    q: typed("q", { type: "search", placeholder: "names, by any method" }),
    layer: choice("layer", [["", "all"], ...networks.flatMap((net, k) => {
      const some = layers.map((l, n) => [l, first[n], first[n] + l.units]).filter(([l]) => l.network === k);
      const whole = [`${some[0][1]}-${some[some.length - 1][2]}`, net.name];
      return [whole, ...some.map(([l, from, to]) => [`${from}-${to}`, `${l.name} (${l.units})`])];
    })]),
    method: choice("method", [["", "the main one"], ...methods.map(m => [m, m])]),
    kind: choice("kind", [["", "all"], ...meta.kinds.filter(k => k).map(k => [k, k])]),
    least: typed("least", { type: "range", min: 0, max: 1, step: .05 }),
    sort: choice("sort", Object.entries(COLUMNS)),
    chance: tick("chance"), dead: tick("dead"),
  };
  const titles = { q: "search ( / )", layer: "layer", method: "method", kind: "kind of name",
    least: [worthName + " at least ", least], sort: "sort by" };
  const filters = h("div.filters", Object.keys(titles).map(key => h("label", titles[key], input[key])),
    h("label", input.chance, " names no better than chance"), h("label", input.dead, " dead and constant units"));
  const tabs = Object.keys(VIEWS).filter(v => v !== "unit" && (v !== "map" || meta.mapped)).map(view =>
    h("button", { "data-view": view, onclick: () => go({ view }) }, view === "grid" ? "pictures" : view));
  root.replaceChildren(h("header", h("h1", meta.title), h("nav", tabs), filters,
    h("details.dim", h("summary", "what the numbers mean"), meta.help)), main);

  function show() {
    for (const key in input)
      if (input[key].type === "checkbox") input[key].checked = !!state[key];
      else if (input[key].value !== String(state[key])) input[key].value = state[key];
    least.textContent = number(+state.least);
    tabs.forEach(el => el.setAttribute("aria-current", el.dataset.view === state.view));
    filters.hidden = state.view === "unit" || state.view === "compare";
    const before = performance.now();
    main.replaceChildren();
    if (!filters.hidden) search();
    VIEWS[state.view]();
    root.dataset.took = (performance.now() - before).toFixed(1);
  }
  function keys(e) {
    const typing = /INPUT|SELECT/.test(e.target.tagName), box = main.querySelector(".grid"), on = state.view === "unit";
    if (e.altKey || e.ctrlKey || e.metaKey) return;
    if (e.key === "/" && !typing) {
      e.preventDefault();
      if (filters.hidden) go({ view: "grid" });
      setTimeout(() => input.q.focus(), 60);
    } else if (e.key === "Escape" && typing) e.target.blur();
    else if (e.key === "Escape" && on) inPage ? history.back() : go({ view: "grid" });
    else if (on) {
      const i = state.unit + { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (layerOf[i] === layerOf[state.unit]) open(i);
    } else if (hits.length && (!typing || e.target === input.q) && (box || state.view === "table")) {
      const across = box ? getComputedStyle(box).gridTemplateColumns.split(" ").length : 1, at = hits.indexOf(picked);
      const d = { ArrowDown: across, ArrowUp: -across, ArrowRight: !typing && 1, ArrowLeft: !typing && -1 }[e.key];
      if (d) {
        e.preventDefault();
        picked = hits[at < 0 ? 0 : Math.max(0, Math.min(Math.min(shown, hits.length) - 1, at + d))];
        main.querySelectorAll("[data-unit]").forEach(el => el.setAttribute("aria-current", +el.dataset.unit === picked));
        main.querySelector("[aria-current=true]").scrollIntoView({ block: "nearest" });
      } else if (e.key === "Enter" && at >= 0 && (typing || e.target === document.body)) open(picked);
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
  return { only: some => { only = some && new Map(some); go({ ...usual }); } };
}

const opened = {  // what a file says, by its folder
  tops: text => unpack(text, Int32Array), units: some => some,
  matches: m => Object.fromEntries(Object.keys(m).map(k => [k, unpack(m[k], "ab".includes(k) ? Int32Array : Float32Array)])),
};
return {
  mount, opened,
  index: meta => mount(document.getElementById("atlas"), meta, files),
  units: (layer, n, some) => deliver(`units/${layer}/${pad(n)}`, some),
  tops: (n, text) => deliver("tops/" + pad(n), opened.tops(text)),
  matches: (a, b, m) => deliver(`matches/${a}-${b}`, opened.matches(m)),
};
})();
