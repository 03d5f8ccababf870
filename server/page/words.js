// Tokens as elements. Text of the model goes into textContent and nowhere else.

/** An element with a class and a text. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Where the accepted path of `round` ends: a place in its nodes, null for its root. */
export function pathEnd(round) {
  const last = round.nodes.findLastIndex((node) => node.accepted);
  return last < 0 ? null : last;
}

/** How token `index` of `round` came to be: drafted, corrected (others were drafted there) or the target's own. */
export function kind(round, index) {
  if (round.tokens[index].drafted) return "drafted";
  const end = pathEnd(round);
  return round.nodes.some((node) => node.parent === end) ? "corrected" : "own";
}

/** The tokens of `round` as they stand in the text. */
export function words(round) {
  return round.tokens.map((token, index) => make("span", `token ${kind(round, index)}`, token.text));
}

/** A token's text on its own: what would not show is named. */
export function visible({ text, id, ends }) {
  if (text === "") return ends ? "end" : `#${id}`;
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return shown.trim() === "" ? "␣".repeat(shown.length) : shown;
}

/** Words that only screen readers get. */
export function aside(text) {
  return make("span", "aside", text);
}

/** `count` things. */
export function many(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
