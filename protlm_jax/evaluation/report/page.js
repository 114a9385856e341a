// What a pointer can ask of the charts. Without it the page shows the same numbers: charts are
// drawn whole, and words on a mark are the browser's own tooltip.
"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const REACH = 36; // pixels around a pointer in which a curve's point is looked for

  // Words on marks, shown at once and on touch.
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let near = null;

  function words(mark) {
    const title = mark.querySelector(":scope > title");
    if (title) {
      mark.dataset.words = title.textContent;
      mark.setAttribute("aria-label", title.textContent);
      title.remove(); // or the browser would say it a second time
    }
    return mark.dataset.words;
  }

  function closest(svg, event) {
    let best = null, least = REACH;
    for (const dot of all(".dot", svg)) {
      if (dot.closest(".away")) continue;
      const box = dot.getBoundingClientRect();
      const away = Math.hypot(
        box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [best, least] = [dot, away];
    }
    return best;
  }

  function point(event) {
    const svg = event.target.closest && event.target.closest("svg");
    const mark = svg && (closest(svg, event) || event.target);
    const text = mark && mark !== svg && words(mark);
    if (near && near !== mark) near.classList.remove("near");
    near = mark;
    tip.hidden = !text;
    if (!text) return;
    mark.classList.add("near");
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX - width / 2, above = event.clientY - height - 14;
    tip.style.left = `${Math.max(6, Math.min(left, innerWidth - width - 6))}px`;
    tip.style.top = `${above < 6 ? event.clientY + 18 : above}px`;
  }
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, point);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // A click on a legend hides a series in every chart of its section.
  const keys = all("svg + .legend > span");
  for (const key of keys) {
    key.tabIndex = 0;
    key.setAttribute("role", "button");
    key.setAttribute("aria-pressed", "true");
    key.onclick = () => {
      const shown = key.getAttribute("aria-pressed") !== "true";
      for (const other of all("svg + .legend > span", key.closest("section"))) {
        if (other.textContent !== key.textContent) continue;
        other.setAttribute("aria-pressed", shown);
        const svg = other.parentElement.previousElementSibling;
        const index = [...other.parentElement.children].indexOf(other);
        for (const mark of all(`[data-s="${index}"]`, svg)) mark.classList.toggle("away", !shown);
      }
    };
    key.onkeydown = event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      key.click();
    };
  }

  // Heat maps of a group share their colours: means or largest values, evenly or by magnitude.
  const short = x => x === 0 ? "0" : Number(x.toPrecision(2)).toString();

  function paint(group, choice) {
    const cells = all(".cell", group);
    const value = cell => Number(cell.dataset[choice.of] ?? cell.dataset.mean);
    const values = cells.map(value).filter(x => x > 0);
    const most = values.reduce((a, b) => Math.max(a, b), 0) || 1;
    const least = Math.max(values.reduce((a, b) => Math.min(a, b), most), most / 1e4);
    const log = choice.scale === "log" && least < most;
    for (const cell of cells) {
      const x = value(cell);
      const share = log ? Math.max(0, Math.log(x / least) / Math.log(most / least)) : x / most;
      cell.style.fillOpacity = 0.05 + 0.95 * Math.max(0, share || 0);
      const text = cell.nextElementSibling;
      if (!text || !text.classList.contains("value")) continue;
      text.textContent = short(x);
      text.classList.toggle("on", share > 0.55);
      text.classList.toggle("off", share <= 0.55);
    }
    const ends = all(".scale span", group);
    if (ends.length) {
      ends[0].textContent = log ? short(least) : "0";
      ends[1].textContent = short(most);
    }
  }

  for (const group of all(".heats")) {
    const choices = { scale: ["linear", "log"] };
    if (group.querySelector("[data-largest]")) choices.of = ["mean", "largest"];
    const choice = { scale: "linear", of: "mean" };
    const bar = document.createElement("div");
    bar.className = "switches";
    for (const [name, options] of Object.entries(choices)) {
      const set = bar.appendChild(document.createElement("span"));
      const buttons = options.map(option => {
        const button = set.appendChild(document.createElement("button"));
        button.type = "button";
        button.textContent = option;
        button.setAttribute("aria-pressed", option === choice[name]);
        button.onclick = () => {
          choice[name] = option;
          for (const b of buttons) b.setAttribute("aria-pressed", b === button);
          paint(group, choice);
        };
        return button;
      });
    }
    group.prepend(bar);
  }
  document.documentElement.dataset.script = `${keys.length} keys`; // it ran to its end
})();
