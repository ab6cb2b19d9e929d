// One answer as it is written: coloured tokens, then what is known of the whole.

import { element, percent, tellOf } from "./details.js";

const LEVELS = [0.9, 0.5, 0.2, 0.05, 0.01];

export function level(logprob) {
  const p = Math.exp(logprob);
  const found = LEVELS.findIndex((least) => p >= least);
  return found < 0 ? LEVELS.length : found;
}

export class Answer {
  constructor(number, of, drafter) {
    this.drafter = drafter;
    this.box = element("article", undefined, "answer");
    this.box.setAttribute("aria-label", of > 1 ? `Answer ${number} of ${of}` : "Answer");
    this.text = element("div", undefined, "text");
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", "Text; the arrow keys go from token to token");
    this.facts = element("div", undefined, "facts");
    this.box.append(this.text, this.facts);
    this.refused = false;
    this.content = ""; // what the answer says, without control tokens
    this.sum = 0;
    this.count = 0;
    this.drafted = 0;
    this.decoder = new TextDecoder(); // a character may be cut between two tokens
  }

  /** entries as logprobs.content of a chat has them */
  add(entries, { prompt = false } = {}) {
    for (const entry of entries) {
      const piece = entry.bytes ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
      const span = element("span", piece, `t p${entry.logprob === null ? 0 : level(entry.logprob)}`);
      span.tabIndex = this.text.childElementCount ? -1 : 0;
      if (entry.drafted) span.classList.add("drafted");
      if (prompt) span.classList.add("prompt");
      if (entry.logprob !== null) {
        const tops = (entry.top_logprobs ?? []).map((top) => [top.token, top.logprob]);
        tellOf(span, { ...entry, drafter: this.drafter, tops });
        if (!prompt) {
          this.sum += entry.logprob;
          this.count += 1;
          this.drafted += entry.drafted ? 1 : 0;
        }
      }
      this.text.append(span);
    }
  }

  /** The token that ended the text is no part of it. */
  markEnd() {
    const last = this.text.lastElementChild;
    if (last && !this.content.endsWith(last.textContent)) last.classList.add("control");
  }

  finish(choice) {
    const facts = [];
    if (choice.confidence != null) facts.push(["confidence", percent(choice.confidence)]);
    if (this.count) {
      facts.push(["log p", `${this.sum.toFixed(2)} nats`]);
      facts.push(["per token", percent(Math.exp(this.sum / this.count))]);
      facts.push(["tokens", String(this.count)]);
      if (this.drafted) facts.push(["guessed", percent(this.drafted / this.count)]);
    }
    if (choice.answered_by) facts.push(["answered by", choice.answered_by]);
    facts.push(["ended by", choice.stop_reason ?? choice.finish_reason]);
    if (choice.abstained) facts.push(["not given", choice.why ?? ""]);
    this.facts.replaceChildren(...facts.map(([name, value]) => element("span", `${name}: ${value}`)));
    if (choice.fields?.length) this.box.append(fieldsTable(choice.fields));
    if (choice.finish_reason === "stop" && !choice.stop_reason) this.markEnd();
  }
}

function fieldsTable(fields) {
  const table = element("table", undefined, "fields");
  table.append(element("caption", "Values and how sure the model was of each", "muted"));
  const head = element("tr");
  for (const name of ["field", "value", "p", "least token"]) head.append(element("th", name));
  table.append(head);
  for (const field of fields) {
    const row = element("tr");
    const free = field.n_free_tokens > 0;
    row.append(element("td", field.pointer || "/"), element("td", field.text));
    row.append(element("td", free ? percent(Math.exp(field.guided_logprob)) : "nothing to choose", "n"));
    row.append(element("td", free ? percent(field.min_probability) : "", "n"));
    table.append(row);
  }
  return table;
}

/** The block of a text completion as entries of a chat. */
export function entriesOf(block) {
  return block.tokens.map((token, i) => ({
    token,
    bytes: token.startsWith("bytes:") ? bytesOf(token) : null,
    logprob: block.token_logprobs[i],
    entropy: block.entropies?.[i] ?? null,
    drafted: block.drafted?.[i] ?? false,
    top_logprobs: Object.entries(block.top_logprobs?.[i] ?? {})
      .map(([text, logprob]) => ({ token: text, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

function bytesOf(name) {
  return [...name.matchAll(/\\x([0-9a-f]{2})/g)].map((found) => parseInt(found[1], 16));
}
