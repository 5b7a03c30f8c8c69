"use strict";
// The gallery of a report: cards to sort, filter and open, by pointer or keyboard.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const columns = new Map(data.columns.map((column) => [column.key, column]));
  const COLOURS = { mask: "#ff4040", truth: "#40ff60", member: "#50beff" };

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  }

  function number(value) {
    if (value === undefined || value === null) return "–";
    if (Number.isInteger(value)) return String(value);
    return Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) >= 1 ? value.toFixed(2) : value.toFixed(3);
  }

  // ---- cards ---------------------------------------------------------------------------------------------------

  const gallery = $("gallery");
  const shownFirst = data.columns.slice(0, 2).map((column) => column.key);
  const cards = data.cases.map((item) => {
    const card = element("button", { type: "button", class: "card", tabindex: "-1" });
    const summary = shownFirst
      .filter((key) => key in item.scores)
      .map((key) => `${columns.get(key).label} ${number(item.scores[key])}`);
    if (item.empty) summary.push(`${item.empty} empty`);
    if (item.indices[0] !== null) summary.push(`${item.depth} slices`);
    card.setAttribute("aria-label", `${item.name}: ${summary.join(", ") || "no figures"}`);
    const picture = element("img", { src: item.pictures.card, alt: "", loading: "lazy", decoding: "async" });
    [picture.height, picture.width] = item.card;
    const line = element("span", { class: "line" });
    line.append(element("span", { class: "name" }, item.name), element("span", { class: "values" }, summary.join("  ")));
    card.append(picture, line);
    card.addEventListener("click", () => open(item));
    card.addEventListener("focus", () => makeActive(card));
    const holder = element("div", { role: "listitem" });
    holder.append(card);
    return { item, card, holder };
  });
  const cardOf = new Map(cards.map((entry) => [entry.item, entry]));
  let shown = cards;
  let active = null;

  function makeActive(card) {
    if (active) active.tabIndex = -1;
    active = card;
    if (active) active.tabIndex = 0;
  }

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
      const value = item.scores[column.key];
      return value !== undefined && (low === null || value >= low) && (high === null || value <= high);
    });
    const compareNames = (a, b) => a.item.name.localeCompare(b.item.name, undefined, { numeric: true });
    const sign = (column && column.worst === "high" ? -1 : 1) * (worstFirst ? 1 : -1);
    shown.sort((a, b) => {
      if (!column) return compareNames(a, b) * (worstFirst ? 1 : -1);
      const [x, y] = [a.item.scores[column.key], b.item.scores[column.key]];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || compareNames(a, b);
      return sign * (x - y) || compareNames(a, b);
    });
    gallery.replaceChildren(...shown.map(({ holder }) => holder));
    makeActive(shown.length ? shown[0].card : null);
    $("count").textContent = shown.length === cards.length ? `${cards.length} cases` : `${shown.length} of ${cards.length} cases`;
    for (const id of ["from", "to"]) $(id).disabled = !column;
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
      update();
      $("cases").scrollIntoView();
    });
  }

  gallery.addEventListener("keydown", (event) => {
    const index = shown.findIndex(({ card }) => card === document.activeElement);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const top = shown[0].holder.offsetTop;
    const after = shown.findIndex(({ holder }) => holder.offsetTop > top);
    const across = after < 0 ? shown.length : after;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -index, End: shown.length - 1 - index };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = index + steps[event.key];
    if (to >= 0 && to < shown.length) shown[to].card.focus();
  });

  const legend = $("legend");
  const key = (colour, text) => {
    const mark = element("span", { class: "mark" });
    mark.style.background = colour;
    legend.append(mark, document.createTextNode(`${text}  `));
  };
  legend.append(document.createTextNode("Each card: image, outlines, members, uncertainty. "));
  if (data.classes.length) {
    for (const [name, colour] of data.classes) key(colour, name);
    legend.append(document.createTextNode("(dashed: truth)"));
  } else {
    key(COLOURS.mask, "mask");
    if (data.cases.some((item) => item.layers.includes("truth"))) key(COLOURS.truth, "truth");
    if (data.cases.some((item) => item.layers.includes("member 0"))) key(COLOURS.member, "members");
  }

  // ---- one case ------------------------------------------------------------------------------------------------

  const dialog = $("case");
  const canvas = $("canvas");
  const state = { item: null, slice: 0, on: { mask: true, truth: true, members: false, uncertainty: false, probability: false }, member: null };
  const LETTERS = { mask: "m", truth: "t", members: "e", uncertainty: "u", probability: "p" };
  const boxes = {};
  for (const [name, letter] of Object.entries(LETTERS)) {
    const label = element("label", { class: name });
    boxes[name] = element("input", { type: "checkbox" });
    boxes[name].addEventListener("change", () => toggle(name, boxes[name].checked));
    label.append(boxes[name], document.createTextNode(` ${name} `), element("kbd", {}, letter));
    $("layers").append(label);
  }

  function toggle(name, on) {
    state.on[name] = on;
    // Two soft maps on top of each other are unreadable.
    if (on && name === "uncertainty") state.on.probability = false;
    if (on && name === "probability") state.on.uncertainty = false;
    draw();
  }

  const loaded = new Map();
  function load(source) {
    if (!source) return Promise.resolve(null);
    if (!loaded.has(source)) {
      if (loaded.size > 200) loaded.clear();
      loaded.set(source, new Promise((resolve) => {
        const picture = new Image();
        picture.onload = () => resolve(picture);
        picture.onerror = () => resolve(null);
        picture.src = source;
      }));
    }
    return loaded.get(source);
  }

  let drawing = 0;
  async function draw() {
    const { item, slice, on } = state;
    const mine = ++drawing;
    const sources = item.pictures.slices[slice];
    const [image, lines, maps] = await Promise.all([sources.image, sources.lines, sources.maps].map(load));
    if (mine !== drawing) return;
    const [height, width] = item.size;
    const factor = Math.max(1, Math.ceil(720 / Math.max(height, width)));
    canvas.width = width * factor;
    canvas.height = height * factor;
    const pen = canvas.getContext("2d");
    const tile = (picture, index, count, smooth, alpha = 1) => {
      if (!picture) return;
      const across = picture.naturalWidth / count;
      pen.imageSmoothingEnabled = smooth;
      pen.globalAlpha = alpha;
      pen.drawImage(picture, index * across, 0, across, picture.naturalHeight, 0, 0, canvas.width, canvas.height);
    };
    tile(image, 0, 1, image && image.naturalWidth >= 200);
    if (on.uncertainty) tile(maps, 0, 2, true, 0.75);
    if (on.probability) tile(maps, 1, 2, true, 0.75);
    item.layers.forEach((layer, index) => {
      const member = layer.startsWith("member ");
      const alone = state.member !== null;
      const visible = member ? (alone ? layer === `member ${state.member}` : on.members) : on[layer] && !(alone && layer === "mask");
      if (visible) tile(lines, index, item.layers.length, false);
    });
    pen.globalAlpha = 1;
    for (const [name, box] of Object.entries(boxes)) box.checked = on[name];
    describeView();
  }

  function describeView() {
    const { item, slice } = state;
    const visible = Object.keys(state.on).filter((name) => state.on[name] && !boxes[name].disabled);
    canvas.setAttribute("aria-label", `${item.name}, with ${visible.join(", ") || "nothing"} drawn over it`);
    const index = item.indices[slice];
    if (index === null) return;
    const part = item.indices.length < item.depth ? ` (${item.indices.length} slices shown)` : "";
    $("slice-text").textContent = `Slice ${index + 1} of ${item.depth}${part}`;
    $("slice").value = slice;
    $("slice").setAttribute("aria-valuetext", `slice ${index + 1} of ${item.depth}`);
  }

  function open(item) {
    if (!item) return;
    state.item = item;
    state.slice = item.first;
    state.member = null;
    $("case-name").textContent = item.name;
    const position = shown.findIndex((entry) => entry.item === item);
    $("position").textContent = position < 0 ? "" : `${position + 1} of ${shown.length}`;
    const there = { mask: true, truth: item.layers.includes("truth"), members: item.layers.includes("member 0") };
    there.uncertainty = there.probability = Boolean(item.pictures.slices[0].maps);
    for (const [name, box] of Object.entries(boxes)) {
      box.disabled = !there[name];
      box.parentElement.hidden = !there[name];
    }
    $("slider").hidden = item.indices[0] === null;
    $("slice").max = item.indices.length - 1;
    memberButtons(item);
    $("scores").replaceChildren(...data.columns.filter((column) => column.key in item.scores).map((column) => {
      const row = element("tr");
      row.append(element("th", { scope: "row" }, column.label), element("td", {}, number(item.scores[column.key])));
      return row;
    }));
    if (!dialog.open) dialog.showModal();
    draw();
    for (const beside of [position + 1, position - 1]) {
      const entry = shown[beside];
      if (position >= 0 && entry) Object.values(entry.item.pictures.slices[entry.item.first]).forEach(load);
    }
  }

  // One button for each member: hover or focus shows this member alone, a click pins it.
  function memberButtons(item) {
    const members = item.layers.filter((layer) => layer.startsWith("member "));
    $("members").hidden = !members.length;
    let kept = null;
    $("members").querySelector("div").replaceChildren(...members.map((layer, index) => {
      const button = element("button", { type: "button", "aria-pressed": "false", title: layer }, String(index));
      button.setAttribute("aria-label", `Show ${layer} alone`);
      const show = (member) => {
        if (state.member === member) return;
        state.member = member;
        draw();
      };
      button.addEventListener("mouseenter", () => show(index));
      button.addEventListener("focus", () => show(index));
      button.addEventListener("mouseleave", () => show(kept));
      button.addEventListener("blur", () => show(kept));
      button.addEventListener("click", () => {
        kept = kept === index ? null : index;
        for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button && kept !== null));
        show(kept);
      });
      return button;
    }));
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
  canvas.addEventListener("wheel", (event) => {
    if (state.item.indices[0] === null) return;
    event.preventDefault();
    slide(state.slice + Math.sign(event.deltaY));
  }, { passive: false });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click outside
  });
  dialog.addEventListener("close", () => {
    const entry = cardOf.get(state.item);
    if (entry && shown.includes(entry)) entry.card.focus();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      ArrowUp: () => slide(state.slice + 1),
      ArrowDown: () => slide(state.slice - 1),
      PageUp: () => slide(state.slice + 10),
      PageDown: () => slide(state.slice - 10),
      Home: () => slide(0),
      End: () => slide(Infinity),
    };
    const name = Object.keys(LETTERS).find((layer) => LETTERS[layer] === event.key.toLowerCase());
    if (event.key in moves) moves[event.key]();
    else if (name && !boxes[name].disabled) toggle(name, !state.on[name]);
    else return;
    event.preventDefault();
  });

  update();
})();
