//! A stream as a person meets it: read by a page in a real browser, over a network that breaks.

use serde_json::{Value, json};

use crate::support::{
    Play, ScriptedUpstream, TestApp,
    browser::Browser,
    cutting_proxy::{Cut, CuttingProxy},
    upstream::Seen,
};

/// It stops by the service's 204 alone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn a_page_that_is_cut_off_and_reloaded_ends_with_the_exact_text_and_asks_no_more() {
    Journey::begin(false, false).await.travel().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn a_page_that_closes_its_event_source_at_the_end_asks_no_more() {
    Journey::begin(true, false).await.travel().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn a_page_of_another_origin_reads_as_well() {
    Journey::begin(false, true).await.travel().await;
}

/// What the upstream says, piece by piece; START is event 1, so these are events 2 to 8.
const CHUNKS: [&str; 7] =
    ["안녕하세요", " 👋\n\n", "둘째 줄 👩‍👩‍👧\r\n", "  띄어쓰기\t\"\\", "id: 99\ndata: {}\n\n", "여섯째, ", "일곱째 🇰🇷\n"];

/// Reads the stream that its own address names, from where it was before it was loaded again.
const PAGE: &str = r#"<!doctype html>
<html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>a reader</title>
<pre id="text"></pre>
<script>
    const asked = new URLSearchParams(location.search);
    const read = JSON.parse(sessionStorage.getItem("read")) ?? {text: "", last: null, events: [], end: null};
    const resume = read.last === null ? "" : "?last_event_id=" + read.last;
    const source = new EventSource(asked.get("stream") + resume);
    const show = () => document.getElementById("text").textContent = read.text;
    source.addEventListener("chunk", event => {
        const data = JSON.parse(event.data);
        if (data.type === "START") read.text = "";
        if (data.type === "CHUNK") read.text += data.content;
        if (data.type === "END") read.end = data.full_content;
        if (data.type === "END" && asked.get("closes") === "true") source.close();
        read.last = event.lastEventId;
        read.events.push(event.lastEventId + " " + data.type);
        sessionStorage.setItem("read", JSON.stringify(read));
        show();
    });
    show();
</script>
"#;

struct Journey {
    upstream: ScriptedUpstream,
    proxy: CuttingProxy,
    browser: Browser,
    // Both are only to live.
    _app: TestApp,
    _pages: Option<CuttingProxy>,
    page_origin: Option<String>,
    path: String,
    closes: bool,
}

impl Journey {
    /// Starts a stream, of which nothing has come yet, and opens the page.
    async fn begin(closes: bool, from_elsewhere: bool) -> Self {
        let upstream = ScriptedUpstream::start().await;
        upstream.then(script());
        let app = TestApp::start(&upstream.base_url).await;
        let started = app
            .request(
                reqwest::Method::POST,
                "/chat/stream",
                &[("content-type", "application/json")],
                json!({"message": "안녕"}).to_string().into_bytes(),
            )
            .await
            .json();
        let path = format!("/chat/stream/{}", started["stream_id"].as_str().expect("an id"));
        let proxy = CuttingProxy::start(app.address, PAGE).await;
        let pages = if from_elsewhere { Some(CuttingProxy::start(app.address, PAGE).await) } else { None };

        let browser = Browser::start().await;
        let page = format!("/page?closes={closes}&stream={}", proxy.url(&path));
        browser.goto(&pages.as_ref().unwrap_or(&proxy).url(&page)).await;
        let page_origin = pages.as_ref().map(|pages| format!("http://{}", pages.address));
        let journey = Self { upstream, proxy, browser, _app: app, _pages: pages, page_origin, path, closes };
        journey.page_has(1).await;
        journey
    }

    async fn travel(self) {
        // Cut between two events; the next comes while nobody reads.
        self.upstream.release();
        self.page_has(2).await;
        self.cut(Cut::Rst);
        self.upstream.release();
        self.page_has(3).await;

        // Cut within a character.
        let emoji = "{\"type\":\"CHUNK\",\"content\":\"둘째 줄 👩".as_bytes();
        self.pass_no_more_than(&emoji[..emoji.len() - 2]).await;
        self.cut(Cut::Fin);
        self.page_has(4).await;

        // Loaded again between two events, and cut before another has come: only the address tells where to go on.
        self.upstream.release();
        self.page_has(5).await;
        self.reload().await;
        self.browser.wait_for("source.readyState === EventSource.OPEN").await;
        // All of an event but its end, the empty line.
        self.pass_no_more_than(b"id: 99\\ndata: {}\\n\\n\"}\nid: 6\n").await;
        self.cut(Cut::Rst);
        self.page_has(6).await;

        // Cut between two events that came together. By now the header tells more than the address.
        self.pass_no_more_than("{\"type\":\"CHUNK\",\"content\":\"여섯째, \"}\nid: 7\n\n".as_bytes()).await;
        // A browser may drop what it has not read yet when the connection breaks.
        self.page_has(7).await;
        self.cut(Cut::Fin);
        self.page_has(8).await;

        // Cut within the end.
        self.pass_no_more_than(br#"{"type":"END","full_content":""#).await;
        self.cut(Cut::Rst);
        self.page_has(9).await;

        self.is_settled().await;
        let again = Some(5);
        let mut reads = vec![(None, None), (None, Some(2)), (None, Some(3))];
        reads.extend([(again, None), (again, None), (again, Some(7)), (again, Some(8))]);
        if !self.closes {
            // The browser cannot know that it has read the end. It asks once, and 204 tells it.
            reads.push((again, Some(9)));
        }
        self.asked_for(&reads);

        // And loaded again after the end.
        self.reload().await;
        self.is_settled().await;
        reads.push((Some(9), None));
        self.asked_for(&reads);

        assert!(self.proxy.connections() > 5, "each of the five cuts took one");
        assert_eq!(self.upstream.seen().iter().filter(|seen| seen.line.starts_with("POST")).count(), 1);
    }

    /// Lets the upstream go on, and the page have what comes up to these bytes.
    async fn pass_no_more_than(&self, bytes: &[u8]) {
        self.proxy.stop_behind(bytes);
        self.upstream.release();
        self.proxy.stopped().await;
    }

    fn cut(&self, how: Cut) {
        assert!(self.proxy.cut(how) > 0, "the page is connected");
    }

    /// Waits until the page has read that event, and looks at what it has then: nothing twice, nothing left out.
    async fn page_has(&self, last: usize) {
        // The page may be at more than one event already when it is asked.
        self.browser.wait_for(&format!("typeof read === 'object' && Number(read.last) >= {last}")).await;
        let read = self.browser.script("return {...read, shown: document.getElementById('text').textContent}").await;
        let is_whole = last == CHUNKS.len() + 2;
        let kinds = (1..=last).map(|event| match event {
            1 => "1 START".to_owned(),
            _ if event == CHUNKS.len() + 2 => format!("{event} END"),
            _ => format!("{event} CHUNK"),
        });
        let text = CHUNKS[..CHUNKS.len().min(last - 1)].concat();
        let end = if is_whole { json!(text) } else { Value::Null };
        let expected = json!({
            "text": text, "shown": text, "last": last.to_string(), "events": kinds.collect::<Vec<_>>(), "end": end,
        });
        assert_eq!(read, expected);
    }

    async fn reload(&self) {
        self.browser.script("window.isOld = true; location.reload()").await;
        self.browser.wait_for("!window.isOld && document.readyState === 'complete'").await;
    }

    /// Waits until the browser has given up the stream: an EventSource that is closed never opens again. To see that
    /// it keeps to that, two more round trips, which whatever it still had to ask would have preceded.
    async fn is_settled(&self) {
        self.browser.wait_for("source.readyState === EventSource.CLOSED").await;
        let before = self.reads().len();
        for _ in 0..2 {
            let health = format!("return fetch({}).then(answer => answer.status)", json!(self.proxy.url("/health")));
            assert_eq!(self.browser.script(&health).await, 200);
        }
        assert_eq!(self.reads().len(), before);
        self.page_has(CHUNKS.len() + 2).await;
    }

    /// That the stream was asked for so often and no more, from these points: of the address, and of the header.
    #[track_caller]
    fn asked_for(&self, points: &[(Option<u64>, Option<u64>)]) {
        let point = |(query, header): &(Option<u64>, Option<u64>)| {
            let query = query.map_or_else(String::new, |query| format!("?last_event_id={query}"));
            (format!("GET {}{query}", self.path), header.map(|header| header.to_string()))
        };
        assert_eq!(self.reads(), points.iter().map(point).collect::<Vec<_>>());
        for seen in self.requests() {
            assert_eq!(seen.header("origin"), self.page_origin.as_deref());
        }
    }

    /// Every request for the stream, of whatever method, and its `Last-Event-ID`.
    fn reads(&self) -> Vec<(String, Option<String>)> {
        let point = |seen: Seen| (seen.line.clone(), seen.header("last-event-id").map(str::to_owned));
        self.requests().into_iter().map(point).collect()
    }

    fn requests(&self) -> Vec<Seen> {
        let is_read = |seen: &Seen| seen.line.contains(&self.path) && !seen.line.contains(" /page");
        self.proxy.requests().into_iter().filter(is_read).collect()
    }
}

/// An answer that waits before each step, until the test lets it go on.
fn script() -> Vec<Play> {
    let event = |choice: Value| {
        let chunk = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1767225600, "model": "gpt-4o",
            "choices": [choice],
        });
        format!("data: {chunk}\n\n")
    };
    let text = |content: &str| event(json!({"index": 0, "delta": {"content": content}, "finish_reason": null}));
    let [first, second, third, fourth, fifth, sixth, seventh] = CHUNKS;
    let end = event(json!({"index": 0, "delta": {}, "finish_reason": "stop"})) + "data: [DONE]\n\n";
    let steps = [text(first), text(second), text(third), text(fourth), text(fifth), text(sixth) + &text(seventh), end];
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let mut script = vec![Play::Send(head.into())];
    script.extend(steps.into_iter().flat_map(|step| [Play::Hold, Play::Send(step.into_bytes())]));
    script.push(Play::Close);
    script
}
