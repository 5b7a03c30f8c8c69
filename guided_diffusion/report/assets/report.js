"use strict";
// The gallery of a report: cards to sort, filter and open, and the view of one case, by pointer or keyboard.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const columns = new Map(data.columns.map((column, place) => [column.key, { ...column, place }]));
  const score = (item, column) => item.scores[column.place];

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  }

  function number(value) {
    if (Number.isInteger(value)) return String(value);
    return Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) >= 1 ? value.toFixed(2) : value.toFixed(3);
  }

  // ---- cards ---------------------------------------------------------------------------------------------------

  // The page holds all cards. Of many only the first are shown, since the figures stand below them.
  const gallery = $("gallery");
  const PART = matchMedia("(max-width: 760px)").matches ? 12 : 24;
  const cards = [...gallery.querySelectorAll(".card")].map((card) => {
    const item = data.cases[Number(card.dataset.index)];
    card.tabIndex = -1;
    card.setAttribute("role", "button");
    card.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the mask's file in a tab of its own
      event.preventDefault();
      open(item);
    });
    card.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      open(item);
    });
    card.addEventListener("focus", () => makeActive(card));
    return { item, card, holder: card.parentElement };
  });
  const cardOf = new Map(cards.map((entry) => [entry.item, entry]));
  let shown = cards;
  let limit = PART;
  let active = null;

  function makeActive(card) {
    if (active) active.tabIndex = -1;
    active = card;
    if (active) active.tabIndex = 0;
  }

  function place() {
    const visible = shown.slice(0, limit);
    gallery.replaceChildren(...visible.map(({ holder }) => holder));
    makeActive(visible.length ? visible[0].card : null);
    const rest = shown.length - visible.length;
    $("more").hidden = !rest;
    $("some").textContent = `Show ${Math.min(rest, PART)} more`;
    $("all").textContent = `Show all ${shown.length}`;
  }

  function showMore(to) {
    const first = limit;
    limit = to;
    place();
    shown[first].card.focus();
  }
  $("some").addEventListener("click", () => showMore(limit + PART));
  $("all").addEventListener("click", () => showMore(shown.length));

  // ---- sorting and filtering -----------------------------------------------------------------------------------

  const sort = $("sort");
  for (const column of data.columns) sort.append(element("option", { value: column.key }, column.label));
  sort.append(element("option", { value: "" }, "Name"));
  let worstFirst = true;

  function update() {
    const column = columns.get(sort.value);
    const text = $("search").value.toLowerCase();
    const [low, high] = [$("from"), $("to")].map((input) => (input.value === "" ? null : Number(input.value)));
    shown = cards.filter(({ item }) => {
      if (text && !item.name.toLowerCase().includes(text)) return false;
      if (!column || (low === null && high === null)) return true;
      const value = score(item, column);
      return value !== null && (low === null || value >= low) && (high === null || value <= high);
    });
    const compareNames = (a, b) => a.item.name.localeCompare(b.item.name, undefined, { numeric: true });
    const sign = (column && column.worst === "high" ? -1 : 1) * (worstFirst ? 1 : -1);
    shown.sort((a, b) => {
      if (!column) return compareNames(a, b) * (worstFirst ? 1 : -1);
      const [x, y] = [score(a.item, column), score(b.item, column)];
      if (x === null || y === null) return (x === null) - (y === null) || compareNames(a, b);
      return sign * (x - y) || compareNames(a, b);
    });
    limit = PART;
    place();
    $("count").textContent = shown.length === cards.length ? `${cards.length} cases` : `${shown.length} of ${cards.length} cases`;
    for (const id of ["from", "to"]) $(id).parentElement.hidden = !column;
    $("filtered").textContent = column ? column.label : "";
    $("order").textContent = column ? (worstFirst ? "Worst first" : "Best first") : worstFirst ? "A to Z" : "Z to A";
    $("order").setAttribute("aria-pressed", String(worstFirst));
  }

  sort.addEventListener("change", () => {
    $("from").value = $("to").value = "";
    update();
  });
  for (const id of ["search", "from", "to"]) $(id).addEventListener("input", update);
  $("order").addEventListener("click", () => {
    worstFirst = !worstFirst;
    update();
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("tools").addEventListener("reset", () => {
    worstFirst = true;
    setTimeout(update);
  });

  // A click on a bar filters the gallery by its interval; a click on a dot opens its case.
  for (const chart of document.querySelectorAll(".chart")) {
    chart.addEventListener("click", (event) => {
      const { column } = chart.dataset;
      const { from, to } = event.target.dataset;
      const named = event.target.dataset.case;
      if (named !== undefined) open(data.cases.find((item) => item.name === named));
      if (column === undefined || from === undefined) return;
      sort.value = column;
      $("from").value = from;
      $("to").value = to;
      $("filter").open = true;
      update();
      $("cases").scrollIntoView();
    });
  }

  gallery.addEventListener("keydown", (event) => {
    const visible = shown.slice(0, limit);
    const index = visible.findIndex(({ card }) => card === document.activeElement);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const top = visible[0].holder.offsetTop;
    const after = visible.findIndex(({ holder }) => holder.offsetTop > top);
    const across = after < 0 ? visible.length : after;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -index, End: visible.length - 1 - index };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = index + steps[event.key];
    if (to >= 0 && to < visible.length) visible[to].card.focus();
  });

  // ---- one case ------------------------------------------------------------------------------------------------

  const dialog = $("case");
  const view = $("view");
  const canvas = $("canvas");
  const picture = $("image");
  const LETTERS = { mask: "m", truth: "t", members: "e", uncertainty: "u", probability: "p" };
  const MOST_ZOOM = 16;
  const state = {
    item: null,
    slice: 0,
    on: { mask: true, truth: true, members: false, uncertainty: false, probability: false },
    hidden: new Set(), // members that are off while members are shown
    zoom: 1,
    x: 0.5, // the centre of the view, in parts of the picture
    y: 0.5,
  };
  const boxes = {};
  for (const [name, letter] of Object.entries(LETTERS)) {
    const label = element("label", { class: name });
    boxes[name] = element("input", { type: "checkbox" });
    boxes[name].addEventListener("change", () => toggle(name, boxes[name].checked));
    label.append(boxes[name], document.createTextNode(` ${name} `), element("kbd", {}, letter));
    if (!data.classes.length && name in data.colours && name !== "members") label.append(mark(data.colours[name]));
    $("layers").append(label);
  }

  function mark(colour) {
    const made = element("span", { class: "mark" });
    made.style.background = colour;
    return made;
  }

  function toggle(name, on) {
    state.on[name] = on;
    if (name === "members") state.hidden.clear();
    // Two soft maps on top of each other are unreadable.
    if (on && name === "uncertainty") state.on.probability = false;
    if (on && name === "probability") state.on.uncertainty = false;
    draw();
  }

  const memberColour = (index) => data.colours.members[index % data.colours.members.length];
  const memberCount = (item) => item.layers.filter((layer) => layer.startsWith("member ")).length;

  // From no member on, each press adds one; from all on, each press takes one away.
  function toggleMember(index) {
    const count = memberCount(state.item);
    if (index >= count) return;
    if (!state.on.members) {
      state.on.members = true;
      state.hidden = new Set(Array.from({ length: count }, (_, e) => e));
    }
    if (!state.hidden.delete(index)) state.hidden.add(index);
    if (state.hidden.size >= count) {
      state.on.members = false;
      state.hidden.clear();
    }
    draw();
  }

  const loaded = new Map();
  function load(source) {
    if (!source) return Promise.resolve(null);
    if (!loaded.has(source)) {
      if (loaded.size > 200) loaded.clear();
      loaded.set(source, new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve(image);
        image.onerror = () => resolve(null);
        image.src = source;
      }));
    }
    return loaded.get(source);
  }

  // Draw tile `index` of `count` tiles side by side over a pen's whole canvas, which may be zoomed.
  function tile(pen, image, index, count, smooth) {
    if (!image) return;
    const across = image.naturalWidth / count;
    pen.imageSmoothingEnabled = smooth;
    pen.drawImage(image, index * across, 0, across, image.naturalHeight, 0, 0, pen.canvas.width, pen.canvas.height);
  }

  // A tile of outlines in one colour, as a canvas of the size of `canvas`.
  const spare = document.createElement("canvas");
  function coloured(image, index, count, colour, width, height) {
    spare.width = width;
    spare.height = height;
    const pen = spare.getContext("2d");
    tile(pen, image, index, count, false);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = colour;
    pen.fillRect(0, 0, width, height);
    return spare;
  }

  let drawing = 0;
  async function draw() {
    const { item, slice, on } = state;
    const mine = ++drawing;
    const sources = item.slices[slice];
    const [image, lines, maps] = await Promise.all([sources.image, sources.lines, sources.maps].map(load));
    if (mine !== drawing) return;
    const [height, width] = item.size;
    const factor = Math.max(1, Math.ceil(720 / Math.max(height, width)));
    const pens = [picture, canvas].map((one) => {
      one.width = width * factor;
      one.height = height * factor;
      return one.getContext("2d");
    });
    const half = 0.5 / state.zoom;
    [state.x, state.y] = [state.x, state.y].map((value) => Math.min(Math.max(value, half), 1 - half));
    for (const pen of pens) {
      const { width: w, height: h } = pen.canvas;
      pen.setTransform(state.zoom, 0, 0, state.zoom, (half - state.x) * state.zoom * w, (half - state.y) * state.zoom * h);
    }
    const [below, above] = pens;
    tile(below, image, 0, 1, image && image.naturalWidth >= 200);
    if (on.uncertainty) tile(above, maps, 0, 2, true);
    if (on.probability) tile(above, maps, 1, 2, true);
    const count = item.layers.length;
    const seen = (index) => on.members && !state.hidden.has(index);
    const several = item.layers.filter((layer) => layer.startsWith("member ") && seen(Number(layer.slice(7)))).length > 1;
    item.layers.forEach((layer, index) => {
      if (!layer.startsWith("member ")) {
        if (on[layer]) tile(above, lines, index, count, false);
        return;
      }
      const member = Number(layer.slice(7));
      if (!seen(member)) return;
      // With several classes, a member that is shown alone has the colours of the classes.
      if (data.classes.length && !several) tile(above, lines, index, count, false);
      else if (lines) {
        const made = coloured(lines, index, count, memberColour(member), lines.naturalWidth / count, lines.naturalHeight);
        above.imageSmoothingEnabled = false;
        above.drawImage(made, 0, 0, canvas.width, canvas.height);
      }
    });
    drawMembers(image, lines);
    for (const [name, box] of Object.entries(boxes)) box.checked = on[name];
    describeView();
  }

  function describeView() {
    const { item, slice } = state;
    const visible = Object.keys(state.on).filter((name) => state.on[name] && !boxes[name].disabled);
    view.setAttribute("aria-label", `${item.name}, with ${visible.join(", ") || "nothing"} drawn over it`);
    view.classList.toggle("zoomed", state.zoom > 1);
    $("zoom").textContent = `${number(state.zoom)}×`;
    $("larger").disabled = state.zoom >= MOST_ZOOM;
    $("smaller").disabled = state.zoom <= 1;
    scale();
    const index = item.indices[slice];
    if (index === null) return;
    const part = item.indices.length < item.depth ? ` (${item.indices.length} slices shown)` : "";
    $("slice-text").textContent = `Slice ${index + 1} of ${item.depth}${part}`;
    $("slice").value = slice;
    $("slice").setAttribute("aria-valuetext", `slice ${index + 1} of ${item.depth}`);
  }

  // The scale of the soft map that is shown.
  function scale() {
    const ramps = [];
    const ramp = (caption, kind, ends, colour = "") => {
      const made = element("div", { class: "scale" });
      const bar = element("span", { class: `ramp ${kind}` });
      if (colour) bar.style.background = `linear-gradient(90deg, #000, ${colour})`;
      const numbers = element("span", { class: "ends" });
      numbers.append(...ends.map((end) => element("span", {}, end)));
      made.append(element("span", {}, caption), bar, numbers);
      ramps.push(made);
    };
    if (state.on.uncertainty && !boxes.uncertainty.disabled) ramp(`uncertainty: ${data.uncertainty}`, "heat", ["0", "0.25", "0.5"]);
    if (state.on.probability && !boxes.probability.disabled) {
      const each = data.classes.length ? data.classes : [["probability", ""]];
      for (const [name, colour] of each) ramp(colour ? `probability of ${name}` : name, "grey", ["0", "0.5", "1"], colour);
    }
    $("scale").replaceChildren(...ramps);
  }

  // ---- the members of a case -----------------------------------------------------------------------------------

  // A small picture of each member, which is also the button that shows or hides it.
  function memberButtons(item) {
    const count = memberCount(item);
    $("members").hidden = !count;
    $("members").querySelector("div").replaceChildren(...Array.from({ length: count }, (_, index) => {
      const button = element("button", { type: "button", "aria-label": `member ${index + 1}` });
      const label = element("span", {}, String(index + 1));
      label.prepend(mark(memberColour(index)));
      button.append(element("canvas"), label);
      button.addEventListener("click", () => toggleMember(index));
      return button;
    }));
  }

  function drawMembers(image, lines) {
    const { item } = state;
    const [height, width] = item.size;
    const side = 176 / Math.max(height, width);
    const count = item.layers.length;
    const first = item.layers.indexOf("member 0");
    [...$("members").querySelectorAll("button")].forEach((button, index) => {
      button.setAttribute("aria-pressed", String(state.on.members && !state.hidden.has(index)));
      const small = button.firstChild;
      small.width = Math.round(width * side);
      small.height = Math.round(height * side);
      const pen = small.getContext("2d");
      tile(pen, image, 0, 1, true);
      if (!lines) return;
      const made = data.classes.length
        ? null
        : coloured(lines, first + index, count, memberColour(index), lines.naturalWidth / count, lines.naturalHeight);
      for (const [x, y] of [[0, 0], [1, 0], [0, 1]]) { // a reduced line is faint
        pen.setTransform(1, 0, 0, 1, x, y);
        if (made) pen.drawImage(made, 0, 0, small.width, small.height);
        else tile(pen, lines, first + index, count, true);
      }
    });
  }

  // ---- zoom, window and level ----------------------------------------------------------------------------------

  // Zoom by a factor around a point of the view, given in parts of it.
  function zoom(factor, x = 0.5, y = 0.5) {
    const before = state.zoom;
    state.zoom = Math.min(Math.max(before * factor, 1), MOST_ZOOM);
    state.x += (x - 0.5) * (1 / before - 1 / state.zoom);
    state.y += (y - 0.5) * (1 / before - 1 / state.zoom);
    draw();
  }

  function move(x, y) {
    state.x += x / state.zoom;
    state.y += y / state.zoom;
    draw();
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  // CSS filters clip after each step. The two orders below clip nothing that is inside the window.
  function applyWindow() {
    const width = Number($("window").value) / 100;
    const low = Number($("level").value) / 100 - width / 2;
    if (width === 1 && low === 0) picture.style.filter = "";
    else if (low >= 0) {
      const contrast = 1 + (2 * low) / width;
      picture.style.filter = `brightness(${1 / (width * contrast)}) contrast(${contrast})`;
    } else picture.style.filter = `contrast(${1 / (1 - 2 * low)}) brightness(${(1 - 2 * low) / width})`;
  }

  function resetView() {
    [state.zoom, state.x, state.y] = [1, 0.5, 0.5];
    $("window").value = 100;
    $("level").value = 50;
    applyWindow();
  }

  for (const id of ["window", "level"]) $(id).addEventListener("input", applyWindow);
  $("larger").addEventListener("click", () => zoom(2));
  $("smaller").addEventListener("click", () => zoom(0.5));
  $("fit").addEventListener("click", () => {
    resetView();
    draw();
  });
  view.addEventListener("dblclick", (event) => zoom(2, ...placeOf(event)));
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    // A volume's wheel goes through its slices, as in other viewers; with Ctrl, which pinching sends too, it zooms.
    if (state.item.indices[0] !== null && !event.ctrlKey) slide(state.slice + Math.sign(event.deltaY));
    else zoom(event.deltaY < 0 ? 1.25 : 0.8, ...placeOf(event));
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    if (state.zoom > 1) view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    if (!view.hasPointerCapture(event.pointerId)) return;
    const box = canvas.getBoundingClientRect();
    move(-event.movementX / box.width, -event.movementY / box.height);
  });

  // ---- opening and keys ----------------------------------------------------------------------------------------

  for (const [name, colour] of data.classes) {
    const key = element("span", {}, name);
    key.prepend(mark(colour));
    $("classes-key").append(key);
  }
  if (data.classes.length && data.cases.some((item) => item.layers.includes("truth"))) {
    $("classes-key").append(element("span", {}, "dashed: truth"));
  }

  function open(item) {
    if (!item) return;
    state.item = item;
    state.slice = item.first;
    resetView();
    $("case-name").textContent = item.name;
    const address = cardOf.get(item).card.getAttribute("href");
    $("mask-file").hidden = address.startsWith("#");
    $("mask-file").href = address;
    const position = shown.findIndex((entry) => entry.item === item);
    $("position").textContent = position < 0 ? "" : `${position + 1} of ${shown.length}`;
    const there = { mask: true, truth: item.layers.includes("truth"), members: item.layers.includes("member 0") };
    there.uncertainty = there.probability = Boolean(item.slices[0].maps);
    for (const [name, box] of Object.entries(boxes)) {
      box.disabled = !there[name];
      box.parentElement.hidden = !there[name];
    }
    $("slider").hidden = item.indices[0] === null;
    $("slice").max = item.indices.length - 1;
    memberButtons(item);
    const rows = [...columns.values()].filter((column) => score(item, column) !== null);
    $("scores").replaceChildren(...rows.map((column) => {
      const row = element("tr");
      row.append(element("th", { scope: "row" }, column.label), element("td", {}, number(score(item, column))));
      return row;
    }));
    if (!dialog.open) dialog.showModal();
    draw();
    for (const beside of [position + 1, position - 1]) {
      const entry = shown[beside];
      if (position >= 0 && entry) Object.values(entry.item.slices[entry.item.first]).forEach(load);
    }
  }

  function step(by) {
    const position = shown.findIndex((entry) => entry.item === state.item);
    const entry = shown[position + by];
    if (position >= 0 && entry) open(entry.item);
  }

  function slide(to) {
    const last = state.item.indices.length - 1;
    state.slice = Math.min(Math.max(to, 0), last);
    draw();
  }

  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  $("slice").addEventListener("input", () => slide(Number($("slice").value)));
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click outside
  });
  dialog.addEventListener("close", () => {
    const entry = cardOf.get(state.item);
    const place = shown.indexOf(entry);
    if (place >= 0 && place < limit) entry.card.focus();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const part = 0.1; // of the view
    const moves = event.shiftKey
      ? {
          ArrowLeft: () => move(-part, 0),
          ArrowRight: () => move(part, 0),
          ArrowUp: () => move(0, -part),
          ArrowDown: () => move(0, part),
        }
      : {
          ArrowLeft: () => step(-1),
          ArrowRight: () => step(1),
          ArrowUp: () => slide(state.slice + 1),
          ArrowDown: () => slide(state.slice - 1),
          PageUp: () => slide(state.slice + 10),
          PageDown: () => slide(state.slice - 10),
          Home: () => slide(0),
          End: () => slide(Infinity),
        };
    const zooms = {
      "+": () => zoom(2),
      "=": () => zoom(2),
      "-": () => zoom(0.5),
      0: () => {
        resetView();
        draw();
      },
    };
    const name = Object.keys(LETTERS).find((layer) => LETTERS[layer] === event.key.toLowerCase());
    if (event.key in moves) {
      if (event.target.type === "range") return; // a slider has these keys itself
      moves[event.key]();
    } else if (event.key in zooms) zooms[event.key]();
    else if (/^[1-9]$/.test(event.key)) toggleMember(Number(event.key) - 1);
    else if (name && !boxes[name].disabled) toggle(name, !state.on[name]);
    else return;
    event.preventDefault();
  });

  $("tools").hidden = false;
  update();
})();
