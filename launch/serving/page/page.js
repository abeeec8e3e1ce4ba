// The form of a record, and the talk with the server. The token stays in this tab, and in no address.

const KEPT = "fleximoe.token";
const $ = id => document.getElementById(id);
let token = "", schema = null, editors = [], answers = {rows: [], explained: [], why: ""};
const kept = {  // a browser may forbid it: then it is asked for again
  get: () => { try { return sessionStorage.getItem(KEPT) || ""; } catch { return ""; } },
  set: value => { try { value ? sessionStorage.setItem(KEPT, value) : sessionStorage.removeItem(KEPT); } catch {} },
};

const say = (id, text) => { $(id).textContent = text; $(id).hidden = !text; };
const ask = async (path, body) => {
  const headers = {Authorization: `Bearer ${token}`};
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {headers} : {method: "POST", headers, body});
  } catch {
    throw new Error("The server does not answer.");
  }
  const said = await answer.json().catch(() => ({error: `The server says ${answer.status}, and not why.`}));
  if (!answer.ok) throw new Error(said.error);
  return said;
};

// One modality's editor: `get` gives its value, undefined where it is absent; `set` fills it in.
const editor = modality => {
  const id = `m-${modality.name}`, there = make("input", {type: "checkbox", id: `${id}-there`});
  const inside = make("div"), unit = modality.units.length === 1 ? `, ${modality.units[0]}` : "";
  const note = make("p", {class: "quiet", id: `${id}-form`}, modality.form + unit +
    (modality.timed && modality.time_unit ? `; times in ${modality.time_unit}` : ""));
  const body = make("div", {}, note, inside);
  const field = make("fieldset", {}, make("legend", {}, make("label", {class: "inline"}, there,
    make("strong", {}, modality.name), " is there")), body);
  const show = () => { body.hidden = !there.checked; };
  there.addEventListener("change", show);
  const single = !modality.form.startsWith("an object of the lists");
  const kind = single ? modality.kind : "lists";
  const own = (kind === "vector" && modality.shape[0] <= 40 ? numbers : kind === "text" ? prose :
    kind === "image" || kind === "waveform" ? file : lists)(modality, id, inside);
  const set = value => {
    there.checked = value !== undefined && value !== null;
    own.set(there.checked ? value : undefined);
    show();
  };
  return {name: modality.name, field, set, get: () => there.checked ? own.get() : undefined};
};

const numbers = (modality, id, inside) => {
  const inputs = [...Array(modality.shape[0]).keys()].map(place => {
    const name = modality.channels[place] || `number ${place + 1}`, unit = modality.units[place];
    const input = make("input", {type: "number", step: "any", id: `${id}-${place}`});
    inside.append(make("div", {}, make("label", {for: input.id}, unit ? `${name}, ${unit}` : name), input));
    return input;
  });
  inside.className = "numbers";
  return {
    get: () => inputs.map(input => input.value === "" ? null : Number(input.value)),
    set: value => inputs.forEach((input, place) => {
      const found = value === undefined ? null : Array.isArray(value) ? value[place] : value[modality.channels[place]];
      input.value = found === null || found === undefined ? "" : found;
    }),
  };
};

const prose = (modality, id, inside) => {
  const area = make("textarea", {id, rows: 4, class: "prose", "aria-describedby": `${id}-form`, "aria-label": modality.name});
  inside.append(area);
  return {get: () => area.value, set: value => { area.value = value === undefined ? "" : value; }};
};

const lists = (modality, id, inside) => {
  const area = make("textarea", {id, rows: 6, spellcheck: "false", "aria-describedby": `${id}-form`,
    "aria-label": `${modality.name}, as JSON`});
  inside.append(area);
  return {
    get: () => {
      try {
        const value = JSON.parse(area.value);
        area.removeAttribute("aria-invalid");
        return value;
      } catch (error) {
        area.setAttribute("aria-invalid", "true");
        throw new Error(`${modality.name} is no JSON: ${error.message}`);
      }
    },
    set: value => { area.value = value === undefined ? "" : compact(value); area.removeAttribute("aria-invalid"); },
  };
};

// A file of a picture or a sound, as base64; numbers that were filled in stay until one is chosen.
const file = (modality, id, inside) => {
  const image = modality.kind === "image";
  const input = make("input", {type: "file", id, accept: image ? "image/*" : "audio/*"});
  const preview = make("img", {class: "preview", alt: `The picture chosen for ${modality.name}`, hidden: ""});
  const said = make("p", {class: "quiet"});
  let value;
  const note = text => { said.textContent = text; };
  input.addEventListener("change", () => {
    const chosen = input.files[0];
    if (!chosen) return;
    const reader = new FileReader();
    reader.onload = () => {
      value = reader.result.slice(reader.result.indexOf(",") + 1);
      note(`${chosen.name}, ${chosen.size.toLocaleString("en")} bytes`);
      if (image) { preview.src = reader.result; preview.hidden = false; }
    };
    reader.readAsDataURL(chosen);
  });
  inside.append(make("label", {for: id}, image ? "A picture's file" : "A sound's file (.wav, .flac, ...)"), input, said,
    ...(image ? [preview] : []));
  return {
    get: () => {
      if (value === undefined) throw new Error(`Choose a file for ${modality.name}, or say that it is not there.`);
      return value;
    },
    set: found => {
      value = found;
      input.value = "";
      preview.hidden = true;
      note(found === undefined ? "" : Array.isArray(found) ? "the numbers of the example" : "what was filled in before");
    },
  };
};

