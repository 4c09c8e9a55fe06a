// Asks the law of the fit: LAWS holds functions made from its Python, #x-data the draws.
const data = JSON.parse(document.getElementById("x-data").textContent);
const n = data.draws, POINTS = 100, FACTOR = 4;
const by = (id) => document.getElementById(id);
const UNIT = { rate_rps: "requests/s", concurrency: "requests in flight" };
const withUnit = (x, axis) => `${said(x)} ${said(x) === "1" ? UNIT[axis].replace("requests", "request") : UNIT[axis]}`;
const METRIC = { e2e: "Mean latency, s", ttft: "Mean time to first token, s", tpot: "Mean time per output token, s" };
const TOKENS = [["prompt_tokens", "p", "prompts"], ["output_tokens", "g", "answers"]];
const PLACE = { e2e: 0, ttft: 1, tpot: 2, c2: 3 };
const QUANTILES = [0.05, 0.5, 0.95];

// Columns of draws; a quantity that does not vary is one number.
const all = new Float64Array(Uint8Array.from(atob(data.columns), (c) => c.charCodeAt(0)).buffer);
let next = 0;
data.systems.flatMap((s) => [s.plain, ...s.pairs.flatMap((p) => Object.values(p.servers))]).forEach((server, i) => { server.place = i; });
const columns = data.numbers.map((x) => x === null ? all.subarray(next * n, ++next * n) : new Float64Array(n).fill(x));

// What nobody measured: known models by their sizes, machines by their data sheets.
const fresh = data.new, COSTS = fresh.costs;
const systems = new Map(data.systems.map((s) => [s.name, s]));
const models = new Map(fresh.models.map((m) => [m.name, m]));
const machines = new Map(fresh.machines.map((m) => [m.name, m]));
const memory = new Map();
/** What a function gives, made once for each key. */
const once = (key, make) => { if (!memory.has(key)) memory.set(key, make()); return memory.get(key); };
function crc32(text) {
  let c = -1;
  for (const byte of new TextEncoder().encode(text)) {
    c ^= byte;
    for (let bit = 0; bit < 8; bit++) c = (c >>> 1) ^ (c & 1 ? 0xedb88320 : 0);
  }
  return ~c;
}
/** Standard normals of one named new thing, as `new_one` in Python. */
function newOne(label, effect) {
  const start = crc32(`0 ${effect} ${label}`);
  const keys = Uint32Array.from({ length: n }, (_, i) => {
    let x = (Math.imul(i, 0x9e3779b9) + start) | 0;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return x ^ (x >>> 16);
  });
  return [...keys.keys()].sort((a, b) => keys[a] - keys[b]).map((at) => columns[fresh.normal][at]);
}
/** Of a new machine, whose coefficients go together. */
function together(label, effect) {
  const z = new Float64Array(n);
  fresh.correlated[effect].forEach((root, other) => { if (root) newOne(label, other).forEach((x, i) => { z[i] += root * x; }); });
  return z;
}
/** Factors of a new member of a level, as `Posterior.factors`; `family` counts in effects of experts. */
const factors = (level, label, family = 0) => once(`${level} ${label} ${family}`, () => fresh.scatter[level].map((scatter, effect) => {
  const z = level === "environment" ? together(label, effect) : newOne(label, effect), moe = family ? columns[fresh.moe[effect]] : null;
  return Float64Array.from(z, (x, i) => Math.exp(columns[scatter][i] * x + (moe ? family * moe[i] : 0)));
}));
/** Where a server runs that nobody measured there: numbers of a machine, and the law's terms on it. */
function site(state) {
  const sheet = machines.get(state.w), here = sheet || fresh.places[Number(state.w.slice(1))] || fresh.places[0], count = sheet ? state.n : 1;
  const terms = once(`law ${here.label}`, () => {
    const own = here.factors ? here.factors.map((place) => columns[place]) : factors("environment", here.label);
    return Object.fromEntries(fresh.law.map(([name, place], i) => [name, own[i] ? columns[place].map((x, j) => x * own[i][j]) : columns[place]]));
  });
  const sizes = (bytes, k) => ({ dies: here.dies * count, gb_per_s: here.gb_per_s * count, captured: (sheet ? fresh.captured : here.captured)[k],
    tflops: sheet ? sheet.tflops[fresh.bits.indexOf(8 * bytes)] * count : here.tflops });
  return { terms, sizes, name: sheet ? (count > 1 ? `${count}x ${sheet.name}` : sheet.name) : here.name, gb: sheet && sheet.memory_gb * count };
}
const named = (kind, values) => Object.fromEntries(COSTS[kind].map((cost, i) => [`factor_${cost}`, values[i]]));
/** A server that nobody measured: a known model, or a measured one elsewhere. */
function elsewhere(state, system, pair, k) {
  const model = models.get(state.v), where = site(state), like = k ? pair.servers?.[k] : system?.plain;
  const verifier = model ? model.name : system.verifier;
  const sizes = { ...(model ? model.sizes : like.sizes), ...(!k ? { drafter: 0, drafter_layers: 1 } : model ? pair.sizes : {}) };
  const of = k ? `${verifier} + ${model ? pair.name : pair.drafter} k=${k}` : `${verifier} plain`;
  const label = of + (system?.workload ? `, ${system.workload}` : "") + (fresh.places.length > 1 ? ` [${where.name}]` : "");
  const [started, crowding] = factors("server", label), off = model ? null : newOne(`${verifier} in ${where.name}`, 0);
  const slowness = off ? started.map((x, i) => x * Math.exp(fresh.elsewhere_sd * off[i])) : started; // as Posterior.elsewhere_factor
  const terms = { ...(model ? named("verifier", factors("verifier", verifier, sizes.moe - fresh.family)) : like.terms),
    ...(model && k ? named("drafter", factors("drafter", pair.name)) : {}), ...where.terms, factor_slowness: slowness, factor_crowding: crowding };
  Object.assign(sizes, where.sizes(sizes.bytes, k));
  const law = `law_${+(k > 0)}${+(sizes.moe > 0)}${+Number.isFinite(sizes.captured)}`;
  return { law, terms, sizes, acceptance: like ? like.acceptance : [], points: [], place: `${label} ${where.name}` };
}

