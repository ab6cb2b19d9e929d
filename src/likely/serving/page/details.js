// The panel that tells of one token, and the keys that move from token to token.

const panel = document.getElementById("details");
const known = new WeakMap(); // token's element -> what is told of it

export function percent(p) {
  if (p >= 0.9995) return "100 %";
  return p >= 0.1 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p.toExponential(1);
}

export function shown(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(nothing)";
}

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** about: {token, logprob, entropy, drafted, drafter, tops: [[text, logprob]]} */
export function tellOf(span, about) {
  known.set(span, about);
  const guessed = about.drafted ? ", guessed and kept" : "";
  span.setAttribute("aria-label", `${shown(about.token)}, ${percent(Math.exp(about.logprob))}${guessed}`);
}

function show(span) {
  const about = known.get(span);
  if (!about) return;
  const p = Math.exp(about.logprob);
  panel.replaceChildren(element("h2", shown(about.token)));
  panel.append(element("p", `probability ${percent(p)}, log-probability ${about.logprob.toFixed(3)} nats`));
  if (about.entropy != null) panel.append(element("p", `entropy here ${about.entropy.toFixed(3)} nats`));
  panel.append(
    element("p", about.drafted ? `guessed by the drafter${about.drafter ? ` (${about.drafter})` : ""}, kept by the model` : "written by the model"),
  );
  if (about.tops.length) {
    const table = element("table");
    table.append(element("caption", "Most likely here", "muted"));
    for (const [text, logprob] of about.tops) {
      const row = element("tr");
      const meter = element("meter");
      meter.value = Math.exp(logprob);
      meter.setAttribute("aria-hidden", "true");
      const bar = element("td");
      bar.append(meter);
      row.append(element("td", shown(text)), bar, element("td", percent(Math.exp(logprob)), "n"));
      table.append(row);
    }
    panel.append(table);
  }
  panel.hidden = false;
}

/** Hover, focus and arrow keys over the tokens inside `box`. */
export function watch(box) {
  box.addEventListener("mouseover", (event) => show(event.target));
  box.addEventListener("mouseleave", () => {
    if (!box.contains(document.activeElement)) panel.hidden = true;
  });
  box.addEventListener("focusin", (event) => show(event.target));
  box.addEventListener("focusout", () => (panel.hidden = true));
  box.addEventListener("click", (event) => {
    if (known.has(event.target)) event.target.focus();
  });
  box.addEventListener("keydown", (event) => {
    const from = event.target;
    if (!known.has(from)) return;
    const all = [...from.parentElement.querySelectorAll(".t")];
    const at = all.indexOf(from);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") from.blur();
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    from.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
}
