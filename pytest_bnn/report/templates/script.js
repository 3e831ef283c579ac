(() => {
  "use strict";
  // All of it is convenience: without scripts everything can be read.
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const cards = all("#evidence .card");
  const groups = all("#evidence .group");
  const verdict = (card) => [...card.classList].find((name) => name.startsWith("v-")).slice(2);

  // Filters and search, above the evidence.
  const tools = () => {
    const words = ["error", "fail", "inconclusive", "warn", "not_judged", "pass", "not_applicable", "expected"];
    const known = words.filter((word) => cards.some((card) => verdict(card) === word));
    const boxes = known.map((word) => make("input", { type: "checkbox", value: word, checked: "" }));
    const verdicts = make("fieldset", {}, make("legend", {}, "Show"));
    boxes.forEach((box) => verdicts.append(make("label", {}, box, box.value.replace("_", " "))));
    const subject = make("select", {}, make("option", { value: "" }, "all subjects"));
    groups.forEach((group, index) => {
      const head = group.querySelector(".group-head");
      const named = head && [...head.children].slice(0, 2).map((part) => part.textContent.trim()).join(", ");
      subject.append(make("option", { value: String(index) }, named || "unnamed"));
    });
    const search = make("input", { type: "search" });
    const told = make("output", { "aria-live": "polite" });
    const bar = make("div", { class: "tools", role: "search", "aria-label": "Filter the evidence" }, verdicts);
    if (groups.length > 1) bar.append(make("label", {}, "of", subject));
    bar.append(make("label", {}, "with the words", search), told);
    const texts = new Map();
    const text = (card) => {
      if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
      return texts.get(card);
    };
    const apply = () => {
      const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const filtered = wanted.length > 0 || shown.size < known.length || subject.value !== "";
      let count = 0;
      groups.forEach((group, index) => {
        const here = subject.value === "" || subject.value === String(index);
        let any = false;
        all(".card", group).forEach((card) => {
          const found = here && shown.has(verdict(card)) && wanted.every((word) => text(card).includes(word));
          card.hidden = !found;
          any = any || found;
          count += found ? 1 : 0;
        });
        group.hidden = filtered && !any;
        all("details.folded", group).forEach((fold) => {
          const inside = all(".card", fold).some((card) => !card.hidden);
          fold.hidden = !inside;
          if (filtered && inside) fold.open = true;
        });
      });
      told.textContent = filtered ? `${count} of ${cards.length} shown` : "";
    };
    bar.addEventListener("input", apply);
    document.querySelector("#evidence h2").after(bar);
    return () => {
      boxes.forEach((box) => { box.checked = true; });
      subject.value = search.value = "";
      apply();
    };
  };
  const reset = cards.length > 3 ? tools() : () => {};

  // A link to a card that is hidden or folded away shows it.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.closest("[hidden]")) reset();
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    const own = target.querySelector(":scope > details");
    if (own) own.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  // Links to copy.
  cards.forEach((card) => {
    const place = card.querySelector("header") || card.querySelector("footer, p");
    if (!place || !card.id) return;
    const name = card.querySelector("code");
    const label = `Copy the link to ${name ? name.textContent : card.id}`;
    place.append(make("button", { type: "button", class: "copy", "aria-label": label }, "Copy link"));
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    event.preventDefault();
    const link = `${location.href.split("#")[0]}#${button.closest(".card").id}`;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
    } catch {
      history.replaceState(null, "", link);
      button.textContent = "In the address bar";
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 2000);
  });

  // Sorting, of tables with a head and several rows.
  const powers = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
  const value = (cell) => {
    if (cell && cell.dataset.sort) return Number(cell.dataset.sort);
    const said = cell ? cell.textContent.trim() : "";
    const plain = said.replace(/[,<\u00a0]/g, (mark) => (mark === "\u00a0" ? " " : "")).replace(/\u2212/g, "-");
    if (/^-?\u221e/.test(plain)) return plain.startsWith("-") ? -Infinity : Infinity;
    const found = plain.match(/^[+-]?\d+(?:\.\d+)?/);
    if (!found) return said === "\u2013" || said === "" ? null : said.toLowerCase();
    const power = plain.slice(found[0].length).match(/^\u00d710(\u207b?)([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)/);
    if (!power) return Number(found[0]);
    const digits = [...power[2]].map((digit) => powers.indexOf(digit)).join("");
    return Number(`${found[0]}e${power[1] ? "-" : ""}${digits}`);
  };
  const compare = (one, other) => {
    if (one === null || other === null) return (one === null) - (other === null);
    if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
    return typeof one === "number" ? -1 : 1;
  };
  all("table.layers, table.collection, table.measurements, .numbers table, table.scores").forEach((table) => {
    const body = table.tBodies[0];
    const rows = body ? [...body.rows] : [];
    if (rows.length < 3 || !table.tHead) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const order = before === null ? 1 : before === "ascending" ? -1 : 0;
        table.classList.toggle("sorted", order !== 0);
        if (!order) return body.append(...rows);
        head.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
        const keyed = rows.map((row) => [row.classList.contains("part") ? null : value(row.cells[column]), row]);
        const known = keyed.filter(([key]) => key !== null).sort((a, b) => order * compare(a[0], b[0]));
        body.append(...known.map(([, row]) => row), ...keyed.filter(([key]) => key === null).map(([, row]) => row));
      });
    });
  });

  // What a print needs is printed where it is closed too, in browsers whose styles cannot open it; or all of it.
  const whole = document.getElementById("print-all");
  if (whole && /[?&]print=all(?:&|$)/.test(location.search)) whole.checked = true;
  const signed = [".banner", ".panel", "#claims", ".card:not(.line)", ".card.effect"];
  let closed = [];
  addEventListener("beforeprint", () => {
    const printed = !whole || whole.checked ? "details" : signed.map((part) => `${part} details`).join(", ");
    closed = all(printed).filter((part) => !part.open);
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
