// Puts the page together: one job at a time, and what the server says about it.

import { Problem, forget, get, ready, useKey, write } from "./api.js";
import { batched } from "./frames.js";
import { Meters, shown } from "./meters.js";
import { Race } from "./race.js";
import { RoundList } from "./rounds.js";
import { many, words } from "./words.js";

const SPOKEN_MS = 2000; // screen readers have taken it by then

const find = (id) => document.getElementById(id);
const meters = new Meters(find);
const rounds = new RoundList(find("rounds"), find("tree-caption"), find("tree-nodes"));
const race = new Race(find);

let model = null;
let job = null; // the AbortController of what runs
let retry = null; // what to do once there is a key
let given = false; // whether there was one
let silence = 0; // the timer that takes back what is spoken

function say(text) {
  find("status").textContent = text;
}

/** Screen readers say `text` once and whole.  It stands on the page already, so nobody is to find it here as well. */
function speak(text) {
  clearTimeout(silence);
  find("spoken").textContent = text;
  silence = setTimeout(() => find("spoken").replaceChildren(), SPOKEN_MS);
}

function explain(error) {
  const asks = error.status === 401;
  if (error.code === "model_not_found") { // another server has taken this one's place
    model = null;
    forget();
  }
  find("key-form").hidden = !asks;
  if (asks) find("key").focus();
  find("problem").hidden = asks && !given; // that a key is wanted, the form says
  find("problem").textContent = error instanceof Problem ? error.message : `Something went wrong here: ${error.message}`;
  say("");
}

/** Run `work` as the one job; whatever ran before is stopped. */
async function run(work) {
  job?.abort();
  const mine = (job = new AbortController());
  find("problem").hidden = true;
  find("stop").setAttribute("aria-disabled", "false");
  try {
    await ready(say, mine.signal);
    model ?? (await greet(mine.signal));
    await work(mine.signal);
  } catch (error) {
    if (job !== mine) return;
    if (mine.signal.aborted) return say("Stopped.");
    retry = () => run(work);
    explain(error);
  } finally {
    if (job === mine) {
      job = null;
      find("stop").setAttribute("aria-disabled", "true");
    }
  }
}

/** Learn what is served here. */
async function greet(signal) {
  const { data: [first] } = await get("v1/models", signal);
  const { draft } = await get("version", signal);
  model = first.id;
  find("tokens").max = first.max_model_len - 1;
  find("about").textContent = `${model}, drafted by ${draft}`;
  say("Ready.");
}

function settings() {
  const number = (id) => find(id).valueAsNumber;
  return { model, max_tokens: number("tokens"), temperature: number("temperature"), seed: number("seed") };
}

async function writeText(signal) {
  say("Writing …");
  find("text").replaceChildren();
  meters.clear();
  rounds.clear();
  find("rounds-section").hidden = true;
  const screen = batched(paint);
  try {
    for await (const round of write(find("prompt").value, settings(), signal)) screen.add(round);
  } finally {
    screen.flush();
  }
  const { tokens, seconds, speed, tau } = meters.totals;
  say(`Done: ${many(tokens, "token")} in ${seconds.toFixed(2)} s, ${shown(speed)} tokens per second, τ ${shown(tau, 2)}.`);
  speak(find("text").textContent);
}

function paint(fresh) {
  const text = find("text");
  for (const round of fresh) {
    for (const word of words(round)) {
      word.dataset.round = meters.totals.rounds;
      text.append(word);
    }
    meters.add(round);
    rounds.add(round);
  }
  find("rounds-section").hidden = false;
  text.scrollTop = text.scrollHeight;
  rounds.show();
  meters.show();
}

async function holdRace(signal) {
  const [prompt, wanted] = [find("prompt").value, settings()];
  const salted = (extra) => write(prompt, { ...wanted, ...extra, cache_salt: salt() }, signal);
  await race.run(salted, say);
  say("Both are measured.");
}

/** Nobody else's, so that neither run finds the prompt read already; randomUUID is only there on https and loopback. */
function salt() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), String).join("-");
}

function begin(work) {
  if (find("ask").reportValidity()) run(work);
}

find("ask").addEventListener("submit", (event) => { event.preventDefault(); begin(writeText); });
find("race").addEventListener("click", () => begin(holdRace));
find("stop").addEventListener("click", () => job?.abort());
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value);
  given = true;
  find("key").value = "";
  find("key-form").hidden = true;
  find("prompt").focus();
  retry?.();
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); begin(writeText); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") job?.abort(); });
find("text").addEventListener("mouseover", ({ target }) => {
  if (target.dataset.round === undefined) return;
  rounds.follows = false;
  rounds.select(Number(target.dataset.round));
});

run(async () => say("Ready."));
