// Numbers of an answer as its rounds come in.

const RECENT = 12; // rounds that a point of a line looks back on
const POINTS = 80;

/** Totals of rounds so far; speed counts from the first round on, so prefill is left out. */
export class Totals {
  rounds = 0;
  tokens = 0;
  drafted = 0;
  first = null;
  firstTokens = 0;
  seconds = 0;

  add(round) {
    this.rounds += 1;
    this.tokens += round.tokens.length;
    this.drafted += round.tokens.filter((token) => token.drafted).length;
    this.seconds = round.seconds;
    if (this.first === null) {
      this.first = round.seconds;
      this.firstTokens = round.tokens.length;
    }
  }

  /** Tokens per second; null after one round. */
  get speed() {
    const time = this.seconds - (this.first ?? 0);
    return this.rounds > 1 && time > 0 ? (this.tokens - this.firstTokens) / time : null;
  }

  get tau() {
    return this.rounds ? this.tokens / this.rounds : null;
  }
}

/** A number with `digits` behind the point, a dash where there is none. */
export function shown(value, digits = 1) {
  return value === null ? "–" : value.toFixed(digits);
}

/** The four meters of the page and the lines under two of them. */
export class Meters {
  constructor(find) {
    this.places = Object.fromEntries(["speed", "tau", "share", "count"].map((name) => [name, find(name)]));
    this.lines = { speed: find("speed-line"), tau: find("tau-line") };
    this.clear();
  }

  clear() {
    this.totals = new Totals();
    this.recent = [];
    this.values = { speed: [], tau: [] };
    for (const place of Object.values(this.places)) place.textContent = "–";
    for (const line of Object.values(this.lines)) line.replaceChildren();
  }

  add(round) {
    this.totals.add(round);
    this.recent = [...this.recent, { seconds: round.seconds, tokens: round.tokens.length }].slice(-RECENT - 1);
    this.measure();
  }

  show() {
    const { speed, tau, drafted, tokens } = this.totals;
    this.places.speed.textContent = shown(speed);
    this.places.tau.textContent = shown(tau, 2);
    this.places.share.textContent = `${Math.round((100 * drafted) / tokens)} %`;
    this.places.count.textContent = String(tokens);
    for (const name of Object.keys(this.lines)) this.draw(name);
  }

  measure() {
    const later = this.recent.slice(1);
    if (!later.length) return; // one round has no time of its own
    const tokens = later.reduce((sum, each) => sum + each.tokens, 0);
    const time = later.at(-1).seconds - this.recent[0].seconds;
    this.point("tau", tokens / later.length);
    if (time > 0) this.point("speed", tokens / time);
  }

  point(name, value) {
    this.values[name] = [...this.values[name], value].slice(-POINTS);
  }

  draw(name) {
    const values = this.values[name];
    const most = Math.max(...values);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const x = (index) => (100 * index) / Math.max(values.length - 1, 1);
    line.setAttribute("points", values.map((each, index) => `${x(index)},${23 - (22 * each) / most}`).join(" "));
    const svg = this.lines[name];
    svg.setAttribute("viewBox", "0 0 100 24");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.replaceChildren(line);
  }
}
