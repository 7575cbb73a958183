// Texts are set as text, never as markup.
var ATLAS = (() => {
const CONSTANT = 1, DEAD = 2, CHANCE = 4;
const COLOURS = "#0173b2 #de8f05 #029e73 #d55e00 #cc78bc #ca9161 #8a8a8a #b8a100 #56b4e9".split(" ");
const pad = n => String(n | 0).padStart(4, "0");
const number = (x, digits = 2) => isFinite(x) ? x.toFixed(digits).replace(/^(-?)0\./, "$1.") : "–";

const unpack = (text, kind) =>
	new kind((Uint8Array.fromBase64?.(text) || Uint8Array.from(atob(text), c => c.charCodeAt(0))).buffer);
const once = make => { let made; return () => made ||= make(); };

function h(tag, ...inside) {  // h("p.dim", {title: "..."}, "text", element)
	const [name, style] = tag.split("."), drawn = /svg|path|rect/.test(name);
	const el = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
	if (style) el.className = style;
	if (inside[0]?.constructor === Object)
		for (const [key, value] of Object.entries(inside.shift()))
			/^on/.test(key) ? el[key] = value : el.setAttribute(key, value);
	el.append(...inside.flat().filter(x => x));
	return el;
}

// classic scripts load from file:// too
const told = {}, asked = {};
const files = {
	get: path => asked[path] ||= new Promise((done, fail) => {
		const onload = () => done(told[path]), onerror = () => fail(Error(path + ".js is not there"));
		document.head.append(h("script", { src: path + ".js", onload, onerror }));
	}),
	sheet: async (network, n) => `sheets/${network}/${pad(n)}.webp`,
};

function mount(root, meta, source, options = {}) {
	const inPage = options.hash !== false, main = h(inPage ? "main" : "div");
	const { layers, networks, methods, words, matches, help, sort, first } = meta, U = first.at(-1);
	const col = { layer: 1 }, codes = {}, orders = {}, layerOf = new Uint16Array(U);
	const numbers = Object.keys(help.columns).slice(2);
	layers.forEach((l, k) => layerOf.fill(k, first[k], first[k + 1]));
	function keep(name, { low, step, codes: text }) {  // read when asked for; code 0 stands for no value
		const kind = meta.wide && /^label/.test(name) ? Uint32Array : Uint16Array;
		const some = codes[name] = once(() => unpack(text, kind));
		col[name] = i => some()[i] ? low + (some()[i] - 1) * step : NaN;
	}
	for (const name in meta.columns) keep(name, meta.columns[name]);
	const sole = networks[1] ? "" : networks[0].main;  // whose columns have no number
	const of = (name, m) => name + (m && m !== sole ? methods.indexOf(m) : ""), by = m => codes[of("label", m)]();
	const each = name => methods.map(m => of(name, m));
	const held = (i, m) => col[of("held", m)](i);
	const odd = unpack(meta.odd, Uint8Array), kindOf = unpack(meta.kindOf, Uint8Array);
	const lower = once(() => words.map(word => " " + word.toLowerCase().replace(/[-_,]/g, " ")));
	const worth = col[sort], worthName = help.columns[sort];
	const usual = { view: "grid", q: "", layer: "", method: "", kind: "", least: 0, chance: 1, dead: "", up: "",
		sort, a: "", b: "", ma: "", mb: "", at: "" }, found = new Uint32Array(U);
	const dark = matchMedia("(prefers-color-scheme: dark)");
	let state = { ...usual }, hits = [], total, picked, only = null, calls;

	const layer = i => layers[layerOf[i]], network = i => networks[layer(i).network];
	const span = (a, b = a) => `${first[a]}-${first[b + 1]}`;
	const unitOf = i => i - first[layerOf[i]];
	const nameOf = (i, method = state.method) => words[by(method)[i]] || "(no name)";
	const place = i => (networks[1] ? network(i).name + " · " : "") + `${layer(i).name} · unit ${unitOf(i)}`;

	function order(name, up) {  // by counting, once a column
		return orders[name + up] ||= (() => {
			const key = codes[name]?.(), all = new Uint32Array(U);
			if (!key) return all.map((_, i) => up ? i : U - 1 - i);
			const last = Math.max(words.length, 65536), start = new Uint32Array(last + 2);
			const rank = x => !x && name !== "label" ? last : up ? x : last - x;
			key.forEach(x => start[rank(x) + 1]++);
			for (let k = 1; k <= last; k++) start[k] += start[k - 1];
			key.forEach((x, i) => all[start[rank(x)]++] = i);
			return all;
		})();
	}
	function search(all) {  // what is seen at first needs no search
		if (!all && !only && hash(state) === "#/grid?") return [hits, total, calls] = [meta.seen, meta.alive];
		const q = state.q.trim().toLowerCase(), has = q && Uint8Array.from(lower(), word => word.includes(" " + q));
		const lists = (state.method ? [state.method] : q ? ["", ...methods] : [""]).map(by);
		const kind = state.kind && meta.kinds.indexOf(state.kind), least = +state.least;
		const [from, to] = (state.layer || "0-" + U).split("-").map(Number);
		const up = !!state.up !== /^(layer|label|p)$/.test(state.sort);
		const hidden = (state.chance ? 0 : CHANCE) | (state.dead ? 0 : DEAD | CONSTANT);
		const some = q && !has.includes(1) ? [] : only ? [...only.keys()] : order(state.sort, up);
		calls = i => q && !has[lists[0][i]] && methods.find(m => has[by(m)[i]]);
		let n = 0;
		for (let at = 0; at < some.length; at++) {
			const i = some[at];
			if (i < from || i >= to || odd[i] & hidden || least > 0 && !(worth(i) >= least)) continue;
			if (kind !== "" && kindOf[lists[0][i]] !== kind) continue;
			if (!q || lists.some(names => has[names[i]])) found[n++] = i;
		}
		hits = found.subarray(0, total = n);
	}

	const address = i =>
		"#/unit/" + [network(i).name, layer(i).name, unitOf(i)].map(encodeURIComponent).join("/");
	function hash(some) {
		const set = Object.keys(usual).filter(key => key !== "view" && some[key] != usual[key]);
		return `#/${some.view}?` + new URLSearchParams(set.map(key => [key, some[key]]));
	}
	function read(text) {
		const [path, query] = text.replace(/^#\/?/, "").split("?"), [view, ...parts] = path.split("/");
		if (view === "unit") {
			const [net, name, unit] = parts.map(part => new URLSearchParams("=" + part).get(""));
			const k = layers.findIndex(l => l.name === name && networks[l.network].name === net);
			const there = /^\d+$/.test(unit) && unit < layers[k]?.units;
			return { ...state, view, asked: parts.join("/"), unit: there ? first[k] + +unit : -1 };
		}
		const asked = { ...usual, ...Object.fromEntries(new URLSearchParams(query)) };
		for (const key of ["method", "ma", "mb"]) if (!methods.includes(asked[key])) asked[key] = "";
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
	const follow = e => { if (!inPage) { e.preventDefault(); go(e.currentTarget.hash); } };
	const link = (href, text) => h("a", { href: href >= 0 ? address(href) : href, onclick: follow }, text);

	const matched = (pair, a) => source.get("matches/" + pair.join("-")).then(m => {
		const rows = m.a.map((u, n) => [first[pair[0]] + u, first[pair[1]] + m.b[n], m.r[n], m.held[n]]);
		return pair[0] === a ? rows : rows.map(([i, j, ...numbers]) => [j, i, ...numbers]);
	});
	function pic(which, n, text = "image", line) {  // line: around where it fires
		const across = meta.across, at = n % across ** 2;
		const style = `--across:${across};--c:${at % across};--r:${at / across | 0}`;
		const drawn = (stroke, width) => h("path", { d: line, stroke, "stroke-width": width });
		const el = h("span.pic", { role: "img", "aria-label": text, style },
			line && h("svg", { viewBox: "0 0 100 100" }, drawn("#000", 4), drawn("#fff", 2)));
		source.sheet(which, n / across ** 2 | 0).then(url => {
			el.style.backgroundImage = `url("${url}")`;
		});
		return el;
	}
	const bar = x => h("span.bar", { style: `background-size:${100 * Math.max(0, x || 0)}% 100%` });
	const barred = x => [bar(x), " " + number(x)];
	function valueOf(name, i, m = "") {
		const x = col[of(name, name === "held" && m)](i);
		return /trust|held/.test(name) ? barred(x) : number(x, name === "p" ? 3 : 2);
	}
	const badge = i => odd[i] && h("span.badge",
		odd[i] & CONSTANT ? "constant" : odd[i] & DEAD ? "dead" : help.fields.chance);
	function also(i) {  // which other method gives the name that was searched
		const m = calls?.(i);
		return m && h("small", ` · “${nameOf(i, m)}” by ${m}`);
	}
	function card(i, text, x = worth(i)) {
		const pics = h("span.pics"), z = only?.get(i), at = i % meta.tops * meta.few;
		const show = few => few.forEach(n => n >= 0 && pics.append(pic(network(i).sheets, n)));
		if (meta.best[i]) show(meta.best[i]);
		else source.get("tops/" + pad(i / meta.tops)).then(few => show(few.slice(at, at + meta.few)), () => 0);
		const line = text ? text + number(x) : z ? z.map(x => number(x ?? NaN, 1)).join(help.deviations)
			: worthName + " " + number(x);
		return h("a.card", { href: address(i), onclick: follow, "data-unit": i }, pics, h("b", nameOf(i)),
			h("div.dim", place(i), also(i)), bar(x), h("small", " ", line), badge(i));
	}
	function list(whole, into, make, step) {
		let shown = 0;
		const more = () => {
			if (shown && hits.length < total) search(1);
			hits.slice(shown, shown += step).forEach(i => into.append(make(i)));
			button.hidden = shown >= total;
			seen.disconnect();
			seen.observe(button);
		}, button = h("button", { onclick: more }, "show more");
		const seen = new IntersectionObserver(([last]) => last.isIntersecting && more());
		main.append(counted(), whole, h("p", button));
		more();
	}
	function tableOf(titles, body) {
		const head = h("thead", h("tr", titles.map(title => h("th", { scope: "col" }, title))));
		return h("div.scroll", { tabindex: 0, role: "region", "aria-label": "table" }, h("table", head, body));
	}
	const counted = () => h("p.dim", { role: "status" },
		`${total} of ${U}`.replace(/\B(?=(\d{3})+\b)/g, ",") + " units", !total && help.none);

	function grid() {
		const box = h("div.grid");
		list(box, box, card, 24);
	}
	function table() {
		const body = h("tbody"), td = x => h("td.n", x);
		const heads = Object.keys(help.columns).map(sort => {
			const own = sort === state.sort, onclick = () => go({ sort, up: own && !state.up ? 1 : "" });
			return h("button", { onclick }, help.columns[sort], own && (state.up ? " ▴" : " ▾"));
		});
		list(tableOf(heads, body), body, i => h("tr", { "data-unit": i }, h("td", link(i, nameOf(i)), also(i), badge(i)),
			td(place(i)), numbers.map(name => td(valueOf(name, i, state.method)))), 50);
	}
	function map() {
		const canvas = h("canvas", { role: "img", "aria-label": help.canvas });
		const tip = h("p.dim", " "), kinds = meta.kinds[1], dpr = devicePixelRatio;
		const group = i => kinds ? kindOf[by(state.method)[i]] : layerOf[i];
		const keys = (kinds ? meta.kinds : layers.map(l => l.name)).flatMap((name, k) =>
			[h("span.key", { style: "background:" + COLOURS[k % 9] }), name || "other"]);
		main.append(counted(), h("p.dim", help.map + worthName + "."), canvas, tip, h("p", keys));
		const [x, y, times] = (state.at + "_0_0").split("_").map(x => +x || 0), off = [x, y], fingers = new Map();
		let zoom = times || .94, moved = 0, later;
		const half = k => canvas[k ? "clientHeight" : "clientWidth"] / 2;
		const where = i => [0, 1].map(k => (1 + (col["xy"[k]](i) + off[k]) * zoom) * half(k));
		const grip = () => {  // middle of one or two fingers, how far apart they are
			const [a, b = a] = fingers.values();
			return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1]) || 1];
		};
		function move(from, to, by) {  // what is at `from` comes to `to`
			const before = zoom;
			zoom = Math.max(.5, Math.min(60, zoom * by));
			for (const k of [0, 1]) off[k] += (to[k] / half(k) - 1) / zoom - (from[k] / half(k) - 1) / before;
			state.at = [...off, zoom].map(x => +x.toFixed(4)).join("_");
			clearTimeout(later);  // who writes too often is slowed down
			later = setTimeout(() => inPage && canvas.isConnected && history.replaceState(null, "", hash(state)), 200);
			paint();
		}
		function paint() {
			const ctx = canvas.getContext("2d"), style = getComputedStyle(root), taken = [];
			canvas.width = 2 * half(0) * dpr;
			canvas.height = 2 * half(1) * dpr;
			ctx.scale(dpr, dpr);
			const base = Math.max(1, Math.min(11, 90 * Math.sqrt(zoom / U)));
			const dot = (i, alpha) => {
				ctx.globalAlpha = alpha;
				ctx.fillStyle = COLOURS[group(i) % 9];
				ctx.beginPath();
				ctx.arc(...where(i), base * (.4 + .8 * Math.max(0, worth(i) || 0)), 0, 7);
				ctx.fill();
			};
			if (hits.length < U) layerOf.forEach((_, i) => dot(i, .1));
			const inside = hits.filter(i => where(i).every((x, k) => x > 0 && x < 2 * half(k)));
			inside.forEach(i => dot(i, .85));
			Object.assign(ctx, { globalAlpha: 1, font: "12px sans-serif", fillStyle: style.color,
				strokeStyle: style.backgroundColor, lineWidth: 3 });
			const best = inside.slice(0, 3000).sort((a, b) => (worth(b) || 0) - (worth(a) || 0));
			for (const i of best) {
				const [at, y] = where(i), text = nameOf(i).slice(0, 40), wide = ctx.measureText(text).width;
				const x = Math.min(at, 2 * half(0) - wide - base);
				if (taken.some(([a, b, w]) => Math.abs(b - y) < 15 && a < x + wide + 9 && x < a + w + 9)) continue;
				taken.push([x, y, wide]);
				ctx.strokeText(text, x + base, y + 4);
				ctx.fillText(text, x + base, y + 4);
			}
		}
		function under(e) {
			let best, least = 18;
			for (const i of hits) {
				const [x, y] = where(i), d = Math.hypot(x - e.offsetX, y - e.offsetY);
				if (d < least) [best, least] = [i, d];
			}
			return best;
		}
		canvas.onpointerdown = e => {
			moved = fingers.size && 9;
			fingers.set(e.pointerId, [e.offsetX, e.offsetY]);
			canvas.setPointerCapture(e.pointerId);
		};
		canvas.onlostpointercapture = e => fingers.delete(e.pointerId);
		canvas.onpointerup = e => {
			const near = under(e);
			if (moved < 5 && near >= 0) open(near);
		};
		canvas.onpointermove = e => {
			if (fingers.has(e.pointerId)) {
				const was = grip(), now = fingers.set(e.pointerId, [e.offsetX, e.offsetY]) && grip();
				moved += Math.hypot(now[0] - was[0], now[1] - was[1]);
				move(was, now, now[2] / was[2]);
			} else {
				const near = under(e);
				tip.textContent = near >= 0 ? `${nameOf(near)}: ${place(near)}` : " ";
			}
		};
		canvas.onwheel = e => {
			const at = [e.offsetX, e.offsetY];
			e.preventDefault();
			move(at, at, Math.exp(-e.deltaY / 400));
		};
		new ResizeObserver(paint).observe(canvas);
		dark.onchange = paint;
	}
	function compare() {
		const a = +state.a, b = +(state.b || a), same = a === b, ma = state.ma || networks[layers[a].network].main;
		const mb = state.mb || methods.find(m => m !== ma) || ma, box = h("div");
		const every = layers.map((l, k) => [k, `${networks[l.network].name} · ${l.name}`]);
		const pick = (text, ...what) => h("label", text, choice(...what));
		const unitsOf = k => Array.from({ length: layers[k].units }, (_, u) => first[k] + u);
		const fill = (text, heads, some, row) => box.append(
			h("p", text, some.length > 300 && help.first), tableOf(heads, h("tbody", some.slice(0, 300).map(row))));
		const two = ["left by " + ma, "right by " + mb];
		const cell = (k, m, other) => h(held(k, m) - other > .01 ? "td.best" : "td",
			!same && [link(k, "unit " + unitOf(k)), " "], nameOf(k, m), " ", h("small", number(held(k, m))));
		const pairs = (some, text) => {
			const mean = (m, k) => number(some.reduce((x, pair) => x + (held(pair[k], m) || 0), 0) / some.length);
			fill(`${some.length} ${text} ${help.means}${mean(ma, 0)}, ${mean(mb, 1)}.`,
				same ? ["unit", ...two] : [...two, "match", "held out"], some, ([i, j, ...numbers]) =>
					h("tr", same && h("td.n", link(i, "unit " + unitOf(i))),
						cell(i, ma, held(j, mb)), cell(j, mb, held(i, ma)), numbers.map(n => h("td.n", number(n)))));
		};
		main.append(h("div.filters", pick("left", "a", every, a), pick("by", "ma", methods, ma),
			pick("right", "b", every, b), pick("by", "mb", methods, mb)), box);
		const pair = matches.find(two => two.includes(a) && two.includes(b));
		if (same) {
			const gap = ([i]) => Math.abs(held(i, ma) - held(i, mb)) || 0, all = unitsOf(a).map(i => [i, i]);
			pairs(all.filter(([i]) => nameOf(i, ma) !== nameOf(i, mb)).sort((p, q) => gap(q) - gap(p)),
				`of ${all.length}${help.differ}`);
		} else if (pair) matched(pair, a).then(some => pairs(some, help.matched));
		else {  // the names of both layers, with how many units have them and the first of these
			const sides = [[a, ma], [b, mb]].map(([k, m]) => Map.groupBy(unitsOf(k), i => nameOf(i, m)));
			const all = [...new Set(sides.flatMap(side => [...side.keys()]))].map(
				name => [name, ...sides.map(side => side.get(name) || [])]);
			const size = ([, x, y]) => x.length * y.length || (x.length + y.length) / 1e9;
			all.sort((p, q) => size(q) - size(p));
			fill(`${all.filter(one => size(one) >= 1).length} of ${all.length}${help.shared}`, ["name", ...two], all, ([name, ...both]) =>
				h("tr", h("td", name), both.map(some => h("td.n", some.length + " ",
					h("small", some.slice(0, 5).flatMap(i => [" ", link(i, unitOf(i) + "")]))))));
		}
	}
	function unit() {
		const i = state.unit;
		if (i < 0)
			return main.append(h("p", `There is no unit ${state.asked} here. `, link("#/grid", "All units")));
		const l = layer(i), net = network(i), u = unitOf(i);
		const slot = h("div", "…");
		const step = (d, text) => layerOf[i + d] === layerOf[i] && link(i + d, text);
		const all = methods.filter(m => words[by(m)[i]]);
		all.sort((m, n) => (held(i, n) || -2) - (held(i, m) || -2));
		main.append(h("p.wide", link(hash({ ...usual, layer: span(layerOf[i]) }), `${net.name} / ${l.name}`),
			`unit ${u} of ${l.units}, counted from 0`, step(-1, "‹ previous"), step(1, "next ›"),
			options.choose && h("button", { onclick: () => options.choose(i) }, "choose this unit")),
		h("h2", nameOf(i, "")),
		h("p.wide", numbers.map(name => h("span", h("small", help.columns[name], " "), valueOf(name, i))), badge(i)),
		h("h3", help.names),
		tableOf([], h("tbody", all.map(m => h("tr", h("td", m),
			h("td", h("b", nameOf(i, m))), h("td.n", barred(held(i, m))))))), slot);
		source.get(`units/${layerOf[i]}/${pad(u / meta.shard)}`).then(
			some => slot.replaceChildren(...details(i, some[u % meta.shard], net, l)),
			e => slot.replaceChildren(e.message));
	}
	function details(i, d, net, l) {
		const out = [], parts = meta.parts[l.network], name = nameOf(i, "");
		const section = (title, ...inside) => out.push(h("h3", title), ...inside);
		const figure = (part, k) => h("figure",
			pic(net.sheets, d.p[k], `${part}, activation ${d.v[k]}`, d.w?.[k]),
			h("figcaption", /%/.test(part) && part + ": ", d.v[k] + ""));
		const pictures = (title, kind) => parts.some(part => kind.test(part)) &&
			section(title, h("div.wide", parts.map((part, k) => kind.test(part) && figure(part, k))));
		for (const key in d.x) section(key, h(d.x[key].src ? "img" : "p", d.x[key]));
		if (d.p) {
			pictures(help.top + (d.w ? help.line : ""), /top/);
			pictures(help.range, /%/);
			pictures(help.low, /lowest/);
		}
		section(help.how, histogram(d.h, name));
		const best = d.k.map(([text, x]) => `${text} (${x})`).join(", ");
		if (best) out.push(h("p.dim", `${net.main}, best first: ${best}`));
		const alike = (title, some, text) => some?.[0] && section(title,
			h("div.grid", some.map(([k, u, r]) => card(first[k] + u, text, r))));
		alike(help.firing, d.n, "correlation ");
		const partners = h("section", { hidden: "" }, h("h3", help.partners), h("div.grid"));
		out.push(partners);
		for (const pair of matches) if (pair.includes(layerOf[i])) matched(pair, layerOf[i]).then(rows => {
			const row = rows.find(([k]) => k === i);
			if (!row) return;
			partners.hidden = false;
			partners.lastChild.append(card(row[1], "held out ", row[3]));
		});
		alike(help.alike, d.m, "cosine ");
		section(help.command, h("pre", net.command));
		section(help.cite, h("pre", `${net.name}, ${l.name}, unit ${unitOf(i)} (counted from 0): ` +
			`“${name}” by ${net.cite} ${inPage ? location.href : ""}`));
		return out;
	}
	function histogram(d, name) {
		const n = d.all.length, most = Math.max(...d.all), box = h("svg", { viewBox: "0 0 480 104" });
		const bars = (counts, fill) => counts.forEach((x, k) => {
			const height = x && 8 + 92 * Math.sqrt(x / most);
			box.append(h("rect", { x: k * 480 / n, width: 480 / n - 1, y: 104 - height, height, fill }));
		});
		bars(d.all, "var(--fill)");
		bars(d.label || [], "var(--fill2)");
		return h("div", box, h("p.dim", `${help.spread}${number(d.low)} to ${number(d.high)}.`,
			d.label && help.like + `“${name}”.`));
	}

	const VIEWS = { __proto__: null, grid, table, ...meta.mapped && { map }, compare, unit }, least = h("span");
	const NEEDS = { table: numbers, map: ["x", "y"], unit: numbers };
	function choice(key, some, chosen = "") {
		const onchange = e => go({ [key]: e.target.value });
		const each = some.map(one => [one].flat()).map(([value, text = value]) => h("option", { value }, text));
		return Object.assign(h("select", { onchange }, each), { value: chosen });
	}
	const tick = key => h("input", { type: "checkbox", onchange: e => go({ [key]: +e.target.checked || "" }) });
	const typed = (key, more) => h("input", { ...more, oninput: e => go({ [key]: e.target.value }, true) });
	const input = {
		q: typed("q", { type: "search", placeholder: help.search }),
		layer: choice("layer", [["", "all"], ...networks.flatMap((net, k) => {
			const some = [...layers.keys()].filter(n => layers[n].network === k);
			const each = some.map(n => [span(n), `${layers[n].name} (${layers[n].units})`]);
			return [[span(some[0], some.at(-1)), net.name], ...each];
		})]),
		method: choice("method", [["", "the main one"], ...methods]),
		kind: choice("kind", [["", "all"], ...meta.kinds.filter(k => k)]),
		least: typed("least", { type: "range", min: 0, max: 1, step: .05 }),
		sort: choice("sort", Object.entries(help.columns)),
		chance: tick("chance"), dead: tick("dead"),
	};
	const filters = h("div.filters", Object.keys(input).map(key => {
		const title = key === "least" ? [worthName + " at least ", least] : help.fields[key];
		return h("label", ...input[key].type === "checkbox" ? [input[key], " ", title] : [title, input[key]]);
	}));
	const tabs = Object.keys(VIEWS).slice(0, -1).map(view =>
		h("button", { "data-view": view, onclick: () => go({ view, at: "" }) }, view === "grid" ? "pictures" : view));
	root.replaceChildren(h("header", h("h1", meta.title), h("nav", { "aria-label": meta.title }, tabs), filters,
		h("details.dim", h("summary", help.summary), help.numbers)), main);

	function show() {
		for (const key in input) Object.assign(input[key], { value: state[key], checked: !!state[key] });
		least.textContent = number(+state.least);
		tabs.forEach(el => el.ariaCurrent = el.dataset.view === state.view);
		filters.hidden = /unit|compare/.test(state.view);
		main.replaceChildren();
		const names = [...NEEDS[state.view] || [], ...filters.hidden ? [...each("label"), ...each("held")]
			: [state.sort, ...state.q ? each("label") : [of("label", state.method)]]];
		if (state.view === "table") names.push(of("held", state.method));
		const absent = names.filter(name => !col[name]);
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
		const box = main.querySelector(".grid"), some = [...main.querySelectorAll("[data-unit]")];
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
		} else if (some[0] && (!typing || e.target === input.q)) {
			const across = box ? getComputedStyle(box).gridTemplateColumns.split(" ").length : 1;
			const at = some.findIndex(el => +el.dataset.unit === picked), aside = +!typing;
			const d = { ArrowDown: across, ArrowUp: -across, ArrowRight: aside, ArrowLeft: -aside }[e.key];
			if (d) {
				const to = some[at < 0 ? 0 : Math.max(0, Math.min(some.length - 1, at + d))];
				e.preventDefault();
				some.forEach(el => el.ariaCurrent = el === to);
				picked = +to.dataset.unit;
				to.scrollIntoView({ block: "nearest" });
			} else if (e.key === "Enter" && at >= 0 && (typing || e.target === document.body)) open(picked);
		}
	}
	(inPage ? document : root).onkeydown = keys;
	if (inPage) {
		document.title = meta.title;
		onhashchange = () => { state = read(location.hash); show(); scrollTo(0, 0); };
		state = read(location.hash);
	}
	show();
	return { show, only: some => { only = some && new Map(some.map(([i, ...z]) => [i, z])); go(usual); } };
}

const opened = (path, content) => /^tops/.test(path) ? unpack(content, Int32Array) : content;
return {
	mount, opened,
	index: meta => mount(document.body, meta, files),
	file: (path, content) => { told[path] = opened(path, content); },
};
})();
