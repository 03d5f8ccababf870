// The server's API, as the page uses it.

const LOADING_MS = 700;

/** What went wrong, in words for people. */
export class Problem extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = "";
let chat = true;

/** The API key; kept here and nowhere else. */
export function useKey(value) {
  key = value.trim();
}

/** Another server answers now: nothing is known of what it serves. */
export function forget() {
  chat = true;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem("The server cannot be reached. Is it running?");
  }
}

/** `reply` where all is well; otherwise the API's own words. */
async function checked(reply) {
  if (reply.ok) return reply;
  if (reply.status === 401 && key) throw new Problem("The server did not accept this key.", 401);
  const error = (await reply.json().catch(() => null))?.error;
  throw new Problem(error?.message ?? `The server answered ${reply.status}.`, reply.status, error?.code);
}

/** JSON of `path`. */
export async function get(path, signal) {
  return (await checked(await ask(path, { signal }))).json();
}

/** Return once the server takes requests; `say` hears what it does until then. */
export async function ready(say, signal) {
  for (;;) {
    // unlike /ready, /health is no error while a model loads
    const reply = await ask("health", { signal });
    // a body is read once, and an error's is wanted again
    const status = (await reply.clone().json().catch(() => null))?.status;
    if (status === "ok") return;
    if (status === "dead") throw new Problem("The engine has ended; the server must be restarted.");
    if (status === "draining") throw new Problem("The server is shutting down and takes nothing new.");
    if (status !== "loading") {
      await checked(reply);
      throw new Problem("What answers here is not the server."); // a proxy's own page, say
    }
    say("The model is still loading; waiting for it …");
    await pause(LOADING_MS, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); reject(signal.reason); };
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The rounds of an answer as they come; `wanted` is what the request says beside prompt and streaming. */
export async function* write(prompt, wanted, signal) {
  try {
    yield* streamed(prompt, wanted, signal);
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== "no_chat_template") throw error;
    chat = false; // a target that only continues texts
    yield* streamed(prompt, wanted, signal);
  }
}

async function* streamed(prompt, wanted, signal) {
  const text = chat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const reply = await checked(await ask(chat ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...wanted, ...text, stream: true, include_rounds: true }),
    signal,
  }));
  let done = false;
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") { done = true; break; }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error.message, reply.status, chunk.error.code);
    const rounds = chunk.rounds ?? [];
    const last = rounds.at(-1)?.tokens.at(-1);
    // its last token showed nothing because it ended the turn
    if (last && chunk.choices[0]?.finish_reason === "stop") last.ends = true;
    yield* rounds;
  }
  if (!done) throw new Problem("The connection ended before the answer did.");
}

/** Data of server-sent events; comments, which keep the stream open, are left out. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
