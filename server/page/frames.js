// Rounds come faster than a screen shows them.

/** `paint` gets all rounds that were added since it last ran, once a frame; `flush` calls it at once. */
export function batched(paint) {
  let waiting = [];
  let frame = 0;
  const flush = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    const rounds = waiting;
    waiting = [];
    if (rounds.length) paint(rounds);
  };
  const add = (round) => {
    waiting.push(round);
    frame ||= requestAnimationFrame(flush);
  };
  return { add, flush };
}