let kept = [];
/** As `law`, which is not asked again for curves that are still known. */
function curves(server, state, loads) {
  if (loads.length < POINTS) return law(server, state, loads);
  const key = [server.place, state.k, state.a, state.axis, state.p, state.g, loads[0], loads.at(-1)].join();
  const known = kept.find((one) => one.key === key) || { key, said: law(server, state, loads) };
  kept = [known, ...kept.filter((one) => one !== known)].slice(0, 4);
  return known.said;
}

const ones = new Float64Array(n).fill(1);
const column = (term) => term === undefined ? ones : typeof term === "number" ? columns[term] : term;
/** Means of a server at loads: arrays [load * n + draw] of latency, TTFT, TPOT and C2, s. */
function law(server, state, loads) {
  const takes = data.takes[`${server.law}_${state.axis}`];
  const given = state.a === null ? null : new Float64Array(n).fill(state.a);
  const terms = given && server.given ? server.given : server.terms;
  const draws = takes[1].map((name) => {
    if (!name.startsWith("acceptance_")) return column(terms[name]);
    const place = Number(name.slice(11));
    return place >= state.k ? new Float64Array(n) : given || columns[server.acceptance[place]];
  });
  const asked = { k: state.k, prompt_tokens: state.p, output_tokens: state.g };
  const question = takes[0].map((name) => asked[name] ?? server.sizes[name]);
  const into = [0, 1, 2, 3].map(() => new Float64Array(n * loads.length));
  LAWS[`${server.law}_${state.axis}`](question, draws, loads, into, n);
  return into;
}

/** Quantiles that are observed values, as in Python; of a copy, as a place in `a` is a draw. */
function quantiles(a) {
  const sorted = Float64Array.from(a).sort();
  return QUANTILES.map((q) => sorted[Math.max(Math.ceil(n * q - 1), 0)]);
}

