//! A real browser, driven over WebDriver: Debian's `chromium` and `chromium-driver`.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than any step of a passing test takes: a browser on a busy machine takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host that is the service for this browser alone.
pub const OTHER_HOST: &str = "ai-service.test";

/// Under this key WebDriver gives the id of an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one empty page and a profile of its own. It ends when it is dropped.
pub struct Browser {
    driver: Driver,
    client: reqwest::Client,
    session: String,
    // Deleted last, when nothing writes to it any more.
    _profile: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let driver = Driver::spawn(profile.path());
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let arguments = [
            "--headless=new",
            "--window-size=1280,1000",
            // Containers run tests as root, without namespaces and with a small /dev/shm.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-quic",
            "--no-proxy-server",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // No test reaches anything outside, not even one that finds a page trying to.
            &format!("--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let started = call(&client, Method::POST, &driver.url("/session"), &capabilities).await;
        let session = started["sessionId"].as_str().expect("a session").to_owned();
        Self { driver, client, session, _profile: profile }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        call(&self.client, method, &self.driver.url(&format!("/session/{}{path}", self.session)), body).await
    }

    /// Opens a page and waits until it has loaded; what its scripts do then may take longer.
    pub async fn goto(&self, url: &str) {
        self.call(Method::POST, "/url", &json!({"url": url})).await;
    }

    pub async fn title(&self) -> String {
        self.call(Method::GET, "/title", &Value::Null).await.as_str().expect("a title").to_owned()
    }

    /// What a function with that body returns.
    pub async fn script(&self, body: &str) -> Value {
        self.call(Method::POST, "/execute/sync", &json!({"script": body, "args": []})).await
    }

    /// Waits until the expression is true. If it never is, a picture of the page is left behind.
    pub async fn wait_for(&self, condition: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.script(&format!("return Boolean({condition})")).await != true {
            if Instant::now() > deadline {
                let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser.png");
                self.screenshot(&picture).await;
                let errors = self.console_errors().await;
                panic!("never true: {condition}\nconsole: {errors:#?}\npage: {}", picture.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the element and clicks where it is, as a person does: what is covered or hidden cannot be clicked.
    pub async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.call(Method::POST, &format!("/element/{element}/click"), &json!({})).await;
    }

    /// Waits for the element and types there.
    pub async fn type_into(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.call(Method::POST, &format!("/element/{element}/value"), &json!({"text": text})).await;
    }

    async fn element(&self, css: &str) -> String {
        self.wait_for(&format!("document.querySelector({})", json!(css))).await;
        let found = self.call(Method::POST, "/element", &json!({"using": "css selector", "value": css})).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// The errors on the console since the last call: of scripts, of loads, of policies.
    pub async fn console_errors(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        let errors = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].as_str().expect("a message").to_owned()).collect()
    }

    /// Every URL that was asked for since the last call, whether or not it answered.
    pub async fn requested_urls(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let events = entries.iter().map(|entry| {
            let message = entry["message"].as_str().expect("a message");
            serde_json::from_str::<Value>(message).expect("JSON")["message"].take()
        });
        let url = |event: Value| match event["method"].as_str()? {
            "Network.requestWillBeSent" => Some(event["params"]["request"]["url"].as_str()?.to_owned()),
            "Network.webSocketCreated" | "Network.webTransportCreated" => {
                Some(event["params"]["url"].as_str()?.to_owned())
            }
            _ => None,
        };
        events.filter_map(url).collect()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.call(Method::POST, "/se/log", &json!({"type": kind})).await;
        entries.as_array().expect("a log").clone()
    }

    /// Writes what can be seen of the page as PNG.
    pub async fn screenshot(&self, path: &Path) {
        let picture = self.call(Method::GET, "/screenshot", &Value::Null).await;
        fs::write(path, base64(picture.as_str().expect("a picture"))).expect("written");
    }
}

/// One WebDriver command and the `value` of its answer.
async fn call(client: &reqwest::Client, method: Method, url: &str, body: &Value) -> Value {
    let body = if method == Method::GET { Vec::new() } else { body.to_string().into_bytes() };
    let response = client.request(method, url).body(body).send().await.expect("an answer of chromedriver");
    let status = response.status();
    let answer = response.bytes().await.expect("a whole answer");
    let answer = String::from_utf8_lossy(&answer);
    assert!(status.is_success(), "{url}: {answer}");
    serde_json::from_str::<Value>(&answer).expect("JSON")["value"].take()
}

/// The process that starts and steers the browser.
struct Driver {
    process: Child,
    port: u16,
    // Open as long as the process may write to it.
    _output: BufReader<ChildStdout>,
}

impl Driver {
    /// On a free port of its own choice.
    fn spawn(temporary: &Path) -> Self {
        // It looks for a free port on one IP version and may find it taken on the other: then it ends at once.
        (0..5).find_map(|_| Self::try_spawn(temporary)).expect("chromedriver finds a port")
    }

    fn try_spawn(temporary: &Path) -> Option<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            // Where the browser leaves what it does not clean up.
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver starts; it is in Debian's package chromium-driver");
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        let mut line = String::new();
        loop {
            line.clear();
            if output.read_line(&mut line).expect("text") == 0 {
                process.wait().expect("it has ended");
                return None;
            }
            let Some((_, port)) = line.split_once("started successfully on port ") else { continue };
            let port = port.trim().trim_end_matches('.').parse().expect("a port");
            return Some(Self { process, port, _output: output });
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Asks it to end every browser and itself. Without reqwest, because a drop cannot wait for a future.
    fn end(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /shutdown HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets: Vec<_> = text.bytes().filter_map(|byte| ALPHABET.iter().position(|letter| *letter == byte)).collect();
    let group = |four: &[usize]| {
        let bits = (0..4).fold(0, |bits, at| bits << 6 | four.get(at).map_or(0, |sextet| *sextet as u32));
        // Of four letters three bytes, of three two, of two one.
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    sextets.chunks(4).flat_map(group).collect()
}
