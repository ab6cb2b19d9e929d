// What the server is doing, once a second while the page is looked at.

import { get } from "./server.js";

const shownAt = (name) => document.getElementById(`load-${name}`);
let before = null;

function numbers(text) {
  const found = {};
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const [name, value] = line.split(/\s+(?=[^\s]+$)/);
    const bare = name.replace(/\{.*\}$/, "");
    found[bare] = (found[bare] ?? 0) + Number(value);
  }
  return found;
}

async function look() {
  if (document.hidden) return;
  try {
    const health = await get("/health");
    shownAt("running").textContent = health.running;
    shownAt("waiting").textContent = Math.max(0, health.requests - health.running);
    const now = { at: performance.now(), ...numbers(await get("/metrics")) };
    if (before) {
      const more = (name) => (now[`likely:${name}_total`] ?? 0) - (before[`likely:${name}_total`] ?? 0);
      const drafted = more("spec_decode_num_draft_tokens");
      const kept = more("spec_decode_num_accepted_tokens");
      const speed = more("generation_tokens") / ((now.at - before.at) / 1000);
      shownAt("speed").textContent = speed < 10 ? speed.toFixed(1) : speed.toFixed(0);
      if (drafted > 0) shownAt("kept").textContent = `${((100 * kept) / drafted).toFixed(0)} %`;
    }
    if ("likely:speculation_length" in now) shownAt("length").textContent = now["likely:speculation_length"].toFixed(1);
    before = now;
  } catch {
    shownAt("running").textContent = "–"; // it is gone, or wants a key
  }
}

export function watchLoad() {
  look();
  setInterval(look, 1000);
}
