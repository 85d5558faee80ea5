"use strict";
// What a page's controls do. Without this script the page is whole, and has no controls.

(() => {
  const THEME = "latentmill-theme";

  function stored() {
    try { return localStorage.getItem(THEME) || "auto"; } catch { return "auto"; }
  }

  function applyTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  function themeControl() {
    const control = document.querySelector("[data-theme-control]");
    control.hidden = false;
    for (const radio of control.querySelectorAll("input")) {
      radio.checked = radio.value === stored();
      radio.addEventListener("change", () => {
        applyTheme(radio.value);
        try { localStorage.setItem(THEME, radio.value); } catch { /* a page that may store nothing keeps it until it is closed */ }
      });
    }
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(name, "");
      else if (value !== false) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // Galleries: cards are hidden by the filters, and moved into the first list where an order is chosen.

  function gallery(root) {
    const controls = root.querySelector(".controls");
    const groups = [...root.querySelectorAll(".group")].map((group) => {
      const list = group.querySelector(".cards");
      return { group, list, cards: [...list.children] };
    });
    const cards = groups.flatMap(({ cards }) => cards);
    for (const card of cards) enlargeable(card, () => [...root.querySelectorAll(".card:has(.view)")].filter((one) => !one.hidden));
    if (!controls) return;
    const text = controls.querySelector("[data-text]");
    const order = controls.querySelector("[data-order]");
    const filters = [...controls.querySelectorAll("[data-filter]")];
    const count = controls.querySelector("[data-count]");
    const words = new Map(cards.map((card) => [card, textOf(card)]));

    function wanted(card) {
      const values = JSON.parse(card.dataset.groups || "{}");
      return filters.every((filter) => !filter.value || values[filter.dataset.filter] === filter.value)
        && words.get(card).includes(text.value.trim().toLowerCase());
    }

    function arrange() {
      const compare = comparison(order.value);
      for (const { list, cards: own } of groups) if (!compare) list.append(...own);
      if (compare) groups[0].list.append(...[...cards].sort(compare));
    }

    function update() {
      const chosen = cards.filter((card) => { card.hidden = !wanted(card); return !card.hidden; });
      for (const { group, list } of groups) {
        group.hidden = ![...list.children].some((card) => !card.hidden);
        for (const part of group.children) if (part !== list) part.hidden = order.value !== "";
      }
      count.textContent = chosen.length === cards.length ? `${cards.length} shown` : `${chosen.length} of ${cards.length} shown`;
    }

    for (const filter of [...filters, text]) filter.addEventListener("input", update);
    order.addEventListener("change", () => { arrange(); update(); });
    controls.hidden = false;
    for (const filter of filters) filter.value = "";
    text.value = order.value = "";
  }

  function textOf(card) {
    const captions = [...card.querySelectorAll(".caption-text")].map((caption) => caption.textContent);
    const groups = Object.values(JSON.parse(card.dataset.groups || "{}"));
    return [card.dataset.name, ...groups, ...captions].join("\n").toLowerCase();
  }

  function comparison(order) {
    if (!order) return null;
    if (order === "name") return (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true });
    const cut = order.lastIndexOf(":");
    const [name, sign] = [order.slice(0, cut), order.endsWith(":up") ? 1 : -1];
    const value = (card) => JSON.parse(card.dataset.sort || "{}")[name];
    return (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
      return sign * (left - right);
    };
  }

  // The viewer: one dialog for all cards of the page.

  let viewer = null;

  function enlargeable(card, others) {
    for (const view of card.querySelectorAll(".view")) {
      const frame = view.querySelector(".frame");
      const label = `Enlarge: ${card.dataset.name}, ${view.dataset.label}`;
      const button = element("button", { type: "button", class: "enlarge", "aria-label": label });
      button.append(...frame.childNodes);
      frame.append(button);
      button.addEventListener("click", () => {
        viewer ??= makeViewer();
        viewer.open(card, view.dataset.label, others(), button);
      });
    }
  }

  function addressOf(view) {
    const image = view.querySelector("img");
    if (image) return image.src;
    return document.querySelector(view.querySelector("use").getAttribute("href")).getAttribute("href");
  }

  function viewsOf(card) {
    return [...card.querySelectorAll(".view")].map((view) => ({
      label: view.dataset.label,
      address: addressOf(view),
      alt: view.querySelector("img")?.alt ?? view.querySelector("svg").getAttribute("aria-label"),
      base: "base" in view.dataset,
      compare: "compare" in view.dataset,
      note: (view.querySelector(".view-note")?.textContent ?? "").replaceAll("\n", ", "),
    }));
  }

  function segments(name, legend, options, change, more = "") {
    const set = element("fieldset", { class: `segments ${more}` }, element("legend", { class: "sr" }, legend));
    for (const [value, text] of options) {
      const radio = element("input", { type: "radio", name, value });
      radio.addEventListener("change", () => change(value));
      set.append(element("label", {}, radio, element("span", {}, text)));
    }
    return set;
  }

  function makeViewer() {
    const title = element("h2", { id: "viewer-title", tabindex: "-1" });
    const detail = element("p", { role: "status" });
    const stage = element("div", { class: "stage" });
    const range = element("input", { type: "range", min: "0", max: "100", value: "50" });
    const slider = element("label", { class: "slider" }, element("span", {}), range, element("span", {}));
    const views = element("div", { class: "views-holder" });
    const close = element("button", { type: "button" }, "Close");
    const previous = element("button", { type: "button" }, "Previous");
    const next = element("button", { type: "button" }, "Next");
    const modes = segments("viewer-mode", "Compare", [["off", "Off"], ["slide", "Slide"], ["difference", "Difference × 8"]], (mode) => { state.mode = mode; draw(); });
    const bar = element("div", { class: "viewer-bar" }, element("div", {}, title, detail), close);
    const controls = element("div", { class: "viewer-controls" }, views, modes, slider, element("div", { class: "steps" }, previous, " ", next));
    const dialog = element("dialog", { "aria-labelledby": "viewer-title" }, element("div", { class: "viewer" }, bar, stage, controls));
    const state = { cards: [], at: 0, label: "", mode: "off", opener: null };
    document.body.append(dialog);

    function chosen() {
      const all = viewsOf(state.cards[state.at]);
      return { all, view: all.find(({ label }) => label === state.label) ?? all[0], base: all.find(({ base }) => base) };
    }

    function drawViews(all) {
      const focused = views.contains(document.activeElement);
      views.replaceChildren(segments("viewer-view", "Picture", all.map(({ label }) => [label, label]), (label) => { state.label = label; draw(); }, "views-of"));
      for (const radio of views.querySelectorAll("input")) {
        radio.checked = radio.value === state.label;
        if (focused && radio.checked) radio.focus();
      }
    }

    function draw() {
      const { all, view, base } = chosen();
      const mode = view.compare && base ? state.mode : "off";
      const under = element("img", { src: mode === "off" ? view.address : base.address, alt: mode === "off" ? view.alt : base.alt });
      stage.className = `stage ${mode}`;
      stage.replaceChildren(under);
      if (mode !== "off") stage.append(element("img", { src: view.address, alt: view.alt, class: "over" }));
      if (mode === "slide") stage.append(element("div", { class: "handle" }));
      slider.hidden = mode !== "slide";
      [slider.firstChild.textContent, slider.lastChild.textContent] = [base?.label ?? "", view.label];
      for (const radio of modes.querySelectorAll("input")) {
        radio.checked = radio.value === mode;
        radio.disabled = !(view.compare && base);
      }
      modes.hidden = !base || !all.some(({ compare }) => compare);
      title.textContent = state.cards[state.at].dataset.name;
      detail.textContent = [`${state.at + 1} of ${state.cards.length}`, view.label, view.note].filter(Boolean).join(" · ");
      previous.disabled = state.at === 0;
      next.disabled = state.at === state.cards.length - 1;
      slide();
    }

    function slide() {
      const over = stage.querySelector(".over");
      if (!over || !over.naturalWidth) return over?.addEventListener("load", slide, { once: true });
      const box = stage.getBoundingClientRect();
      const width = Math.min(box.width, box.height * over.naturalWidth / over.naturalHeight);
      const place = (box.width - width) / 2 + width * range.value / 100;
      stage.style.setProperty("--cut-at", `${place}px`);
    }

    function move(by) {
      const at = state.at + by;
      if (at < 0 || at >= state.cards.length) return;
      state.at = at;
      const { all, view } = chosen();
      state.label = view.label;
      drawViews(all);
      draw();
      if (document.activeElement.disabled) title.focus();
    }

    range.addEventListener("input", slide);
    addEventListener("resize", slide);
    close.addEventListener("click", () => dialog.close());
    previous.addEventListener("click", () => move(-1));
    next.addEventListener("click", () => move(1));
    dialog.addEventListener("close", () => state.opener?.focus());
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      move(step);
    });
    return {
      open(card, label, cards, opener) {
        Object.assign(state, { cards, at: cards.indexOf(card), label, opener });
        const { all, view } = chosen();
        state.label = view.label;
        drawViews(all);
        dialog.showModal();
        draw();
        title.focus();
      },
    };
  }

  // A table that fits needs no stop of the Tab key to be scrolled by.

  function scrollStops() {
    const observer = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
        else target.removeAttribute("tabindex");
      }
    });
    for (const scroll of document.querySelectorAll(".scroll")) observer.observe(scroll);
  }

  applyTheme(stored());
  addEventListener("DOMContentLoaded", () => {
    themeControl();
    scrollStops();
    for (const root of document.querySelectorAll("[data-gallery]")) gallery(root);
  });
})();