/** System and pair of a state: as measured, or with servers that nobody measured. */
function servers(state) {
  const system = systems.get(state.v), pair = (system || models.get(state.v)).pairs.find((p) => p.name === state.d);
  if (system && !state.w) return [system, pair];
  return once(JSON.stringify([state.v, state.d, state.w, state.n]), () => {
    const servers = Object.fromEntries(lengthsOf(pair).map((k) => [k, elsewhere(state, system, pair, k)]));
    const plain = elsewhere(state, system, pair, 0), gb = site(state).gb;
    const weights = (plain.sizes.shared + plain.sizes.expert) * plain.sizes.bytes + servers[1].sizes.drafter * servers[1].sizes.drafter_bytes;
    const refused = gb && weights > gb ? `${said(weights)} GB of weights do not fit into the ${said(gb)} GB of ${site(state).name}.` : "";
    return [{ plain, refused }, { ...pair, servers }];
  });
}
const lengthsOf = (pair) => pair.servers ? Object.keys(pair.servers).map(Number) : Array.from({ length: data.k_most }, (_, i) => i + 1);

/** Quantiles of both servers and of the speedup, and probabilities, load by load. */
function answer(state, loads) {
  const [system, pair] = servers(state), place = PLACE[state.m];
  const plain = curves(system.plain, { ...state, k: 0, a: null }, loads)[place];
  const sd = curves(pair.servers[state.k], state, loads)[place];
  const ratio = new Float64Array(n);
  return Array.from(loads, (load, j) => {
    const a = plain.subarray(j * n, j * n + n), b = sd.subarray(j * n, j * n + n);
    let faster = 0, slower = 0, full = [0, 0];
    for (let i = 0; i < n; i++) {
      const none = a[i] === Infinity && b[i] === Infinity;
      ratio[i] = none ? 1 : a[i] / b[i];
      faster += b[i] < a[i];
      slower += !none && !(b[i] < a[i]);
      full[0] += a[i] === Infinity;
      full[1] += b[i] === Infinity;
    }
    return { load, faster: faster / n, slower: slower / n, full: full.map((x) => x / n),
      speedup: faster + slower ? quantiles(ratio) : [NaN, NaN, NaN], plain: quantiles(a), sd: quantiles(b) };
  });
}

/** The range of loads that a chart shows: up to a little above the larger capacity. */
function range(state) {
  if (state.axis === "concurrency") return [1, Math.max(16, 2 ** Math.ceil(Math.log2(FACTOR * data.ranges.in_flight[1])))];
  const [system, pair] = servers(state);
  const most = [law(system.plain, { ...state, a: null }, [0.001]), law(pair.servers[state.k], state, [0.001])]
    .map((said) => 1 / quantiles(said[PLACE.c2])[1]);
  // A round number, so that curves are known still when it moves a little.
  const top = 1.04 * Math.max(...most), ten = 10 ** Math.floor(Math.log10(top));
  const round = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((x) => x * ten >= top) * ten;
  return [round / POINTS, round];
}
const between = ([low, high], share, log) => log ? low * (high / low) ** share : low + (high - low) * share;
const share = ([low, high], value, log) => log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
const lengths = (name) => [Math.max(data.ranges[name][0] / FACTOR, 2), data.ranges[name][1] * FACTOR];
const round = (x) => +x.toPrecision(3);
const said = (x) => Number.isNaN(x) ? "–" : x === Infinity ? "no limit" : String(x >= 1000 ? Math.round(x) : round(x));
const times = (q) => `${said(q[1])} (90%: ${said(q[0])} to ${said(q[2])})`;
const chance = (p) => p > 0.995 && p < 1 ? "above 0.99" : p < 0.005 && p > 0 ? "below 0.01" : p.toFixed(2);

