// A proxy that breaks connections: the first three readers of each stream in the middle of an event, and the first WebSocket
// that names itself. Says on standard output where it listens.
//
//   node cutter.mjs http://127.0.0.1:8000
//
// GET /reads/ID tells how often the stream was read, and GET /posts how often POST /chat was called.
import http from "node:http";
import net from "node:net";

const service = new URL(process.argv[2]);
const CUTS = [97, 251, 402];
const reads = new Map();
const sockets = new Set();
let posts = 0;

const server = http.createServer((request, response) => {
  const own = request.url.match(/^\/reads\/(.+)$/);
  if (own) return response.end(String(reads.get(own[1]) ?? 0));
  if (request.url === "/posts") return response.end(String(posts));
  if (request.method === "POST" && request.url === "/chat") posts += 1;
  const id = request.method === "GET" && request.url.match(/^\/chat\/stream\/([0-9a-f-]{36})/)?.[1];
  const isEvents = id && !request.headers.accept?.startsWith("application/json");
  const count = isEvents ? reads.get(id) ?? 0 : CUTS.length;
  if (isEvents) reads.set(id, count + 1);
  const options = {host: service.hostname, port: service.port, method: request.method, path: request.url, headers: request.headers};
  const upstream = http.request(options, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    let left = answer.statusCode === 200 ? CUTS[count] ?? Infinity : Infinity;
    answer.on("data", (piece) => {
      if (left <= 0) return;
      response.write(piece.subarray(0, left), () => left <= 0 && response.socket?.destroy());
      left -= piece.length;
      if (left <= 0) upstream.destroy();
    });
    answer.on("end", () => left > 0 && response.end());
    answer.on("error", () => {});
  });
  upstream.on("error", () => response.destroy());
  response.on("close", () => upstream.destroy());
  request.pipe(upstream);
});

server.on("upgrade", (request, client) => {
  const name = new URL(request.url, service).searchParams.get("cut");
  let left = name && !sockets.has(name) ? 900 : Infinity;
  sockets.add(name);
  const upstream = net.connect(Number(service.port), service.hostname, () => {
    const {rawHeaders: raw} = request;
    const lines = raw.flatMap((text, at) => (at % 2 ? [] : [`${text}: ${raw[at + 1]}`]));
    upstream.write(`GET /chat/ws HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
    client.on("data", (piece) => upstream.write(piece));
    upstream.on("data", (piece) => {
      if (left <= 0) return;
      client.write(piece.subarray(0, left));
      left -= piece.length;
      if (left <= 0) { client.destroySoon(); upstream.destroy(); }
    });
    upstream.on("end", () => client.end());
  });
  for (const [one, other] of [[client, upstream], [upstream, client]]) {
    one.on("error", () => other.destroy());
    one.on("close", () => other.destroy());
  }
});

server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
