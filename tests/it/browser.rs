//! `/docs` and `/redoc` as a person meets them: in a real browser.

use serde_json::{Map, Value, json};

use crate::support::{
    ScriptedUpstream, TestApp,
    browser::{Browser, OTHER_HOST},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn swagger_renders_every_operation_and_loads_nothing_from_outside() {
    let (_upstream, app) = service().await;
    let operations = operations(&app).await;
    let browser = Browser::start().await;

    browser.goto(&app.url("/docs")).await;

    browser.wait_for(&format!("{SWAGGER_OPERATIONS}.length >= {}", operations.len())).await;
    let mut shown: Vec<_> = as_strings(&browser.script(&format!("return {SWAGGER_OPERATIONS}")).await);
    let mut expected: Vec<_> =
        operations.iter().map(|operation| format!("{} {}", operation.method, operation.path)).collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected);
    assert_eq!(browser.title().await, "ChatGPT Clone AI Service - Swagger UI");
    assert_eq!(browser.script(VALIDATOR).await, json!([]));
    assert_stayed_inside(&browser, &app.url("/")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn swagger_shows_the_documents_example_of_every_answer() {
    let (_upstream, app) = service().await;
    let document = app.get("/openapi.json").await.json();
    let browser = Browser::start().await;
    browser.goto(&app.url("/docs")).await;

    for operation in &operations(&app).await {
        let block = operation.swagger_block();
        browser.click(&format!("{block} .opblock-summary-control")).await;
        let rows = json!(format!("{block} .responses-table tr.response"));
        let examples = format!(
            "Object.fromEntries([...document.querySelectorAll({rows})].map(row => \
             [row.dataset.code, row.querySelector('pre.example') && \
              [row.querySelector('pre.example').innerText, row.querySelector('select.content-type')?.value]]))"
        );
        let with_body: Vec<_> =
            operation.answers.iter().filter(|(_, answer)| answer.get("content").is_some()).collect();
        browser.wait_for(&format!("Object.values({examples}).filter(Boolean).length >= {}", with_body.len())).await;
        let shown = browser.script(&format!("return {examples}")).await;

        for (status, answer) in with_body {
            let text = shown[status][0].as_str().unwrap_or_else(|| panic!("{status} is missing in {shown}"));
            // Of several forms of an answer, one is selected.
            let form = shown[status][1].as_str().unwrap_or("application/json");
            let content = answer["content"].get(form).unwrap_or_else(|| panic!("{form} is not in {answer}"));
            if form != "application/json" {
                assert_eq!(text.trim(), content["example"].as_str().expect("text").trim(), "{status} of {operation:?}");
                continue;
            }
            let schema = content["schema"]["$ref"].as_str().map(|name| name.trim_start_matches('#'));
            let own = content.get("example").or_else(|| content["examples"].as_object()?.values().next()?.get("value"));
            let expected = own.or_else(|| document.pointer(schema?)?.get("example"));
            let text: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(Some(&text), expected, "{status} of {operation:?}");
        }
    }

    // Where Swagger UI lists what it could not resolve.
    assert_eq!(browser.script("return document.querySelector('.errors-wrapper')?.innerText").await, Value::Null);
    assert_stayed_inside(&browser, &app.url("/")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn try_it_out_on_post_chat_works_with_the_pages_own_example() {
    let (upstream, app) = service().await;
    let example = app.get("/openapi.json").await.json()["components"]["schemas"]["ChatRequest"]["example"].take();
    let operations = operations(&app).await;
    let chat = operations.iter().find(|operation| operation.method == "POST" && operation.path == "/chat");
    let block = chat.expect("POST /chat").swagger_block();
    let browser = Browser::start().await;
    browser.goto(&app.url("/docs")).await;

    browser.click(&format!("{block} .opblock-summary-control")).await;
    let request = format!("document.querySelector({})?.value", json!(format!("{block} .body-param__text")));
    browser.wait_for(&request).await;
    let prefilled = browser.script(&format!("return {request}")).await;
    let prefilled: Value = serde_json::from_str(prefilled.as_str().expect("text")).expect("JSON");
    assert_eq!(prefilled, example);
    browser.click(&format!("{block} .execute")).await;

    let live = live_response(&block);
    browser.wait_for(&format!("{live}.status")).await;
    let live = browser.script(&format!("return {live}")).await;
    assert_eq!(live["status"], "200", "{live}");
    let shown: Value = serde_json::from_str(live["body"].as_str().expect("text")).expect("JSON");
    assert_eq!(shown["response"], "안녕하세요! 무엇을 도와드릴까요?");
    assert_eq!(shown["model"], example["model"]);

    let mut messages = vec![json!({"role": "system", "content": example["system_prompt"]})];
    messages.extend(example["conversation_history"].as_array().expect("a history").iter().cloned());
    messages.push(json!({"role": "user", "content": example["message"]}));
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "POST /v1/chat/completions");
    assert_eq!(seen[0].body["messages"], json!(messages));
    assert_eq!(seen[0].body["model"], example["model"]);
    assert_eq!(seen[0].body["temperature"], example["temperature"]);
    assert_eq!(seen[0].body["max_tokens"], example["max_tokens"]);
    assert_stayed_inside(&browser, &app.url("/")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn authorize_makes_try_it_out_work_where_callers_need_a_key() {
    let upstream = ScriptedUpstream::start().await;
    let key = "canary-key-of-alice-1f6c";
    let app = TestApp::start_from(&upstream.base_url, &[("API_KEYS", &format!("alice:{key}"))]).await;
    let operations = operations(&app).await;
    let chat = operations.iter().find(|operation| operation.method == "POST" && operation.path == "/chat");
    let block = chat.expect("POST /chat").swagger_block();
    let browser = Browser::start().await;
    browser.goto(&app.url("/docs")).await;
    browser.click(&format!("{block} .opblock-summary-control")).await;
    let live = live_response(&block);
    let execute = async || {
        browser.click(&format!("{block} .execute")).await;
        browser.wait_for(&format!("{live}.status")).await;
        browser.script(&format!("return {live}.status")).await
    };
    assert_eq!(execute().await, "401");
    let errors = browser.console_errors().await;
    assert!(errors.iter().all(|error| error.contains("401 (Unauthorized)")), "{errors:#?}");

    browser.click(".btn.authorize").await;
    browser.type_into("#auth-bearer-value", key).await;
    browser.click(".auth-container:has(#auth-bearer-value) button.authorize").await;
    browser.click(".auth-container:has([aria-label=\"Remove authorization\"]) button.btn-done").await;
    // What is shown of the first answer goes before the second is asked for.
    browser.click(&format!("{block} .btn-clear")).await;
    browser.wait_for(&format!("!{live}.status")).await;
    assert_eq!(execute().await, "200");
    assert_eq!(upstream.seen().len(), 1);
    assert_stayed_inside(&browser, &app.url("/")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn redoc_renders_every_operation_and_loads_nothing_from_outside() {
    let (_upstream, app) = service().await;
    let operations = operations(&app).await;
    let browser = Browser::start().await;

    browser.goto(&app.url("/redoc")).await;

    for operation in &operations {
        let section = format!("document.querySelector('[id$=\"/operation/{}\"]')", operation.id);
        browser.wait_for(&format!("{section}?.checkVisibility()")).await;
        let text = browser.script(&format!("return {section}.innerText")).await;
        let text = text.as_str().expect("text");
        for part in [&operation.summary, &operation.path] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        for status in operation.answers.keys() {
            assert!(text.lines().any(|line| line.starts_with(status)), "{status} is missing in {text}");
        }
    }
    assert_eq!(browser.title().await, "ChatGPT Clone AI Service - ReDoc");
    assert_stayed_inside(&browser, &app.url("/")).await;
}

/// On `localhost` and on addresses Swagger UI never shows the badge of an outside validator, so that only another
/// name tells whether it is turned off.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn docs_work_on_another_host_name() {
    let (upstream, app) = service().await;
    let operations = operations(&app).await;
    let health = operations.iter().find(|operation| operation.path == "/health").expect("GET /health");
    let block = health.swagger_block();
    let origin = format!("http://{OTHER_HOST}:{}/", app.address.port());
    let browser = Browser::start().await;

    browser.goto(&format!("{origin}docs")).await;
    browser.click(&format!("{block} .opblock-summary-control")).await;
    browser.click(&format!("{block} .execute")).await;

    let live = live_response(&block);
    browser.wait_for(&format!("{live}.status")).await;
    assert_eq!(browser.script(&format!("return {live}.status")).await, "200");
    assert_eq!(upstream.seen().len(), 1, "the answer is this service's");
    assert_eq!(browser.script(VALIDATOR).await, json!([]));
    assert_stayed_inside(&browser, &origin).await;

    browser.goto(&format!("{origin}redoc")).await;
    browser.wait_for(&format!("document.querySelector('[id$=\"/operation/{}\"]')", health.id)).await;
    assert_stayed_inside(&browser, &origin).await;
}

/// `METHOD /path` of everything that Swagger UI shows.
const SWAGGER_OPERATIONS: &str = "[...document.querySelectorAll('.opblock')].filter(block => block.checkVisibility()) \
     .map(block => block.querySelector('.opblock-summary-method').innerText + ' ' \
     + block.querySelector('.opblock-summary-path').dataset.path)";

/// Whatever in the page has to do with a validator.
const VALIDATOR: &str = "return [...document.querySelectorAll('a[href*=validator], img[src*=validator], \
     img[alt*=validator]')].map(element => element.outerHTML)";

/// The `status` and `body` that Try it out shows of the real answer; both undefined until there is one.
fn live_response(block: &str) -> String {
    let shown = json!(format!("{block} .live-responses-table tr.response"));
    format!(
        "(row => ({{status: row?.querySelector('.response-col_status').innerText.trim().split('\\n')[0], \
         body: row?.querySelector('.highlight-code pre').innerText}}))(document.querySelector({shown}))"
    )
}

async fn service() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    (upstream, app)
}

/// An operation as the OpenAPI document has it.
#[derive(Debug)]
struct Operation {
    /// Upper-case.
    method: String,
    path: String,
    id: String,
    summary: String,
    /// By status.
    answers: Map<String, Value>,
}

impl Operation {
    /// Where Swagger UI shows it.
    fn swagger_block(&self) -> String {
        format!(".opblock-{}:has([data-path=\"{}\"])", self.method.to_lowercase(), self.path)
    }
}

async fn operations(app: &TestApp) -> Vec<Operation> {
    let document = app.get("/openapi.json").await.json();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("a path") {
            let text = |name: &str| operation[name].as_str().unwrap_or_else(|| panic!("no {name}: {path}")).to_owned();
            operations.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                id: text("operationId"),
                summary: text("summary"),
                answers: operation["responses"].as_object().expect("responses").clone(),
            });
        }
    }
    assert!(!operations.is_empty());
    operations
}

fn as_strings(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|item| item.as_str().expect("text").to_owned()).collect()
}

/// That the page asked for the document, for nothing of another origin, and that it has no complaint.
async fn assert_stayed_inside(browser: &Browser, origin: &str) {
    let urls = browser.requested_urls().await;
    assert!(urls.contains(&format!("{origin}openapi.json")), "{urls:#?}");
    // The browser's own page for a new tab asks for things of its own.
    let inside = [origin, "data:", "blob:", "chrome:", "chrome-untrusted:"];
    let outside: Vec<_> = urls.iter().filter(|url| !inside.iter().any(|prefix| url.starts_with(prefix))).collect();
    assert!(outside.is_empty(), "{outside:#?}");
    assert_eq!(browser.console_errors().await, Vec::<String>::new());
}
