// Unmodified packages from npm read the service's streams: through cuts, to the end, and until they are stopped.
//
//   node read.mjs ADDRESS      of the cutting proxy
import assert from "node:assert/strict";
import {EventSource as EventSource4} from "eventsource";
import {EventSource as EventSource3} from "eventsource-3";
import {createEventSource} from "eventsource-client";
import polyfill from "event-source-polyfill";
import WebSocket from "ws";

const base = process.argv[2];
// What @microsoft/fetch-event-source looks for in a browser.
globalThis.window = {fetch, setTimeout, clearTimeout};
globalThis.document = {hidden: false, addEventListener() {}, removeEventListener() {}};
const {fetchEventSource} = await import("@microsoft/fetch-event-source");

const json = {"Content-Type": "application/json"};
const post = (path, body, headers = {}) =>
  fetch(base + path, {method: "POST", headers: {...json, ...headers}, body: JSON.stringify(body)});
const begin = async (body = {message: "Tell me something"}) => (await (await post("/chat/stream", body)).json()).stream_id;
const stop = (id) => fetch(`${base}/chat/stream/${id}`, {method: "DELETE"});
const count = async (path) => Number(await (await fetch(base + path)).text());
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** The text of a stream, as README's page keeps it, and a promise of its last event. */
class Answer {
  text = "";
  chunks = 0;
  constructor(onChunk = () => {}) {
    this.last = new Promise((resolve, reject) => Object.assign(this, {resolve, reject}));
    this.onChunk = onChunk;
  }
  take(data) {
    let event;
    try { event = JSON.parse(data); } catch (error) { return this.reject(new Error(`not an event: ${JSON.stringify(data)}`)); }
    if (event.type === "START") this.text = "";
    if (event.type === "CHUNK") { this.text += event.content; this.chunks += 1; this.onChunk(this); }
    if (event.type === "END" || event.type === "ERROR") this.resolve(event);
  }
}

// Each reads an address, hands the data on, and says how it is closed and whether it is. Those that know no 204 come back for ever:
// whoever uses them closes them at END, and until then they are told nothing a second time.
const native = (EventSource, knows204 = true) => (url, take) => {
  const source = new EventSource(url);
  source.addEventListener("chunk", ({data}) => take(data));
  return {close: () => source.close(), isClosed: knows204 ? () => source.readyState === 2 : null};
};
const readers = {
  "eventsource 3": native(EventSource3),
  "eventsource 4": native(EventSource4),
  "event-source-polyfill": native(polyfill.EventSourcePolyfill, false),
  "eventsource-client": (url, take) => {
    const source = createEventSource({url, onMessage: ({data}) => take(data)});
    return {close: () => source.close(), isClosed: () => source.readyState === "closed"};
  },
  "@microsoft/fetch-event-source": (url, take) => {
    const control = new AbortController();
    const reading = fetchEventSource(url, {
      signal: control.signal, openWhenHidden: true, onmessage: ({data}) => take(data),
    });
    reading.catch(() => {});
    return {close: () => control.abort(), isClosed: null};
  },
};

async function through_cuts(read) {
  const id = await begin();
  const answer = new Answer();
  const reader = read(`${base}/chat/stream/${id}`, (data) => answer.take(data));
  const last = await answer.last;
  assert.equal(last.type, "END");
  assert.equal(answer.text, last.full_content);
  assert.ok(last.full_content.length > 100);
  const read_so_far = await count(`/reads/${id}`);
  assert.ok(read_so_far >= 4, `it was cut three times and read ${read_so_far} times`);
  if (!reader.isClosed) {
    const {chunks} = answer;
    await sleep(2500);
    reader.close();
    assert.equal(answer.chunks, chunks, "nothing comes twice");
    return;
  }
  for (let waited = 0; !reader.isClosed(); waited += 100) {
    assert.ok(waited < 10_000, "204 ends it");
    await sleep(100);
  }
  const reads = await count(`/reads/${id}`);
  await sleep(2500);
  assert.equal(await count(`/reads/${id}`), reads, "and it comes back no more");
}

async function stopped(read) {
  const id = await begin({message: "x", model: "sim-long"});
  const answer = new Answer(({chunks}) => chunks === 5 && stop(id));
  const reader = read(`${base}/chat/stream/${id}`, (data) => answer.take(data));
  const last = await answer.last;
  reader.close();
  assert.equal(last.finish_reason, "cancelled");
  assert.equal(answer.text, last.full_content);
}

async function posted_once() {
  const before = await count("/posts");
  const answer = new Answer();
  const control = new AbortController();
  fetchEventSource(`${base}/chat`, {
    method: "POST", headers: json, body: JSON.stringify({message: "Tell me something"}),
    signal: control.signal, openWhenHidden: true, onmessage: ({data}) => answer.take(data),
  }).catch(() => {});
  const last = await answer.last;
  control.abort();
  assert.equal(answer.text, last.full_content);
  assert.equal(await count("/posts") - before, 1, "one question, one call");
}

async function over_a_socket(is_to_stop) {
  let id, seen = 0, connections = 0;
  const answer = new Answer(({chunks}) => is_to_stop && chunks === 5 && socket.send(JSON.stringify({type: "stop", stream_id: id})));
  let socket;
  const connect = () => {
    connections += 1;
    socket = new WebSocket(`${base.replace("http", "ws")}/chat/ws?cut=ws-${is_to_stop}`);
    const hello = id ? {type: "resume", stream_id: id, last_event_id: seen} : {type: "chat", message: "Tell me something"};
    if (is_to_stop && !id) hello.model = "sim-long";
    socket.on("open", () => socket.send(JSON.stringify(hello)));
    socket.on("message", (data) => {
      const event = JSON.parse(data);
      if (event.type === "REJECTED") return answer.reject(new Error(String(data)));
      if (event.id) { id = event.stream_id; seen = event.id; }
      answer.take(data);
    });
    socket.on("error", () => {});
    socket.on("close", () => connections < 5 && seen && !answer.is_over && connect());
  };
  answer.last.then(() => { answer.is_over = true; }, () => {});
  connect();
  const last = await answer.last;
  socket.close();
  assert.equal(answer.text, last.full_content);
  assert.ok(connections >= 2, "it was cut");
  assert.equal(last.finish_reason, is_to_stop ? "cancelled" : "stop");
}

const cases = [["@microsoft/fetch-event-source POSTs once", posted_once]];
for (const [name, read] of Object.entries(readers)) {
  cases.push([`${name} reads through cuts to the end`, () => through_cuts(read)], [`${name} is stopped`, () => stopped(read)]);
}
cases.push(["ws reads through a cut to the end", () => over_a_socket(false)], ["ws is stopped", () => over_a_socket(true)]);

// The packages tell of every broken connection on their own.
console.error = console.warn = () => {};
let failures = 0;
await Promise.all(cases.map(async ([name, run]) => {
  const late = sleep(60_000).then(() => { throw new Error("not within a minute"); });
  late.catch(() => {});
  try {
    await Promise.race([run(), late]);
    console.log(`ok      ${name}`);
  } catch (error) {
    failures += 1;
    console.log(`FAILED  ${name}: ${error.message}`);
  }
}));
process.exit(failures ? 1 : 0);
