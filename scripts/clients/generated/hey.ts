// hey-api's client.
import {client} from "./hey/client.gen";
import {chat, health, readStream, startStream} from "./hey/sdk.gen";

client.setConfig({baseUrl: process.argv[2]!});
const check = (is: boolean, what: string): void => {
  if (!is) throw new Error(what);
};

const answer = await chat({body: {message: "Hello!"}, headers: {"Idempotency-Key": "generated-1"}});
check(typeof answer.data === "object" && answer.data.response.length > 0, JSON.stringify(answer.error));
check((await health()).data!.status === "healthy", "healthy");
const {data} = await startStream({body: {message: "Hello!"}});
const seen: string[] = [];
const {stream} = await readStream({
  path: {stream_id: data!.stream_id}, headers: {Accept: "text/event-stream"},
}) as unknown as {stream?: AsyncIterable<{type: string}>};
if (stream) {
  for await (const event of stream) {
    seen.push(event.type);
    if (event.type === "END") break;
  }
  check(seen[0] === "START" && seen.at(-1) === "END", seen.join());
}
console.log(`ok      hey-api${stream ? ", its events too" : ""}`);
process.exit(0);
