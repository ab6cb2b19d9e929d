// The page: what is typed becomes a request, what streams in becomes answers.

import { Answer, entriesOf } from "./answer.js";
import { element, watch } from "./details.js";
import { watchLoad } from "./load.js";
import { findQueues } from "./review.js";
import { get, ServerError, stream, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);
let mode = "chat";
let history = []; // messages of the conversation, without the system message
let running = null; // AbortController of the request on its way
let asksConfidence = true; // until the server says that it knows of none

// --- look -----------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];

function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  localStorage.setItem("likely-theme", name);
}

$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});

$("colours").addEventListener("change", (event) => $("answers").classList.toggle("coloured", event.target.checked));

const MODES = ["chat", "complete", "review"];

function setMode(name) {
  if (running) return;
  mode = name;
  document.body.className = name;
  for (const each of MODES) {
    $(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  $("review").hidden = name !== "review";
  for (const each of ["answers", "ask", "legend", "status"]) $(each).hidden = name === "review";
  if (name === "review") return clear();
  $("answers").setAttribute("aria-labelledby", `tab-${name}`);
  $("question-label").textContent = name === "chat" ? "Message" : "Text to go on with";
  $("send").textContent = name === "chat" ? "Send" : "Go on";
  clear();
}

for (const name of MODES) {
  $(`tab-${name}`).addEventListener("click", () => setMode(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const there = MODES.filter((each) => !$(`tab-${each}`).hidden);
    setMode(there[(there.indexOf(name) + step + there.length) % there.length]);
    $(`tab-${mode}`).focus();
  });
}

function clear() {
  history = [];
  $("answers").replaceChildren();
  $("status").textContent = "";
  showError("");
}

$("clear").addEventListener("click", () => {
  running?.abort();
  clear();
  $("question").focus();
});

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

// --- requests -------------------------------------------------------------------------------------------------------

function settings() {
  const body = {
    temperature: Number($("temperature").value),
    top_p: Number($("top-p").value),
    max_tokens: Number($("max-tokens").value),
    n: Number($("n").value),
    token_details: true,
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  if ($("drafter").value) body.drafter = $("drafter").value;
  const schema = $("schema").value.trim();
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed(schema) } };
  else body.stop_repetition = true;
  return body;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is no JSON: ${error.message}`);
  }
}

function request(question) {
  const body = settings();
  if (mode === "complete") {
    return ["/v1/completions", { ...body, prompt: question, logprobs: 5, echo: $("echo").checked }];
  }
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...history, { role: "user", content: question }];
  const confidence = asksConfidence ? { confidence: true } : {};
  return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: 5, ...confidence }];
}

function turn(question, n) {
  const box = element("section", undefined, "turn");
  box.setAttribute("aria-label", "Question and answers");
  const side = element("div", undefined, "side");
  const answers = Array.from({ length: n }, (_, i) => new Answer(i + 1, n, $("drafter").value));
  side.append(...answers.map((answer) => answer.box));
  box.append(element("p", question, "asked"), side);
  watch(side);
  if (mode === "complete") $("answers").replaceChildren();
  $("answers").append(box);
  return answers;
}

function receive(answer, choice) {
  if (mode === "chat") {
    answer.content += choice.delta.content ?? "";
    answer.refused ||= Boolean(choice.delta.refusal); // why is told at the end
    const entries = choice.logprobs?.content;
    if (entries?.length) answer.add(entries);
    else if (choice.delta.content) answer.text.append(choice.delta.content);
  } else {
    const prompt = !answer.begun && $("echo").checked;
    answer.begun = true;
    answer.content += choice.text;
    if (choice.logprobs) answer.add(entriesOf(choice.logprobs), { prompt });
  }
  if (choice.finish_reason) answer.finish(choice);
}

function offerChoice(question, answers) {
  const choose = (chosen) => {
    history = history.slice(0, at).concat({ role: "user", content: question }, { role: "assistant", content: chosen.content });
    for (const answer of answers) answer.box.classList.toggle("chosen", answer === chosen && answers.length > 1);
  };
  const at = history.length;
  const given = answers.filter((answer) => !answer.refused); // a refusal is nothing that the model said
  if (given.length) choose(given[0]);
  if (given.length < 2) return;
  for (const answer of given) {
    const button = element("button", "Go on from this one");
    button.type = "button";
    button.addEventListener("click", () => choose(answer));
    answer.facts.append(button);
  }
}

async function ask(question) {
  showError("");
  const [path, body] = request(question);
  const answers = turn(question, body.n);
  const begun = performance.now();
  let first = null;
  let usage = null;
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "Waiting for the first token";
  try {
    for await (const event of stream(path, body, running.signal)) {
      for (const warning of event.warnings ?? []) showError(warning);
      for (const choice of event.choices) receive(answers[choice.index], choice);
      if (first === null && event.choices.some((choice) => choice.logprobs)) {
        first = performance.now();
        $("status").textContent = "Writing";
      }
      usage = event.usage ?? usage;
    }
    const seconds = (performance.now() - begun) / 1000;
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    $("status").textContent =
      `${usage?.completion_tokens ?? 0} tokens in ${seconds.toFixed(1)} s` +
      (first === null ? "" : `, the first after ${((first - begun) / 1000).toFixed(2)} s`) +
      (cached ? `; ${cached} of ${usage.prompt_tokens} prompt tokens were known` : "");
    if (mode === "chat") offerChoice(question, answers);
    $("question").value = mode === "chat" ? "" : question;
  } catch (error) {
    if (error.name === "AbortError") {
      $("status").textContent = "Stopped";
      for (const answer of answers) if (!answer.facts.textContent) answer.finish({ finish_reason: "you" });
      if (mode === "chat" && answers[0].content) offerChoice(question, answers);
    } else if (error instanceof ServerError && asksConfidence && error.status === 400 && error.param === "confidence") {
      asksConfidence = false; // no calibrator was fitted: the likelihoods are all that is known
      $("answers").lastElementChild.remove();
      return await ask(question);
    } else {
      $("status").textContent = "";
      if (!answers[0].count) $("answers").lastElementChild.remove();
      showError(error instanceof TypeError ? "The server cannot be reached." : error.message);
      if (error.status === 401) askForKey();
    }
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value;
  if (running || !question.trim()) return;
  ask(question).catch((error) => showError(error.message));
});

$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && mode === "chat" && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

$("stop").addEventListener("click", () => running?.abort());

// --- beginning ------------------------------------------------------------------------------------------------------

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key-form").hidden = true;
  showError("");
  begin();
});

async function begin() {
  try {
    const models = await get("/v1/models");
    $("model").textContent = models.data.map((model) => model.id).join(", ");
    $("tab-review").hidden = !(await findQueues().catch(() => false));
    if (location.hash === "#review" && !$("tab-review").hidden) setMode("review");
  } catch (error) {
    if (error.status === 401) askForKey();
    else showError(error.message);
  }
}

setTheme(THEMES.includes(localStorage.getItem("likely-theme")) ? localStorage.getItem("likely-theme") : "system");
setMode("chat");
$("answers").classList.add("coloured");
watchLoad();
begin();
