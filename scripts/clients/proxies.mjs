// Every word of a stream passes the proxies that users have in front as it comes, also where they compress. Those of Debian are
// tried where they are installed.
//
//   node proxies.mjs ADDRESS FOLDER     of the service; for what the proxies need
import {execFileSync, spawn} from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import {createRequire} from "node:module";
import net from "node:net";
import path from "node:path";

const [, , service, folder] = process.argv;
const require = createRequire(path.resolve("package.json"));
const target = new URL(service);
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const freePort = () => new Promise((done) => {
  const server = net.createServer().listen(0, "127.0.0.1", () => { const {port} = server.address(); server.close(() => done(port)); });
});
const has = (command) => { try { execFileSync("which", [command]); return true; } catch { return false; } };
const write = (name, text) => {
  const file = path.resolve(folder, name);
  fs.mkdirSync(path.dirname(file), {recursive: true});
  fs.writeFileSync(file, text);
  return file;
};

/** A program that runs until it is ended. */
function run(command, args, options = {}) {
  const child = spawn(command, args, {stdio: ["ignore", "pipe", "pipe"], detached: true, ...options});
  let said = "";
  child.stdout.on("data", (data) => { said += data; });
  child.stderr.on("data", (data) => { said += data; });
  // With all that it began, of which some begin more.
  const over = new Promise((done) => child.on("exit", done));
  return {over, said: () => said, end: () => { try { process.kill(-child.pid, "SIGKILL"); } catch { /* it has ended */ } }};
}

const proxies = {
  nginx: (port) => {
    const conf = write("nginx/nginx.conf", `worker_processes 1; pid nginx.pid; error_log error.log;
      events {} http { access_log off; gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;
      client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
      server { listen 127.0.0.1:${port}; location / { proxy_pass ${service}; proxy_read_timeout 20s; } } }`);
    return run("nginx", ["-p", path.dirname(conf), "-c", conf, "-g", "daemon off;"]);
  },
  haproxy: (port) => run("haproxy", ["-db", "-f", write("haproxy.cfg", `defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  compression algo gzip
  compression type text/event-stream application/json
frontend front
  bind 127.0.0.1:${port}
  default_backend back
backend back
  option httpchk GET /health
  server one ${target.host} check inter 200ms
`)]),
  apache2: (port) => {
    const modules = ["mpm_event", "authz_core", "filter", "deflate", "proxy", "proxy_http"];
    const conf = write("apache/apache.conf", `ServerRoot ${path.resolve(folder, "apache")}
ServerName localhost
PidFile apache.pid
Listen 127.0.0.1:${port}
${modules.map((name) => `LoadModule ${name}_module /usr/lib/apache2/modules/mod_${name}.so`).join("\n")}
ErrorLog error.log
SetOutputFilter DEFLATE
ProxyPass "/" "${service}/" flushpackets=auto
`);
    return run("apache2", ["-f", conf, "-DFOREGROUND"]);
  },
  vite: async (port) => {
    const {createServer} = await import(require.resolve("vite"));
    const server = await createServer({
      configFile: false, root: path.resolve(folder), logLevel: "silent",
      server: {port, host: "127.0.0.1", proxy: {"/chat": service}},
    });
    await server.listen();
    return {end: () => server.close()};
  },
  "webpack-dev-server": async (port) => {
    const webpack = require("webpack");
    const {default: Server = require("webpack-dev-server")} = await import(require.resolve("webpack-dev-server"));
    const entry = write("webpack/index.js", "");
    const compiler = webpack({mode: "development", entry, output: {path: path.dirname(entry)}, infrastructureLogging: {level: "none"}, stats: "none"});
    const server = new Server({port, host: "127.0.0.1", static: false, proxy: [{context: ["/chat"], target: service}]}, compiler);
    await server.start();
    return {end: () => server.stop()};
  },
  "express with compression": async (port) => {
    const {createProxyMiddleware} = await import(require.resolve("http-proxy-middleware"));
    const app = require("express")().use(require("compression")({threshold: 0})).use(createProxyMiddleware({target: service}));
    const server = app.listen(port, "127.0.0.1");
    return {end: () => server.close()};
  },
  "next rewrites": async (port) => {
    write("next/package.json", JSON.stringify({private: true}));
    write("next/pages/index.js", "export default function Page() { return null; }\n");
    write("next/next.config.js", `module.exports = {turbopack: {root: ${JSON.stringify(process.cwd())}}, rewrites: async () => [{source: "/chat", destination: "${service}/chat"}]};\n`);
    const cwd = path.resolve(folder, "next");
    const next = path.resolve("node_modules/.bin/next");
    const env = {...process.env, NEXT_TELEMETRY_DISABLED: "1"};
    const build = run(next, ["build"], {cwd, env});
    const late = sleep(240_000).then(() => build.end());
    await Promise.race([build.over, late]);
    if (!fs.existsSync(path.join(cwd, ".next/BUILD_ID"))) throw new Error(`it is not built: ${build.said().slice(-300)}`);
    return run(next, ["start", "-p", String(port), "-H", "127.0.0.1"], {cwd, env});
  },
};

/** When each piece of a stream arrived, in milliseconds. */
function read(port) {
  return new Promise((resolve, reject) => {
    const times = [];
    const begun = Date.now();
    const request = http.request({
      host: "127.0.0.1", port, method: "POST", path: "/chat",
      headers: {"content-type": "application/json", accept: "text/event-stream", "accept-encoding": "gzip, br"},
    }, (response) => {
      if (response.statusCode !== 200) { response.resume(); return reject(new Error(`status ${response.statusCode}`)); }
      response.on("data", () => times.push(Date.now() - begun));
      response.on("end", () => resolve({times, encoding: response.headers["content-encoding"] ?? "none"}));
      response.on("error", reject);
    });
    request.setTimeout(30_000, () => request.destroy(new Error("nothing for 30 s")));
    request.on("error", reject);
    request.end(JSON.stringify({message: "Tell me something"}));
  });
}

async function listens(port) {
  for (let waited = 0; waited < 60_000; waited += 100) {
    const is_open = await new Promise((done) => {
      const socket = net.connect(port, "127.0.0.1", () => { socket.destroy(); done(true); });
      socket.on("error", () => done(false));
    });
    if (is_open) return;
    await sleep(100);
  }
  throw new Error("it does not listen");
}

let failures = 0;
for (const [name, start] of Object.entries(proxies)) {
  if (["nginx", "haproxy", "apache2"].includes(name) && !has(name)) { console.log(`skipped ${name}: not installed`); continue; }
  let proxy;
  try {
    const port = await freePort();
    proxy = await start(port);
    await listens(port);
    // HAProxy asks for /health first, and the development servers are slow to begin.
    await sleep(1500);
    await read(port);
    const {times, encoding} = await read(port);
    const apart = times.filter((time, at) => at > 0 && time - times[at - 1] > 10).length;
    if (apart < 20) throw new Error(`${times.length} pieces, ${apart} of them apart, encoding ${encoding}: ${times}`);
    console.log(`ok      ${name} passes word by word (encoding ${encoding})`);
  } catch (error) {
    failures += 1;
    console.log(`FAILED  ${name}: ${error.message} ${proxy?.said?.().slice(-300) ?? ""}`);
  }
  await Promise.race([proxy?.end(), sleep(3000)]);
}
process.exit(failures ? 1 : 0);
