// Judging the items of a review queue: one at a time, with the keyboard; every vote is kept before the next item comes.

import { element } from "./details.js";
import { get, post } from "./server.js";

const $ = (id) => document.getElementById(id);
let state = null; // what the server last said: the item, the criteria, how far it is
let ratings = []; // by criterion, null where there is none yet
let busy = false;
let who = null; // queue and annotator of what is shown

/** Whether the server has queues; fills the list of them. */
export async function findQueues() {
  const { data } = await get("/v1/reviews");
  $("review-queue").replaceChildren(
    ...data.map((queue) => {
      const option = element("option", `${queue.id} (${queue.items} items${queue.frozen ? ", frozen" : ""})`);
      option.value = queue.id;
      return option;
    }),
  );
  $("review-annotator").value ||= localStorage.getItem("likely-annotator") ?? "";
  return data.length > 0;
}

function tell(message) {
  $("review-error").textContent = message;
  $("review-error").hidden = !message;
}

async function ask(path, more = {}) {
  if (busy) return;
  busy = true;
  tell("");
  try {
    show(await post(path, { ...who, ...more }));
  } catch (error) {
    tell(error instanceof TypeError ? "The server cannot be reached; nothing of yours is lost: try again." : error.message);
  } finally {
    busy = false;
  }
}

function show(next) {
  state = next;
  ratings = next.criteria.map(() => null);
  $("review-progress").hidden = false;
  $("review-progress").max = next.items;
  $("review-progress").value = next.judged;
  $("review-count").textContent = `${next.judged} of ${next.items} judged`;
  $("review-item").hidden = !next.item || next.frozen;
  $("review-end").hidden = Boolean(next.item) && !next.frozen;
  if (next.item && !next.frozen) showItem(next);
  else showEnd(next);
}

function showItem({ item, criteria }) {
  $("review-shown").replaceChildren(
    ...Object.entries(item.shown).flatMap(([name, text]) => [element("dt", name), element("dd", text)]),
  );
  $("review-criteria").replaceChildren(
    ...criteria.map((criterion, i) => {
      const group = element("div", undefined, "criterion");
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", criterion.name);
      const row = element("div", undefined, "buttons");
      row.append(
        ...criterion.scale.map((rating) => {
          const button = element("button", String(rating));
          button.type = "button";
          button.addEventListener("click", () => rate(i, rating));
          return button;
        }),
      );
      group.append(element("p", criterion.question), row);
      return group;
    }),
  );
  $("review-reason").value = "";
  mark();
  $("review-item").focus();
}

function showEnd(next) {
  const said = next.frozen ? "This queue is frozen and takes no votes." : "Nothing is left to judge. Thank you.";
  const parts = [element("p", said)];
  if (next.agreement) {
    const table = element("table");
    table.append(element("caption", "How far the annotators agree", "muted"));
    const row = (kind, cells) => {
      const made = element("tr");
      made.append(...cells.map((cell) => element(kind, cell)));
      return made;
    };
    table.append(row("th", ["criterion", "measure", "agreement", "annotators", "items of several", "pass"]));
    for (const one of next.agreement) {
      const value = one.value === null ? "not defined" : one.value.toFixed(3);
      table.append(row("td", [one.criterion, one.measure, value, one.raters, one.items, `${(100 * one.passed).toFixed(0)} %`]));
    }
    parts.push(table);
  } else if (!next.frozen) parts.push(element("p", "Agreement is shown here once a second annotator has voted.", "muted"));
  $("review-end").replaceChildren(...parts);
  $("review-end").focus();
}

// --- ratings --------------------------------------------------------------------------------------------------------

/** The criterion that a digit rates: the first without a rating; -1: all have one. */
const open = () => ratings.indexOf(null);

function rate(i, rating) {
  ratings[i] = rating;
  mark();
}

function mark() {
  [...$("review-criteria").children].forEach((group, i) => {
    group.classList.toggle("open", i === open());
    [...group.querySelectorAll("button")].forEach((button, k) =>
      button.setAttribute("aria-pressed", String(state.criteria[i].scale[k] === ratings[i])),
    );
  });
  $("review-vote").disabled = open() >= 0;
}

function vote() {
  if (!state?.item || open() >= 0) return;
  const given = Object.fromEntries(state.criteria.map((criterion, i) => [criterion.name, ratings[i]]));
  ask("/v1/reviews/vote", { item: state.item.id, ratings: given, reason: $("review-reason").value });
}

function takeBack() {
  const given = ratings.findLastIndex((rating) => rating !== null);
  if (given >= 0) rate(given, null);
}

$("review-vote").addEventListener("click", vote);

$("review-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy) return;
  who = { queue: $("review-queue").value, annotator: $("review-annotator").value.trim() };
  localStorage.setItem("likely-annotator", $("review-annotator").value.trim());
  ask("/v1/reviews/next");
});

document.addEventListener("keydown", (event) => {
  if ($("review").hidden || $("review-item").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("review-reason")) {
    if (event.key === "Escape") $("review-item").focus();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  } else if (event.target.closest("input, select") || (event.key === "Enter" && event.target.closest("button, a"))) return;
  const i = open();
  if (event.key === "Enter") vote();
  else if (event.key === "Backspace") takeBack();
  else if (event.key === "r") $("review-reason").focus();
  else if (i >= 0 && state.criteria[i].scale.map(String).includes(event.key)) rate(i, Number(event.key));
  else return;
  event.preventDefault();
});
