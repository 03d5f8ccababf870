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

/** Kinds in words, for who does not see the colours. */
export const KINDS = { drafted: "drafted", corrected: "corrected by the target", own: "the target’s own" };

/** The tokens of `round` as they stand in the text. */
export function words(round) {
  return round.tokens.map((token, index) => make("span", `token ${kind(round, index)}`, token.text));
}

const HIDDEN = /[\p{Cc}\p{Bidi_Control}]|^\p{Default_Ignorable_Code_Point}+$/gu;

function code(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A token's text on its own: what would not show is named. */
function visible({ text, id, ends }) {
  if (text === "") return ends ? "end" : `#${id}`;
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  if (shown.trim() === "") return "␣".repeat(shown.length);
  // what turns the order of letters would turn that of other tokens, too, and an accent needs something to stand on
  return shown.replace(HIDDEN, (hidden) => Array.from(hidden, code).join(" ")).replace(/^\p{M}/u, "◌$&");
}

const BLANKS = { " ": "space", "\n": "line break", "\t": "tab" };

/** A token as it is to be said: signs that stand for blanks are no words. */
function spoken(token) {
  if (token.text === "" || token.text.trim() !== "") return visible(token).replaceAll("↵", " line break ").trim();
  const name = (run) => BLANKS[run[0]] ?? "blank";
  const runs = token.text.match(/(.)\1*/gsu);
  return runs.map((run) => (run.length === 1 ? name(run) : many(run.length, name(run)))).join(", ");
}

/** Words that only screen readers get. */
export function aside(text) {
  return make("span", "aside", text);
}

/** A token that stands on its own, as it is to be seen and as it is to be said. */
export function chip(token, className) {
  const [shown, said] = [visible(token), spoken(token)];
  if (shown.trim() === said) return make("span", `chip ${className}`, shown);
  const sign = make("span", "", shown);
  sign.ariaHidden = "true";
  const both = make("span", `chip ${className}`);
  both.append(sign, aside(said));
  return both;
}

/** `count` things. */
export function many(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