// State: what is asked, in the page's address.
const start = data.start;
let state = { ...start };
/** A state that can be asked: what is not known or not a number becomes what it was. */
function sane(asked) {
  const s = { ...state, ...asked };
  const number = (value, low, high, otherwise) => Number.isFinite(value) ? Math.min(Math.max(value, low), high) : otherwise;
  if (!systems.has(s.v) && !models.has(s.v)) s.v = start.v;
  const model = systems.has(s.v) ? null : models.get(s.v), { pairs } = model || systems.get(s.v);
  const pair = pairs.find((x) => x.name === s.d) || pairs[0];
  s.d = pair.name;
  // A machine by its data sheet, or of a known model the environment of this number.
  if (!model && systems.get(s.v).asked) s.w = ""; // it is asked where it is
  if (!machines.has(s.w)) s.w = model ? (fresh.places[Number(String(s.w).slice(1))] && s.w ? s.w : "@0") : "";
  s.n = machines.has(s.w) ? Math.round(number(s.n, 1, 1024, 1)) : 1;
  const ks = lengthsOf(pair);
  s.k = Math.round(number(s.k, 1, Math.max(...ks), start.k));
  if (!ks.includes(s.k)) s.k = ks[0];
  s.a = s.a === null ? pair.rate ?? null : number(s.a, 0, 1, pair.rate ?? null);
  s.axis = UNIT[s.axis] ? s.axis : start.axis;
  s.m = METRIC[s.m] ? s.m : "e2e";
  s.p = number(s.p, 1, 1e7, start.p);
  s.g = number(s.g, s.m === "tpot" ? 2 : 1, 1e7, start.g);
  s.x = number(s.x, s.axis === "concurrency" ? 1 : 0, 1e9, s.axis === start.axis ? start.x : 8);
  return s;
}
function fromAddress() {
  if (!location.hash.includes("=")) return false;
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const name of ["k", "a", "x", "p", "g", "n"]) if (name in given) given[name] = given[name] === "" ? null : Number(given[name]);
  for (const name of ["k", "x", "p", "g", "n"]) if (given[name] === null) delete given[name];
  state = sane(given);
  return true;
}

// Charts.
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const ticks = (low, high) => {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) found.push(+(m * 10 ** e).toPrecision(3));
  return found.length > 12 ? found.filter((x) => Number.isInteger(Math.round(Math.log10(x) * 1e6) / 1e6)) : found;
};
const stroke = (name) => () => css(name);
const wash = (name) => () => css(name) + "30";
const axis = (more) => ({ stroke: stroke("--soft"), grid: { stroke: stroke("--line"), width: 1 }, ticks: { stroke: stroke("--line") },
  font: "13px system-ui, sans-serif", labelFont: "13px system-ui, sans-serif", labelSize: 24, values: (u, found) => found.map(said), ...more });
const line = (color, dash) => ({ stroke: stroke(color), width: 2.25, dash, pxAlign: 0, points: { show: false } });
const edge = { stroke: "transparent", points: { show: false } };
let now = { points: [[], []] };
/** The load that is asked about, as a line, and measured runs. */
function marks(u) {
  const ctx = u.ctx, x = u.valToPos(state.x, "x", true);
  ctx.save();
  ctx.beginPath(); ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height); ctx.clip();
  ctx.strokeStyle = css("--soft"); ctx.lineWidth = devicePixelRatio; ctx.setLineDash([4, 4]);
  ctx.beginPath(); ctx.moveTo(x, u.bbox.top); ctx.lineTo(x, u.bbox.top + u.bbox.height); ctx.stroke();
  ctx.setLineDash([]);
  if (u === charts[0]) now.points.forEach((points, which) => {
    ctx.fillStyle = css(which ? "--c1" : "--c0");
    for (const [a, b] of points) {
      const px = u.valToPos(a, "x", true), py = u.valToPos(b, "y", true), r = 4.5 * devicePixelRatio;
      ctx.beginPath();
      if (which) { ctx.moveTo(px, py - r); ctx.lineTo(px + r, py + r * 0.8); ctx.lineTo(px - r, py + r * 0.8); ctx.closePath(); }
      else ctx.arc(px, py, r * 0.85, 0, 7);
      ctx.fill();
    }
  });
  ctx.restore();
}
function chart(id, height, y, yAxis, series, bands) {
  const logX = state.axis === "concurrency";
  const u = new uPlot({ width: by(id).clientWidth, height, series: [{}, ...series], bands, legend: { show: false }, pxAlign: 0,
    cursor: { drag: { x: false, y: false }, points: { show: false }, y: false }, hooks: { draw: [marks] },
    scales: { x: { time: false, distr: logX ? 3 : 1, range: () => now.range }, y },
    axes: [axis({ label: UNIT[state.axis], size: 30, labelSize: 20, labelGap: 0, ...(logX ? { splits: (u, i, a, b) => ticks(a, b), filter: (u, s) => s } : {}) }), axis(yAxis)] }, [[], ...series.map(() => [])], by(id));
  u.over.addEventListener("click", () => change({ x: round(u.posToVal(u.cursor.left, "x")) }));
  return u;
}
let charts = [], drawn = "";
function draw() {
  if (state.axis !== drawn) {
    charts.forEach((u) => u.destroy());
    drawn = state.axis;
    const log = { distr: 3, range: (u, a, b) => Number.isFinite(a) && Number.isFinite(b) ? [a * 0.85, b * 1.15] : [0.1, 10] };
    charts = [
      chart("c-latency", 340, log, { size: 62, splits: (u, i, a, b) => ticks(a, b), filter: (u, s) => s },
        [edge, edge, line("--c0"), edge, edge, line("--c1", [8, 5])], [{ series: [2, 1], fill: wash("--c0") }, { series: [5, 4], fill: wash("--c1") }]),
      chart("c-faster", 200, { range: () => [-0.02, 1.02] }, { size: 62, splits: () => [0, 0.25, 0.5, 0.75, 1] }, [line("--c1", [8, 5])], []),
    ];
  }
  const rows = now.rows, xs = rows.map((r) => r.load), finite = (x) => Number.isFinite(x) ? x : null;
  const bound = (which) => [0, 2, 1].map((q) => rows.map((r) => finite(r[which][q])));
  // A band that has no upper end goes on to the top of what is drawn.
  const high = Math.max(...rows.map((r) => Math.max(finite(r.plain[1]) || 0, finite(r.sd[1]) || 0)), ...now.points.flat().map((p) => p[1])) * 3;
  const below = (v) => v !== null && v > high ? null : v;
  const cut = ([low, top, middle]) => [low.map(below), top.map((v, i) => below(low[i]) === null ? null : Math.min(v ?? high, high)), middle.map(below)];
  charts[0].setData([xs, ...cut(bound("plain")), ...cut(bound("sd"))]);
  charts[1].setData([xs, rows.map((r) => r.faster + r.slower ? r.faster : null)]);
}

