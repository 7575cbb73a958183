// One renderer for the site and the explorer in JupyterLab. Texts are set as text, never as markup.
var ATLAS = (() => {
const CONSTANT = 1, DEAD = 2, CHANCE = 4;
const COLOURS = "#0173b2 #de8f05 #029e73 #d55e00 #cc78bc #ca9161 #8a8a8a #b8a100 #56b4e9".split(" ");
const SVG = "http://www.w3.org/2000/svg";
const pad = n => String(n).padStart(4, "0");
const number = (x, digits = 2) => Number.isFinite(x) ? x.toFixed(digits).replace(/^(-?)0\./, "$1.") : "–";
const many = n => n.toLocaleString("en");

function unpack(text, kind) {
	return new kind((Uint8Array.fromBase64?.(text) || Uint8Array.from(atob(text), c => c.charCodeAt(0))).buffer);
}

function h(tag, ...inside) {  // h("p.dim", {title: "..."}, "text", element, [more])
	const [name, style] = tag.split("."), drawn = /^(svg|path|rect|text)$/.test(name);
	const el = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
	if (style) el.className = style;
	if (inside[0]?.constructor === Object)
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
	const inPage = options.hash !== false, main = h("main");
	const { layers, networks, methods, words, matches, help } = meta;
	const first = [], col = {}, codes = {}, by = { __proto__: null }, orders = {};
	const U = layers.reduce((n, l) => (first.push(n), n + l.units), 0), layerOf = new Uint16Array(U);
	layers.forEach((l, k) => layerOf.fill(k, first[k], first[k] + l.units));
	const labels = text => unpack(text, meta.wide ? Uint32Array : Uint16Array);
	function keep(name, { low, step, codes: text }) {  // code 0 stands for no value
		const some = codes[name] = text ? unpack(text, Uint16Array) : new Uint16Array(U);
		col[name] = Float32Array.from(some, c => c ? low + (c - 1) * step : NaN);
	}
	for (const name in meta.columns) keep(name, meta.columns[name]);
	if (!col.trust) keep("trust", {});
	methods.forEach((m, k) => by[m] = labels(meta.labels[k]));
	by[""] = labels(meta.labels[0]);  // of each network its main method's
	layers.forEach((l, k) =>
		by[""].set(by[networks[l.network].main].subarray(first[k], first[k] + l.units), first[k]));
	const heldBy = m => "held" + (m && methods.indexOf(m)), held = (i, m) => col[heldBy(m)][i];
	const odd = unpack(meta.odd, Uint8Array), kindOf = unpack(meta.kindOf, Uint8Array);
	const lower = words.map(word => " " + word.toLowerCase().replace(/[-_,]/g, " "));
	const trusted = meta.columns.trust, worth = trusted ? col.trust : col.held, found = new Uint32Array(U);
	const worthName = trusted ? "trust" : "held out";
	const usual = { view: "grid", q: "", layer: "", method: "", kind: "", least: 0, chance: 1, dead: "", up: "",
		sort: trusted ? "trust" : "held", a: "", b: "", ma: "", mb: "" };
	let state = { ...usual }, hits = [], picked = -1, shown = 0, only = null, calls;

	const layer = i => layers[layerOf[i]], network = i => networks[layer(i).network];
	const span = (a, b = a) => `${first[a]}-${first[b] + layers[b].units}`;
	const unitOf = i => i - first[layerOf[i]];
	const nameOf = (i, method = state.method) => words[by[method][i]] || "(no name)";
	const place = i => (networks[1] ? network(i).name + " · " : "") + `${layer(i).name} · unit ${unitOf(i)}`;

	function order(name, up) {  // made once for each column, by counting, so that a search is one walk
		return orders[name + up] ||= (() => {
			const key = name === "label" ? by[""] : codes[name], all = new Uint32Array(U);
			if (!key) return all.map((_, i) => up ? i : U - 1 - i);
			const last = Math.max(words.length, 65536), start = new Uint32Array(last + 2);
			const rank = x => !x && name !== "label" ? last : up ? x : last - x;
			for (let i = 0; i < U; i++) start[rank(key[i]) + 1]++;
			for (let k = 1; k <= last; k++) start[k] += start[k - 1];
			for (let i = 0; i < U; i++) all[start[rank(key[i])]++] = i;
			return all;
		})();
	}
	function search() {
		const q = state.q.trim().toLowerCase(), has = q && Uint8Array.from(lower, word => word.includes(" " + q));
		const lists = (state.method ? [state.method] : ["", ...methods]).map(m => by[m]);
		const kind = state.kind && meta.kinds.indexOf(state.kind), least = +state.least;
		const [from, to] = state.layer ? state.layer.split("-").map(Number) : [0, U];
		const up = !!state.up !== ["layer", "label", "p"].includes(state.sort);
		const hidden = (state.chance ? 0 : CHANCE) | (state.dead ? 0 : DEAD | CONSTANT);
		const all = q && !has.includes(1) ? [] : only ? only.keys() : order(state.sort, up);
		calls = i => q && !has[lists[0][i]] && methods.find(m => has[by[m][i]]);
		let n = 0;
		for (const i of all) {
			if (i < from || i >= to || odd[i] & hidden || least > 0 && !(worth[i] >= least)) continue;
			if (kind !== "" && kindOf[lists[0][i]] !== kind) continue;
			let k = 0;
			if (q) while (k < lists.length && !has[lists[k][i]]) k++;
			if (k < lists.length) found[n++] = i;
		}
		hits = found.subarray(0, n);
	}

	// addresses: every view and unit has one
	const address = i =>
		"#/unit/" + [network(i).name, layer(i).name, unitOf(i)].map(encodeURIComponent).join("/");
	function hash(some) {
		const set = Object.keys(usual).filter(key => key !== "view" && String(some[key]) !== String(usual[key]));
		return `#/${some.view}?` + new URLSearchParams(set.map(key => [key, some[key]]));
	}
	function read(text) {
		const [path, query] = text.replace(/^#\/?/, "").split("?"), [view, ...parts] = path.split("/");
		if (view === "unit") {
			const [net, name, unit] = parts.map(part => {
				try { return decodeURIComponent(part); } catch { return part; }
			});
			const k = layers.findIndex(l => l.name === name && networks[l.network].name === net);
			const there = k >= 0 && /^\d+$/.test(unit) && unit < layers[k].units;
			return { ...state, view, asked: parts.join("/"), unit: there ? first[k] + +unit : -1 };
		}
		const asked = { ...usual, ...Object.fromEntries(new URLSearchParams(query)) };
		for (const key of ["method", "ma", "mb"]) if (!by[asked[key]]) asked[key] = "";
		for (const key of "ab") if (!layers[+asked[key]]) asked[key] = "";
		if (!help.columns[asked.sort]) asked.sort = usual.sort;
		return { ...asked, view: VIEWS[view] ? view : "grid" };
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

	const matched = pair => source.get("matches/" + pair.join("-"));
	function pic(which, n, text = "image", line = "") {  // line: around where the unit fires
		const { across } = meta.sheet, at = n % across ** 2;
		const style = `--across:${across};--c:${at % across};--r:${Math.floor(at / across)}`;
		const drawn = (stroke, width) => h("path", { d: line, stroke, "stroke-width": width });
		const el = h("span.pic", { role: "img", "aria-label": text, title: text, style },
			line && h("svg", { viewBox: "0 0 100 100" }, drawn("#000", 4), drawn("#fff", 2)));
		source.sheet(which, Math.floor(n / across ** 2)).then(url => {
			el.style.backgroundImage = `url("${url}")`;
		});
		return el;
	}
	const bar = x => h("span.bar", h("i", { style: `width:${Math.max(0, Math.min(1, x || 0)) * 100}%` }));
	const barred = x => [bar(x), " " + number(x)];
	function badge(i) {
		const o = odd[i];
		return o > 0 && h("span.badge", o & CONSTANT ? "constant" : o & DEAD ? "dead" : "no better than chance");
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
		const told = text || (z ? number(z, 1) + " deviations" : `${worthName} ${number(worth[i])}`);
		return h("a.card", { href: address(i), onclick: follow, "data-unit": i }, pics, h("b", nameOf(i)),
			h("div.dim", place(i), also(i)), bar(worth[i]), h("small", " ", told), badge(i));
	}
	function list(into, make, step) {
		const more = () => {
			into.append(...Array.from(hits.slice(shown, shown += step), i => make(i)));
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
		return h("p.dim", { role: "status" }, `${many(hits.length)} of ${many(U)} units${few}`);
	}

	function grid() {
		const box = h("div.grid");
		main.append(counted(), box);
		list(box, card, 60);
	}
	function table() {
		const body = h("tbody"), td = (...x) => h("td.n", ...x);
		const heads = Object.keys(help.columns).map(sort => {
			const own = sort === state.sort, onclick = () => go({ sort, up: own && !state.up ? 1 : "" });
			return h("button", { onclick }, help.columns[sort], own && (state.up ? " ▴" : " ▾"));
		});
		main.append(counted(), tableOf(heads, body));
		list(body, i => h("tr", { "data-unit": i }, h("td", link(i, place(i))),
			h("td", nameOf(i), also(i), badge(i)), td(barred(col.trust[i])), td(barred(held(i, state.method))),
			...[col.score, col.agree, col.p, col.active].map(x => td(number(x[i], x === col.p ? 3 : 2)))), 100);
	}
	function map() {
		const canvas = h("canvas", { role: "img", "aria-label": "map of all units; the table has them as text" });
		const tip = h("p.dim", { role: "status" }, " "), kinds = meta.kinds[1], dpr = devicePixelRatio || 1;
		const colour = k => COLOURS[k % COLOURS.length];
		const group = i => kinds ? kindOf[by[state.method][i]] : layerOf[i];
		const keys = (kinds ? meta.kinds : layers.map(l => l.name)).flatMap((name, k) =>
			[h("span.key", { style: "background:" + colour(k) }), name || "other"]);
		main.append(counted(), h("p.dim", `${help.map} Size: ${worthName}, colour: ${kinds ? "kind of name" : "layer"}.`), canvas, tip, h("p", keys));
		let zoom = .94, ox = 0, oy = 0, near = -1, from = null, moved = 0;
		const middle = (x, size) => (1 + x * zoom) * canvas["client" + size] / 2;
		const where = i => [middle(col.x[i] + ox, "Width"), middle(col.y[i] + oy, "Height")];
		function paint() {
			const ctx = canvas.getContext("2d"), style = getComputedStyle(root), taken = new Set();
			canvas.width = canvas.clientWidth * dpr;
			canvas.height = canvas.clientHeight * dpr;
			ctx.scale(dpr, dpr);
			const base = Math.max(1, Math.min(11, 90 * Math.sqrt(zoom / U)));
			const dot = (i, alpha) => {
				ctx.globalAlpha = alpha;
				ctx.fillStyle = colour(group(i));
				ctx.beginPath();
				ctx.arc(...where(i), base * (.4 + .8 * Math.max(0, worth[i] || 0)), 0, 7);
				ctx.fill();
			};
			if (hits.length < U) layerOf.forEach((_, i) => dot(i, .1));
			hits.forEach(i => dot(i, .85));
			Object.assign(ctx, { globalAlpha: 1, font: "12px system-ui, sans-serif", fillStyle: style.color,
				strokeStyle: style.backgroundColor, lineWidth: 3 });
			const best = [...hits.subarray(0, 3000)].sort((a, b) => (worth[b] || 0) - (worth[a] || 0));
			if (near >= 0) best.unshift(near);
			for (const i of best) {
				const [x, y] = where(i), text = nameOf(i), length = Math.ceil(ctx.measureText(text).width / 12) + 2;
				const cells = Array.from({ length: 3 * length },
					(_, k) => [Math.floor(x / 12) + k % length, Math.floor(y / 6) + Math.floor(k / length)] + "");
				if (cells.some(cell => taken.has(cell))) continue;
				cells.forEach(cell => taken.add(cell));
				ctx.strokeText(text, x + base, y + 4);
				ctx.fillText(text, x + base, y + 4);
			}
		}
		function under(e) {
			let best = -1, least = 18 ** 2;
			for (const i of hits) {
				const [x, y] = where(i), d = (x - e.offsetX) ** 2 + (y - e.offsetY) ** 2;
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
		canvas.onwheel = e => {
			e.preventDefault();
			zoom = Math.max(.5, Math.min(60, zoom * Math.exp(-e.deltaY / 400)));
			paint();
		};
		requestAnimationFrame(paint);
	}
	function compare() {
		const a = +state.a, b = +(state.b || a), ma = state.ma || networks[layers[a].network].main;
		const mb = state.mb || methods.find(m => m !== ma) || ma, rows = h("tbody");
		const every = layers.map((l, k) => [k, `${networks[l.network].name} · ${l.name}`]);
		const pick = (text, ...what) => h("label", text, " ", choice(...what)), box = h("div");
		const fill = (pairs, text) => {
			const sum = (m, k) => pairs.reduce((x, pair) => x + (held(pair[k], m) || 0), 0);
			const means = [sum(ma, 0), sum(mb, 1)].map(x => number(x / pairs.length)).join(", ");
			box.append(h("p", `${pairs.length} ${text} Mean held-out correlation of these: ${means}.`),
				tableOf(["left", "right", ma, mb, ...pair && a !== b ? ["match", "held out"] : []], rows));
			rows.append(...pairs.slice(0, 300).map(([i, j, ...numbers]) => {
				const x = held(i, ma), y = held(j, mb), cell = (k, m, mine, better) =>
					h(better ? "td.better" : "td", nameOf(k, m), " ", h("small", number(mine)));
				return h("tr", [i, j].map(k => h("td", link(k, place(k)))), cell(i, ma, x, x > y),
					cell(j, mb, y, y > x), numbers.map(n => h("td.n", number(n))));
			}));
		};
		main.append(h("p.wide", pick("left", "a", every, a), pick("by", "ma", named, ma),
			pick("right", "b", every, b), pick("by", "mb", named, mb)), box);
		const pair = matches.find(two => two.includes(a) && two.includes(b));
		if (a === b) {
			const gap = ([i]) => Math.abs(held(i, ma) - held(i, mb)) || 0;
			const all = Array.from({ length: layers[a].units }, (_, u) => [first[a] + u, first[a] + u]);
			fill(all.filter(([i]) => by[ma][i] !== by[mb][i]).sort((p, q) => gap(q) - gap(p)),
				`of ${all.length} units have another name, the largest difference first.`);
		} else if (!pair) box.append(h("p", help.unmatched));
		else matched(pair).then(m => {
			const [left, right] = pair[0] === a ? [m.a, m.b] : [m.b, m.a];
			fill(Array.from(left, (u, k) => [first[a] + u, first[b] + right[k], m.r[k], m.held[k]]),
				help.matched);
		});
	}
	function unit() {
		const i = state.unit;
		if (!(i >= 0))
			return main.append(h("p", `There is no unit ${state.asked} here. `, link("#/grid", "All units")));
		const l = layer(i), net = network(i), u = unitOf(i);
		const slot = h("div", "…");
		const step = (d, text) => layerOf[i + d] === layerOf[i] && link(i + d, text);
		const all = methods.filter(m => words[by[m][i]]);
		all.sort((m, n) => (held(i, n) || -2) - (held(i, m) || -2));
		main.append(h("p.wide", link(hash({ ...usual, layer: span(layerOf[i]) }), `${net.name} / ${l.name}`),
			`unit ${u} of ${l.units}, counted from 0`, step(-1, "‹ previous"), step(1, "next ›"),
			options.choose && h("button", { onclick: () => options.choose(i) }, "choose this unit")),
		h("h2", nameOf(i, "")), h("p", "trust ", barred(col.trust[i]), " · held out ", barred(col.held[i]),
			` · p ${number(col.p[i], 3)} · above 0 on ${Math.round(col.active[i] * 100)} % of ` +
			`${many(net.images)} images`, badge(i)),
		h("h3", "Names by each method, with held-out correlation"),
		tableOf([], h("tbody", all.map(m => h("tr", h("td", m),
			h("td", h("b", nameOf(i, m))), h("td.n", barred(held(i, m))))))), slot);
		source.get(`units/${layerOf[i]}/${pad(Math.floor(u / meta.shard))}`).then(
			some => slot.replaceChildren(...details(i, some[u % meta.shard], net, l)),
			e => { slot.textContent = e.message; });
	}
	function details(i, d, net, l) {
		const out = [], parts = meta.parts[l.network], name = nameOf(i, "");
		const section = (title, ...inside) => out.push(h("h3", title), ...inside);
		const figure = (part, k) => h("figure",
			pic(net.sheets, d.p[k], `${part}, activation ${d.v[k]}`, d.w?.[k]),
			h("figcaption", part.endsWith("%") && part + ": ", d.v[k]));
		const pictures = (title, test) => parts.some(test) &&
			section(title, h("div.wide", parts.map((part, k) => test(part) && figure(part, k))));
		for (const key in d.x) section(key, h(d.x[key].src ? "img" : "p", d.x[key]));
		if (d.p) {
			pictures("Highest activations" + (d.w ? help.line : ""), part => part === "top");
			pictures(help.range, part => part.endsWith("%"));
			pictures("Lowest activations", part => part === "lowest");
		}
		section("How its activations are spread", histogram(d.h, name));
		const best = d.k.map(([text, x]) => `${text} (${x})`).join(", ");
		if (best) out.push(h("p.dim", `${net.main}, best first: ${best}`));
		section("Units that fire on the same images",
			h("div.wide", d.n.map(([k, u, r]) => card(first[k] + u, "correlation " + number(r)))));
		const partners = h("section", { hidden: "" }, h("h3", "Its partners in other networks"), h("div.wide"));
		out.push(partners);
		for (const pair of matches) if (pair.includes(layerOf[i])) matched(pair).then(m => {
			const [own, other, k] = pair[0] === layerOf[i] ? [m.a, m.b, pair[1]] : [m.b, m.a, pair[0]];
			const at = own.indexOf(unitOf(i));
			if (at < 0) return;
			partners.hidden = false;
			partners.lastChild.append(card(first[k] + other[at], "held out " + number(m.held[at])));
		});
		section("The command that reproduces it", h("pre", net.command));
		section("To cite it", h("pre", `${net.name}, ${l.name}, unit ${unitOf(i)} (counted from 0): ` +
			`“${name}” by ${net.cite} ${inPage ? location.href : ""}`));
		return out;
	}
	function histogram(d, name) {
		const n = d.all.length, most = Math.max(...d.all), box = h("svg", { viewBox: "0 0 480 126" });
		const text = (x, value, anchor) => h("text", { x, y: 121, "text-anchor": anchor }, number(value));
		const bars = (counts, fill) => counts.forEach((x, k) => {
			const height = x && 8 + 92 * Math.sqrt(x / most);
			box.append(h("rect", { x: k * 480 / n, width: 480 / n - 1, y: 104 - height, height, fill }));
		});
		bars(d.all, "color-mix(in srgb, var(--fill) 55%, var(--bg))");
		bars(d.label || [], "var(--fill2)");
		box.append(text(0, d.low, "start"), text(480, d.high, "end"));
		return h("div", box, h("p.dim", help.spread + (d.label ? help.like + `“${name}”.` : "")));
	}

	const VIEWS = { __proto__: null, grid, table, ...meta.mapped && { map }, compare, unit }, least = h("span");
	const NEEDS = { table: ["score", "agree", "p", "active"], map: ["x", "y"], unit: ["p", "active"] };
	const named = methods.map(m => [m, m]);
	function choice(key, some, chosen = "") {
		const onchange = e => go({ [key]: e.target.value });
		const el = h("select", { onchange }, some.map(([value, text]) => h("option", { value }, text)));
		el.value = chosen;
		return el;
	}
	const tick = key => h("input", { type: "checkbox",
		onchange: e => go({ [key]: e.target.checked ? 1 : "" }) });
	const typed = (key, more) => h("input", { ...more, oninput: e => go({ [key]: e.target.value }, true) });
	const input = {
		q: typed("q", { type: "search", placeholder: "names, by any method" }),
		layer: choice("layer", [["", "all"], ...networks.flatMap((net, k) => {
			const some = [...layers.keys()].filter(n => layers[n].network === k);
			const each = some.map(n => [span(n), `${layers[n].name} (${layers[n].units})`]);
			return [[span(some[0], some.at(-1)), net.name], ...each];
		})]),
		method: choice("method", [["", "the main one"], ...named]),
		kind: choice("kind", [["", "all"], ...meta.kinds.filter(k => k).map(k => [k, k])]),
		least: typed("least", { type: "range", min: 0, max: 1, step: .05 }),
		sort: choice("sort", Object.entries(help.columns)),
		chance: tick("chance"), dead: tick("dead"),
	};
	const titles = { q: "search ( / )", layer: "layer", method: "method", kind: "kind of name",
		least: [worthName + " at least ", least], sort: "sort by" };
	const filters = h("div.filters", Object.keys(titles).map(key => h("label", titles[key], input[key])),
		h("label", input.chance, " names no better than chance"),
		h("label", input.dead, " dead and constant units"));
	const tabs = Object.keys(VIEWS).slice(0, -1).map(view =>
		h("button", { "data-view": view, onclick: () => go({ view }) }, view === "grid" ? "pictures" : view));
	root.replaceChildren(h("header", h("h1", meta.title), h("nav", tabs), filters,
		h("details.dim", h("summary", "what the numbers mean"), help.numbers)), main);

	function show() {
		for (const key in input)
			if (input[key].type === "checkbox") input[key].checked = !!state[key];
			else if (input[key].value !== String(state[key])) input[key].value = state[key];
		least.textContent = number(+state.least);
		tabs.forEach(el => el.setAttribute("aria-current", el.dataset.view === state.view));
		filters.hidden = state.view === "unit" || state.view === "compare";
		main.replaceChildren();
		const names = [...NEEDS[state.view] || [], ...filters.hidden ? methods.map(heldBy)
			: [state.sort, heldBy(state.method)]];
		const absent = names.filter(name => !col[name] && !["layer", "label"].includes(name));
		if (absent[0]) {
			const asked = state, load = name => source.get("columns/" + name).then(c => keep(name, c));
			main.append("loading …");
			return Promise.all(absent.map(load)).then(() => state === asked && show(),
				e => main.append(h("p", e.message)));
		}
		if (!filters.hidden) search();
		VIEWS[state.view]();
	}
	function keys(e) {
		const typing = /INPUT|SELECT/.test(e.target.tagName), on = state.view === "unit";
		const box = main.querySelector(".grid");
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
			const across = box ? getComputedStyle(box).gridTemplateColumns.split(" ").length : 1;
			const at = hits.indexOf(picked), aside = typing ? 0 : 1;
			const d = { ArrowDown: across, ArrowUp: -across, ArrowRight: aside, ArrowLeft: -aside }[e.key];
			if (d) {
				e.preventDefault();
				picked = hits[at < 0 ? 0 : Math.max(0, Math.min(shown - 1, hits.length - 1, at + d))];
				for (const el of main.querySelectorAll("[data-unit]"))
					el.setAttribute("aria-current", +el.dataset.unit === picked);
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
	return { only: some => { only = some && new Map(some); go({ ...usual }); } };
}

const opened = {  // what a file says, by its folder
	tops: text => unpack(text, Int32Array), units: some => some, columns: some => some,
	matches: m => Object.fromEntries(Object.entries(m).map(([key, text]) =>
		[key, unpack(text, "ab".includes(key) ? Int32Array : Float32Array)])),
};
return {
	mount, opened,
	index: meta => mount(document.getElementById("atlas"), meta, files),
	units: (layer, n, some) => deliver(`units/${layer}/${pad(n)}`, some),
	tops: (n, text) => deliver("tops/" + pad(n), opened.tops(text)),
	columns: (name, some) => deliver("columns/" + name, some),
	matches: (a, b, m) => deliver(`matches/${a}-${b}`, opened.matches(m)),
};
})();
