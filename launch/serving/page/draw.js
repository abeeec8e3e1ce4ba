"use strict";
// What is drawn of an answer. Everything that comes from the server becomes text, never markup.

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const draw = (name, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const percent = x => (100 * x).toFixed(x > 0 && x < 0.001 ? 3 : 1) + " %";
const number = x => typeof x !== "number" ? "not known" : String(Number(x.toPrecision(5)));

// A table with heads; the first cell of a row names it.
const table = (heads, rows, kind = "") => {
  const head = make("tr", {}, ...heads.map(text => make("th", {scope: "col"}, text)));
  const body = rows.map(row => make("tr", {}, ...row.map((cell, place) => {
    if (place === 0) return make("th", {scope: "row"}, cell);
    return cell instanceof Element && cell.tagName === "TD" ? cell : make("td", {}, cell);
  })));
  return make("table", kind ? {class: kind} : {}, make("thead", {}, head), make("tbody", {}, ...body));
};
// What may be wider than the window is moved by itself, also by the keyboard.
const wide = (name, inside) => make("div", {class: "wide", role: "region", "aria-label": name, tabindex: "0"}, inside);
const amount = text => make("td", {class: "number"}, text);

// Shares as bars, each with its number beside it.
const bars = (what, rows, chosen) => table([what, "share", "bar"], rows.map(([name, share]) => {
  const bar = draw("svg", {viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true"},
    draw("rect", {class: "track", width: 100, height: 10}),
    draw("rect", {class: "bar", width: 100 * Math.max(0, Math.min(1, share)), height: 10}));
  const said = make("span", name === chosen ? {class: "chosen"} : {}, name);
  return [said, amount(percent(share)), make("td", {class: "drawn"}, bar)];
}), "bars");

const MOST_CLASSES = 12;
const ordered = pairs => pairs.slice().sort((a, b) => b[1] - a[1]);
const chances = (what, pairs, chosen) => {
  const sorted = ordered(pairs), shown = sorted.slice(0, MOST_CLASSES), parts = [bars(what, shown, chosen)];
  const rest = sorted.slice(MOST_CLASSES);
  if (rest.length) {
    const sum = rest.reduce((total, pair) => total + pair[1], 0);
    parts.push(make("p", {class: "quiet"}, `${rest.length} more, with ${percent(sum)} together`));
  }
  return parts;
};

const prediction = (task, row) => {
  const own = name => row[`${task.name}.${name}`];
  if (task.kind === "binary") {
    const [no, yes] = task.classes.length ? task.classes : [`not ${task.name}`, task.name];
    const chosen = own("prediction") ? yes : no;
    return [make("p", {}, make("strong", {}, chosen), `, with a chance of ${percent(own("prediction") ?
      own("probability") : 1 - own("probability"))}.`),
      bars("answer", [[yes, own("probability")], [no, 1 - own("probability")]], chosen)];
  }
  if (task.kind === "multiclass") {
    const pairs = task.classes.map((name, place) => [name, own("probability")[place]]);
    const best = Math.max(...own("probability"));
    return [make("p", {}, make("strong", {}, own("prediction")), `, with a chance of ${percent(best)}.`),
      ...chances("class", pairs, own("prediction"))];
  }
  if (task.kind === "multilabel") {
    const all = [own("probability")].flat();
    const said = own("prediction").length ? own("prediction").join(", ") : "none of the labels";
    return [make("p", {}, make("strong", {}, said), ", the labels with a chance above one half."),
      ...chances("label", task.classes.map((name, place) => [name, all[place]]))];
  }
  if (task.kind === "survival") return survival(task, own);
  const values = [own("value")].flat().map(number).join(", ");
  return [make("p", {}, make("strong", {}, values), task.unit ? ` ${task.unit}` : "")];
};

const survival = (task, own) => {
  const unit = task.unit ? ` ${task.unit}` : "", curve = [own("survival")].flat(), edges = task.edges;
  const last = edges[edges.length - 1], x = time => 46 + 380 * time / last, y = share => 214 - 190 * share;
  let path = `M ${x(0)} ${y(1)}`;
  edges.forEach((edge, place) => { path += ` L ${x(edge)} ${y(curve[place])}`; });
  const said = own("median") === null ? `beyond ${number(last)}${unit}` : `at ${number(own("median"))}${unit}`;
  const picture = plot(`Chance to live beyond a time: ${edges.map((edge, place) =>
    `${percent(curve[place])} beyond ${number(edge)}${unit}`).join(", ")}.`, `time${unit ? `,${unit}` : ""}`, "chance",
    ["0", number(last)], draw("path", {class: "curve", d: path}));
  return [make("p", {}, "Half of such records live beyond a time that lies ", make("strong", {}, said), "."), picture,
    make("details", {}, make("summary", {}, "As numbers"),
      table(["beyond", "chance"], edges.map((edge, place) => [number(edge) + unit, amount(percent(curve[place]))])))];
};

// A square with axes from 0 to 1; `about` says in words what is in it.
const plot = (about, across, up, ends, ...inside) => make("figure", {}, draw("svg",
  {viewBox: "0 0 440 262", role: "img", "aria-label": about},
  draw("path", {class: "axis", d: "M 46 24 V 214 H 426"}),
  draw("text", {x: 40, y: 28, "text-anchor": "end"}, "1"), draw("text", {x: 40, y: 218, "text-anchor": "end"}, "0"),
  draw("text", {x: 46, y: 232, "text-anchor": "middle"}, ends[0]),
  draw("text", {x: 426, y: 232, "text-anchor": "end"}, ends[1]),
  draw("text", {x: 236, y: 254, "text-anchor": "middle"}, across), draw("text", {x: 8, y: 14}, up), ...inside));

// How far the chances of this model can be believed: what came true where it said so much.
const calibration = (task, row, known) => {
  const about = known && known.tasks[task.name];
  if (!about) {
    return [make("p", {}, known ? "Of this task no calibration is known: it is not one of classes, or had no labels." :
      "Nothing is known of the calibration of this version: its run has left no predictions of a test part.")];
  }
  const x = share => 46 + 380 * share, y = share => 214 - 190 * share, bins = about.count.length;
  const filled = [...about.count.keys()].filter(bin => about.count[bin] > 0);
  const points = filled.map(bin => [x(about.stated[bin]), y(about.true[bin]), about.count[bin]]);
  const largest = Math.max(...about.count);
  const stated = statement(task, row), parts = [];
  let mark = [];
  if (stated !== null) {
    const bin = Math.min(bins - 1, Math.floor(stated * bins)), count = about.count[bin];
    const range = `${(100 * bin / bins).toFixed(0)} to ${(100 * (bin + 1) / bins).toFixed(0)} %`;
    parts.push(make("p", {}, count ? `Of the ${count} statements on the ${known.part} part to which the model gave ` +
      `${range}${whose(task)}, as it does here, ${percent(about.true[bin])} came true.` + (count < 20 ? " These are few." : "") :
      `The model gave ${range}${whose(task)}, as it does here, to no statement on the ${known.part} part: nothing tells what that ` +
      "means."));
    mark = [draw("path", {class: "here", d: `M ${x(stated)} 24 V 214`})];
  }
  const words = filled.map(bin => `${percent(about.true[bin])} of ${about.count[bin]} where it said ` +
    percent(about.stated[bin]));
  parts.push(plot(`Calibration on the ${known.part} part. What came true: ${words.join("; ")}.`, "stated chance",
    "share that came true", ["0", "1"], draw("path", {class: "ideal", d: `M ${x(0)} ${y(0)} L ${x(1)} ${y(1)}`}), ...mark,
    draw("path", {class: "curve", d: points.map(([a, b], place) => `${place ? "L" : "M"} ${a} ${b}`).join(" ")}),
    ...points.map(([a, b, count]) => draw("circle", {class: "dot", cx: a, cy: b, r: 3 + 4 * Math.sqrt(count / largest)}))));
  parts.push(make("p", {class: "quiet"}, `Expected calibration error ${number(about.error)} over ` +
    `${about.count.reduce((total, count) => total + count, 0)} statements: ${about.of}.` +
    (mark.length ? " The upright line is this record." : "")));
  parts.push(make("details", {}, make("summary", {}, "As numbers"), wide(`calibration of ${task.name}`,
    table(["stated", "came true", "statements"], filled.map(bin =>
      [percent(about.stated[bin]), amount(percent(about.true[bin])), amount(String(about.count[bin]))])))));
  return parts;
};

// The chance whose calibration is kept: of class 1, or of the chosen class; of several labels none is the one.
const statement = (task, row) => {
  const said = row[`${task.name}.probability`];
  if (task.kind === "binary") return said;
  return task.kind === "multiclass" ? Math.max(...said) : null;
};

const whose = task => task.kind === "multiclass" ? " for the class it chose" : ` for ${task.classes[1] || task.name}`;

const MOST_OBJECTS = 12;
const grounds = (task, row) => {
  const shares = row[`${task.name}.modality_share`];
  if (!shares) return [];
  const there = Object.entries(shares).filter(pair => pair[1] !== null);
  const absent = Object.keys(shares).filter(name => shares[name] === null);
  const parts = [make("p", {}, "Each modality was hidden in turn; its share is how much of all changes that made.")];
  parts.push(...(there.length ? chances("modality", there) : [make("p", {}, "The record has no modality.")]));
  if (absent.length) parts.push(make("p", {class: "quiet"}, `Absent: ${absent.join(", ")}.`));
  const objects = row[`${task.name}.objects`] || [];
  if (objects.length) {
    parts.push(make("p", {}, "Each text, picture, sound and code was hidden in turn, too."));
    parts.push(wide(`objects of ${task.name}`, table(["modality", "which", "time", "share", "what"],
      objects.slice(0, MOST_OBJECTS).map(own => [own.modality, amount(String(own.object + 1)),
        amount(own.time === null ? "" : number(own.time)), amount(percent(own.share)),
        make("td", {class: "object"}, own.what === null ? "" : own.what)]))));
    const left = objects.length - MOST_OBJECTS, hidden = row.objects_not_hidden || 0;
    if (left > 0) parts.push(make("p", {class: "quiet"}, `${left} more with smaller shares`));
    if (hidden) parts.push(make("p", {class: "quiet"}, `${hidden} older ones were not hidden`));
  }
  return parts;
};
