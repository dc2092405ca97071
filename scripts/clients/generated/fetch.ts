// openapi-typescript's types with openapi-fetch: no cast where only JSON is asked for.
import createClient from "openapi-fetch";
import type {paths} from "./schema";

const client = createClient<paths, "application/json">({baseUrl: process.argv[2]});
const check = (is: boolean, what: string): void => {
  if (!is) throw new Error(what);
};

const {data, error} = await client.POST("/chat", {body: {message: "Hello!"}});
check(data !== undefined && data.response.length > 0 && data.usage!.total_tokens > 0, JSON.stringify(error));

const wrong = await client.POST("/chat", {body: {message: "x", model: "sim-error-404"}});
check(wrong.error?.code === "model_not_found", JSON.stringify(wrong.error));

const started = await client.POST("/chat/stream", {body: {message: "Hello!", on_disconnect: "continue"}});
const id = started.data!.stream_id;
const events = createClient<paths, "text/event-stream">({baseUrl: process.argv[2]});
const read = await events.GET("/chat/stream/{stream_id}", {
  params: {path: {stream_id: id}, query: {last_event_id: "1"}}, parseAs: "text",
});
const text: string = read.data!;
check(text.includes('"type":"END"') && !text.includes('"type":"START"'), text);

const time = "2026-11-22T23:17:31.899397";
await client.PUT("/conversations/{conversation_id}", {
  params: {path: {conversation_id: "generated-1"}}, body: [{role: "user", content: "x", timestamp: time}],
});
const stored = await client.GET("/conversations/{conversation_id}/messages", {params: {path: {conversation_id: "generated-1"}}});
check(stored.data![0]!.timestamp === time, JSON.stringify(stored));
console.log("ok      openapi-typescript with openapi-fetch");
