// The rounds: each an accepted path in the list, with its whole tree beside it once it is pointed at or focused.

import { KINDS, aside, chip, kind, make, many, pathEnd } from "./words.js";

/** The list of rounds, with one tab stop and arrow keys, and the tree of the selected one. */
export class RoundList {
  constructor(list, caption, nodes) {
    this.list = list;
    this.caption = caption;
    this.nodes = nodes;
    this.rounds = [];
    this.options = [];
    this.selected = -1;
    this.follows = true; // the newest, until the reader looks at another
    const point = (event) => this.pointed(event);
    list.addEventListener("mouseover", point);
    list.addEventListener("focusin", point);
    list.addEventListener("click", point);
    list.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.rounds = [];
    this.options = [];
    this.selected = -1;
    this.follows = true;
    for (const place of [this.list, this.caption, this.nodes]) place.replaceChildren();
  }

  add(round) {
    const number = this.rounds.push(round) - 1;
    const option = make("div", "round");
    option.role = "option";
    option.tabIndex = -1;
    option.dataset.round = number;
    option.ariaSelected = "false";
    option.append(aside(`${title(round, number)}: `), ...chips(round));
    this.list.append(option);
    this.options.push(option);
  }

  /** Bring the newest round into view, unless the reader looks at another. */
  show() {
    if (!this.follows) return;
    this.select(this.rounds.length - 1);
    this.list.scrollTop = this.list.scrollHeight;
  }

  select(number) {
    if (!this.options[number]) return;
    // screen readers say what gets selected, so what merely came last is not
    this.options[number].ariaSelected = String(!this.follows);
    if (number === this.selected) return;
    const before = this.options[this.selected];
    if (before) { before.ariaSelected = "false"; before.classList.remove("shown"); before.tabIndex = -1; }
    this.options[number].classList.add("shown");
    this.options[number].tabIndex = 0;
    this.selected = number;
    const round = this.rounds[number];
    this.caption.textContent = `${title(round, number)}, ${round.seconds.toFixed(2)} s after the start`;
    this.nodes.replaceChildren(tree(round, this.rounds[number - 1]?.tokens.at(-1)));
  }

  pointed(event) {
    const option = event.target.closest(".round");
    if (!option) return;
    this.follows = false;
    this.select(Number(option.dataset.round));
  }

  key(event) {
    const last = this.options.length - 1;
    const to = {
      ArrowRight: this.selected + 1, ArrowDown: this.selected + 1,
      ArrowLeft: this.selected - 1, ArrowUp: this.selected - 1,
      Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.options[Math.min(Math.max(to, 0), last)].focus();
  }
}

/** Its tokens; how they came to be is said behind the last one of each kind. */
function chips(round) {
  const kinds = round.tokens.map((_, index) => kind(round, index));
  return round.tokens.flatMap((token, index) => [
    chip(token, kinds[index]),
    aside(kinds[index] === kinds[index + 1] ? ", " : `: ${KINDS[kinds[index]]}; `),
  ]);
}

function title(round, number) {
  const drafted = round.nodes.length;
  const accepted = round.nodes.filter((node) => node.accepted).length;
  const what = drafted ? `${accepted} of ${drafted} drafted accepted` : "nothing drafted";
  return `Round ${number + 1}, ${many(round.tokens.length, "token")}, ${what}`;
}

/** The verified tree as nested lists: from `anchor`, the newest token before the round, the accepted path first, with
 *  the target's own token at its end. */
function tree(round, anchor) {
  const end = pathEnd(round);
  const own = round.tokens.findIndex((token) => !token.drafted);
  const branches = (parent) => {
    const list = make("ul");
    if (parent === end && own >= 0) list.append(leaf(round.tokens[own], kind(round, own), KINDS[kind(round, own)]));
    const children = round.nodes.flatMap((node, index) => (node.parent === parent ? [{ node, index }] : []));
    children.sort((a, b) => b.node.accepted - a.node.accepted || b.node.score - a.node.score);
    for (const { node, index } of children) {
      const state = node.accepted ? "accepted" : "rejected";
      const item = leaf(node, node.accepted ? "drafted" : "rejected", state, node.score);
      const below = branches(index);
      if (below.children.length) item.append(below);
      list.append(item);
    }
    return list;
  };
  const root = make("li");
  root.append(anchor ? chip(anchor, "anchor") : make("span", "chip anchor", "prompt"), branches(null));
  const all = make("ul", "tree");
  all.append(root);
  return all;
}

function leaf(token, className, state, score) {
  const item = make("li");
  const node = chip(token, className);
  node.append(aside(`, ${state}`));
  if (score !== undefined) node.append(aside(", score "), make("small", "", score.toFixed(2)));
  item.append(node);
  return item;
}