// JSON whose innermost lists stand on one line.
const compact = value => {
  if (Array.isArray(value) || value === null || typeof value !== "object") return JSON.stringify(value);
  return "{\n" + Object.entries(value).map(([key, own]) =>
    ` ${JSON.stringify(key)}: ${JSON.stringify(own)}`).join(",\n") + "\n}";
};

const fill = record => {
  for (const own of editors) own.set(record[own.name]);
  $("key").value = record.key === undefined || record.key === null ? "" : record.key;
  $("json").value = compact(record);
};
const written = () => {
  if ($("by-json").checked) {
    try {
      return JSON.parse($("json").value);
    } catch (error) {
      throw new Error(`The record is no JSON: ${error.message}`);
    }
  }
  const record = $("key").value ? {key: $("key").value} : {};
  for (const own of editors) {
    const value = own.get();
    if (value !== undefined) record[own.name] = value;
  }
  return record;
};

// What is written goes along when the way of writing changes, if it can.
const turn = () => {
  const json = $("by-json").checked;
  $("whole").hidden = !json;
  $("fields").hidden = json;
  say("refused", "");
  try {
    $("by-json").checked = !json;
    $("by-form").checked = json;
    const record = written();
    if (json) $("json").value = compact(record);
    else if (record && !Array.isArray(record) && !record.records) fill(record);
  } catch (error) {
    say("refused", `${error.message} (so what was written there was not taken along.)`);
  } finally {
    $("by-json").checked = json;
    $("by-form").checked = !json;
  }
};

const name = found => {
  schema = found;
  document.title = `${found.version} - fleximoe`;
  say("about", `${found.version}, trained on ${found.data}. What you send goes to this server, and nowhere else.`);
};
const show = found => {
  name(found);
  $("modalities").replaceChildren(table(["modality", "kind", "form", "channels", "units"], found.modalities.map(own =>
    [own.name, own.kind, own.form, own.channels.join(", "), own.units.join(", ")])));
  $("tasks").replaceChildren(table(["task", "kind", "answers"], found.tasks.map(own =>
    [own.name, own.kind, own.classes.join(", ") || own.unit])));
  editors = found.modalities.map(editor);
  const key = make("input", {id: "key", autocomplete: "off"});
  $("fields").replaceChildren(make("div", {}, make("label", {for: "key"}, "key (its name; may be left out)"), key),
    ...editors.map(own => own.field));
  fill(found.example);
  $("inside").hidden = false;
  $("leave").hidden = false;
};

const open = async () => {
  say("trouble", "");
  try {
    show(await ask("schema"));
    kept.set(token);
    $("token").value = "";
  } catch (error) {
    kept.set("");
    $("inside").hidden = true;
    say("trouble", error.message);
  }
};

const drawRow = () => {
  const place = Number($("row").value) || 0, row = answers.rows[place], explained = answers.explained[place] || {};
  const parts = [];
  for (const task of schema.tasks) {
    const section = make("section", {"aria-label": `task ${task.name}`}, make("h3", {}, task.name), ...prediction(task, row));
    section.append(make("h3", {}, `What ${task.name} rests on`), ...(answers.why ? [make("p", {}, answers.why)] :
      grounds(task, explained)));
    section.append(make("h3", {}, `Whether chances of ${task.name} hold`), ...calibration(task, row, schema.calibration));
    parts.push(section);
  }
  $("drawn").replaceChildren(...parts);
};

const send = async () => {
  say("refused", "");
  $("ask").disabled = true;
  try {
    const body = JSON.stringify(written()), said = await ask("predict", body);
    if (said.version !== schema.version) name(await ask("schema"));  // of the same modalities
    answers = {rows: said.predictions, explained: [], why: ""};
    await ask("explain", body).then(found => { answers.explained = found.predictions; },
      error => { answers.why = error.message; });
    $("row").replaceChildren(...said.predictions.map((row, place) => make("option", {value: place},
      row.moment === undefined || row.moment === null ? String(row.key) : `${row.key}, at ${number(row.moment)}`)));
    $("which").hidden = said.predictions.length < 2;
    say("version", `Answered by ${said.version}.`);
    drawRow();
    $("answer").hidden = false;
  } catch (error) {
    $("answer").hidden = true;
    say("refused", error.message);
  } finally {
    $("ask").disabled = false;
  }
};

$("entry").addEventListener("submit", event => {
  event.preventDefault();
  token = $("token").value.trim();
  open();
});
$("leave").addEventListener("click", () => { kept.set(""); location.reload(); });
$("record").addEventListener("submit", event => { event.preventDefault(); send(); });
$("example").addEventListener("click", () => fill(schema.example));
$("clear").addEventListener("click", () => fill({}));
$("by-form").addEventListener("change", turn);
$("by-json").addEventListener("change", turn);
$("row").addEventListener("change", drawRow);
token = kept.get();
if (token) open();