/** What the answer rests on, where that is less than a measurement. */
function cautions(pair, system) {
  const found = [], model = models.get(state.v), sheet = machines.get(state.w), far = [];
  if (sheet) found.push(sheet.factors ? `${site(state).name} is answered by its data sheet and what was measured on ${sheet.label}` : `nobody measured ${site(state).name}: this is by its data sheet`);
  if (model) {
    const sizes = { active: model.sizes.active, total: model.sizes.shared + model.sizes.expert };
    for (const name of model.sizes.moe ? ["active", "total"] : ["total"]) {
      const [low, high] = fresh.ranges[name], value = sizes[name];
      if (value < low / 1.001 || value > high * 1.001) far.push(`${said(value)} billion ${name} parameters, measured were ${said(low)} to ${said(high)}`);
    }
    found.push(`nobody measured ${model.name}: this is by its sizes${far.length ? ` (${far.join("; ")})` : ""}`);
    found.push(state.a === pair.rate ? "the acceptance is what is usual of such a drafter" : "the acceptance is yours");
  }
  if (system.asked) found.push(`nobody measured ${state.v}`);
  else if (pair.asked) found.push("nobody measured this drafter with this acceptance here");
  if (!model && !sheet && !system.asked && !system.plain.points.length) found.push("its plain server never ran");
  if (pair.measured && !pair.measured.includes(state.k)) found.push(`k = ${state.k} was not measured with this drafter (${pair.measured.join(", ")} was)`);
  for (const [name, key, words] of TOKENS) {
    const [low, high] = data.ranges[name], value = state[key];
    if (value < low / 1.001 || value > high * 1.001) found.push(`${words} of ${said(value)} tokens lie outside the measured ${said(low)} to ${said(high)}`);
  }
  if (state.axis === "concurrency" && state.x > data.ranges.in_flight[1]) found.push(`no run had more than ${said(data.ranges.in_flight[1])} requests in flight`);
  if (state.a !== null && !model) found.push(`the acceptance of ${said(state.a)} is yours, not measured`);
  if (sheet || model || system.asked) return ` ${sheet ? "Data sheet" : system.asked || "Extrapolated"}, not measured: ${found.join("; ")}.`;
  return found.length ? ` Beyond the runs: ${found.join("; ")}.` : "";
}
function sentence(row) {
  const [system, pair] = servers(state);
  if (system.refused) return system.refused;
  const name = `${state.d}, k = ${state.k}`;
  const metric = METRIC[state.m].replace(", s", "").toLowerCase();
  const both = row.faster + row.slower < 0.005;
  const at = `At ${withUnit(state.x, state.axis)}`;
  if (both) return `${at} both are saturated.${cautions(pair, system)}`;
  const first = `${at} ${name} is faster than plain with probability ${chance(row.faster)}; speedup ${times(row.speedup)}.`;
  return `${first} ${metric[0].toUpperCase()}${metric.slice(1)}: plain ${times(row.plain)} s, drafting ${times(row.sd)} s.${cautions(pair, system)}`;
}
let speaking = 0;
function show() {
  const [system, pair] = servers(state), ks = lengthsOf(pair), model = models.get(state.v);
  const options = (pairs, chosen) => pairs.map(([value, text]) => new Option(text, value, false, value === chosen));
  const group = (label, pairs, chosen) => { const g = document.createElement("optgroup"); g.label = label; g.append(...options(pairs, chosen)); return g; };
  const same = (names) => [...names].map((name) => [name, name]);
  if (by("x-system").value !== state.v || !by("x-system").length)
    by("x-system").replaceChildren(group("Measured", same(systems.keys()), state.v), group("By its sizes", same(models.keys()), state.v));
  by("x-pair").replaceChildren(...options(same((model || systems.get(state.v)).pairs.map((p) => p.name)), state.d));
  const ran = model ? fresh.places.map((place, i) => [`@${i}`, place.name]) : [["", system.asked ? "as asked" : "where it ran"]];
  by("x-where").replaceChildren(...(machines.size && !system.asked ? [group("Measured", ran, state.w), group("By its data sheet", same(machines.keys()), state.w)] : options(ran, state.w)));
  by("x-gpus").hidden = !machines.has(state.w);
  by("x-measured").disabled = pair.rate !== undefined;
  const set = (id, value, text) => { if (document.activeElement !== by(id)) by(id).value = value; if (text) by(id).setAttribute("aria-valuetext", text); };
  for (const id of ["r-k", "x-k"]) { by(id).max = Math.max(...ks); set(id, state.k); }
  set("x-n", state.n);
  by("x-measured").checked = state.a === null;
  const typical = pair.servers[state.k].acceptance.length ? columns[pair.servers[state.k].acceptance[0]][0] : 0.7;
  for (const id of ["r-a", "x-a"]) set(id, round(state.a ?? typical));
  set("r-load", share(now.range, state.x, state.axis === "concurrency"), withUnit(state.x, state.axis));
  set("x-load", round(state.x)); set("x-axis", state.axis); set("x-metric", state.m);
  for (const [name, key] of TOKENS) {
    set(`r-${key}`, share(lengths(name), state[key], true), `${said(state[key])} tokens`);
    set(`x-${key}`, round(state[key]));
  }
  const text = sentence(now.row);
  by("x-answer").textContent = text;
  clearTimeout(speaking);
  speaking = setTimeout(() => { by("x-live").textContent = text; }, 600);
  by("x-key").textContent = `${state.d}, k = ${state.k}`;
  by("h-latency").textContent = METRIC[state.m];
  by("c-latency").setAttribute("aria-label", `${METRIC[state.m]} of plain and drafting against load. ${text} All values are in the table below.`);
  by("c-faster").setAttribute("aria-label", `Probability that drafting is faster, against load. At ${said(state.x)}: ${system.refused || chance(now.row.faster)}.`);
}
function table() {
  const heads = [UNIT[state.axis], "plain, s", "90%", "drafting, s", "90%", "P(drafting faster)", "speedup", "90%"];
  const rows = now.rows.filter((_, i) => i % 9 === 0).map((r) => [said(r.load), ...["plain", "sd"].flatMap((w) => [said(r[w][1]), `${said(r[w][0])} to ${said(r[w][2])}`]),
    r.faster + r.slower ? chance(r.faster) : "–", said(r.speedup[1]), `${said(r.speedup[0])} to ${said(r.speedup[2])}`]);
  const row = (cells, kind) => { const tr = document.createElement("tr"); tr.append(...cells.map((c) => { const td = document.createElement(kind); if (kind === "th") td.scope = "col"; td.className = "n"; td.textContent = c; return td; })); return tr; };
  const head = document.createElement("thead"), body = document.createElement("tbody");
  head.append(row(heads, "th")); body.append(...rows.map((r) => row(r, "td")));
  by("x-table").replaceChildren(head, body);
}
/** Everything that a change of the state changes. */
function update() {
  const [system, pair] = servers(state), log = state.axis === "concurrency";
  const shown = range(state);
  now.range = [shown[0], Math.max(shown[1], Math.min(state.x * 1.05, shown[1] * 3))];
  const key = JSON.stringify([{ ...state, x: 0 }, now.range]), known = key === now.key;
  now.key = key;
  if (!known) now.rows = system.refused ? [] : answer(state, Float64Array.from({ length: POINTS }, (_, i) => between(now.range, i / (POINTS - 1), log)));
  now.row = answer(state, [state.x])[0];
  const close = (a, b) => Math.abs(a / b - 1) < 0.01, mean = 4 + PLACE[state.m], at = log ? 3 : 2;
  now.points = [system.plain, pair.servers[state.k]].map((s) => s.points
    .filter((p) => close(p[0], state.p) && close(p[1], state.g) && p[at] !== null && p[mean] !== null).map((p) => [p[at], p[mean]]));
  draw(); show();
  if (!known) table();
}
let waiting = 0;
function change(asked) {
  state = sane(asked);
  history.replaceState(null, "", "#" + new URLSearchParams(Object.entries(state).map(([name, v]) => [name, v ?? ""])));
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(update);
}

