// Plain against speculative decoding: measured one after the other, then shown side by side at their true times.

import { batched } from "./frames.js";
import { Totals, shown } from "./meters.js";
import { many, words } from "./words.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** One of the two: its rounds, and as much of them as the clock has reached. */
class Lane {
  constructor(root) {
    this.text = root.querySelector(".text");
    this.meter = root.querySelector(".lane-meter");
    this.bar = root.querySelector("progress");
    this.clear();
  }

  clear() {
    this.rounds = [];
    this.rewind();
  }

  rewind() {
    this.totals = new Totals();
    this.text.replaceChildren();
    this.meter.textContent = "–";
    this.bar.value = 0;
  }

  get seconds() {
    return this.rounds.at(-1)?.seconds ?? 0;
  }

  get ids() {
    return this.rounds.flatMap((round) => round.tokens.map((token) => token.id));
  }

  /** Add the rounds that ended by `time`; the bar is full for who takes `slowest` seconds. */
  show(time, slowest) {
    const { totals, rounds } = this;
    while (totals.rounds < rounds.length && rounds[totals.rounds].seconds <= time) {
      const round = rounds[totals.rounds];
      this.text.append(...words(round));
      totals.add(round);
    }
    this.bar.value = slowest > 0 ? Math.min(time, this.seconds) / slowest : 0;
    const clock = Math.min(time, this.seconds).toFixed(2);
    this.meter.textContent = `${clock} s · ${shown(totals.speed)} tokens/s · τ ${shown(totals.tau, 2)}`;
  }
}

/** The race's part of the page. */
export class Race {
  constructor(find) {
    this.section = find("race-section");
    this.verdict = find("verdict");
    this.plain = new Lane(find("plain"));
    this.speculative = new Lane(find("speculative"));
    this.frame = 0;
    this.buttons = find("race-buttons");
    find("replay").addEventListener("click", () => this.replay());
    find("skip").addEventListener("click", () => this.show(Infinity));
  }

  /** Measure both ways with `write(extra)`, which yields rounds; `say` hears how far it is. */
  async run(write, say) {
    cancelAnimationFrame(this.frame);
    this.section.hidden = false;
    this.section.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
    this.buttons.hidden = true;
    this.verdict.textContent = "Measuring …";
    delete this.verdict.dataset.equal;
    this.plain.clear();
    this.speculative.clear();
    try {
      await this.measure(this.plain, "1 of 2: plain decoding", write({ speculation: { enabled: false } }), say);
      await this.measure(this.speculative, "2 of 2: speculative decoding", write({}), say);
    } catch (error) {
      this.verdict.textContent = "This race was not finished.";
      throw error;
    }
    this.verdict.textContent = this.outcome();
    this.buttons.hidden = false;
    this.replay();
  }

  async measure(lane, name, rounds, say) {
    say(`${name} …`);
    const screen = batched((fresh) => {
      lane.rounds.push(...fresh);
      lane.show(Infinity, 0);
    });
    try {
      for await (const round of rounds) screen.add(round);
    } finally {
      screen.flush();
    }
  }

  outcome() {
    const plain = this.plain.ids;
    const other = this.speculative.ids;
    const differs = plain.findIndex((id, index) => id !== other[index]);
    const equal = differs < 0 && plain.length === other.length;
    const times = this.plain.seconds / this.speculative.seconds;
    const speed = times >= 1 ? `${times.toFixed(2)} times as fast` : `${(1 / times).toFixed(2)} times slower`;
    const same = equal
      ? `Both texts are equal, token for token (${many(plain.length, "token")}).`
      : `The texts differ from token ${(differs < 0 ? Math.min(plain.length, other.length) : differs) + 1} on.`;
    this.verdict.dataset.equal = String(equal);
    return `Speculative decoding was ${speed}. ${same}`;
  }

  replay() {
    cancelAnimationFrame(this.frame);
    this.plain.rewind();
    this.speculative.rewind();
    if (calm.matches) return this.show(Infinity);
    const begun = performance.now();
    const step = (now) => {
      const time = Math.max(now - begun, 0) / 1000;
      this.show(time);
      if (time < this.slowest) this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  get slowest() {
    return Math.max(this.plain.seconds, this.speculative.seconds);
  }

  show(time) {
    if (time === Infinity) cancelAnimationFrame(this.frame);
    this.plain.show(time, this.slowest);
    this.speculative.show(time, this.slowest);
  }
}
