// Asking the server: JSON, and streams of server-sent events.

let key = sessionStorage.getItem("likely-key") || "";

export class ServerError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message || `the server answered ${status}`);
    this.status = status;
    this.param = error.param ?? null;
  }
}

export function useKey(value) {
  key = value;
  sessionStorage.setItem("likely-key", value);
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refused(response) {
  return new ServerError(response.status, await response.json().catch(() => null));
}

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok && path !== "/health") throw await refused(response);
  return response.headers.get("content-type")?.includes("json") ? response.json() : response.text();
}

export async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw await refused(response);
  return response.json();
}

/** Each event of a streamed reply; an event with an error, or a stream without an end, is thrown. */
export async function* stream(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data: ")) continue; // a ping
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new ServerError(500, found);
      yield found;
    }
  }
}