const number = (id) => by(id).value === "" ? NaN : Number(by(id).value);
const on = (id, asked) => by(id).addEventListener("input", () => { const given = asked(); if (Object.values(given).every((v) => !Number.isNaN(v))) change(given); });
/** What is asked of another server, at half of its capacity where the rate is beyond that. */
function within(asked) {
  const next = sane(asked), top = range(next)[1];
  return next.axis === "rate_rps" && next.x > top ? { ...asked, x: round(top / 2) } : asked;
}
on("x-system", () => within({ v: by("x-system").value, a: null }));
on("x-where", () => within({ w: by("x-where").value }));
on("x-n", () => within({ n: number("x-n") }));
// The usual acceptance of one drafter is not that of another.
on("x-pair", () => ({ d: by("x-pair").value, a: servers(state)[1].rate === state.a ? null : state.a }));
on("x-axis", () => ({ axis: by("x-axis").value, x: by("x-axis").value === "concurrency" ? 8 : start.axis === "rate_rps" ? start.x : 1 }));
on("x-metric", () => ({ m: by("x-metric").value }));
on("x-measured", () => ({ a: by("x-measured").checked ? null : number("x-a") }));
for (const side of ["r", "x"]) {
  on(`${side}-k`, () => ({ k: number(`${side}-k`) }));
  on(`${side}-a`, () => ({ a: number(`${side}-a`) }));
}
on("x-load", () => ({ x: number("x-load") }));
on("r-load", () => ({ x: round(between(now.range, number("r-load"), state.axis === "concurrency")) }));
for (const [name, key] of TOKENS) {
  on(`x-${key}`, () => ({ [key]: number(`x-${key}`) }));
  on(`r-${key}`, () => ({ [key]: round(between(lengths(name), number(`r-${key}`), true)) }));
}
// What a field shows when it is left is what was asked.
for (const field of document.querySelectorAll("#explorer input")) field.addEventListener("change", () => { field.blur === document.activeElement || show(); });
addEventListener("hashchange", () => { if (fromAddress()) update(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((u) => u.redraw(false)));
state = sane({});
by("explorer").hidden = false;
if (fromAddress()) by("explore").scrollIntoView();
update();
new ResizeObserver(() => charts.forEach((u) => u.setSize({ width: by("c-latency").clientWidth, height: u.height }))).observe(by("c-latency"));
window.explorer = { answer: (asked, loads) => answer(sane(asked), loads), update, change, get state() { return { ...state }; } };
