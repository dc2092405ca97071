//! `/docs`, `/redoc` and `/openapi.json`, as far as no browser is needed.

use ai_service::config::ApiKey;
use serde_json::Value;

use crate::support::{ScriptedUpstream, TestApp};

async fn document() -> Value {
    let upstream = ScriptedUpstream::start().await;
    TestApp::start(&upstream.base_url).await.get("/openapi.json").await.json()
}

#[tokio::test]
async fn the_openapi_document_is_this_one() {
    insta::assert_json_snapshot!("openapi", document().await);
}

fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    })
}

#[tokio::test]
async fn every_operation_has_a_summary_examples_and_its_errors() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let resolve = |schema: &Value| {
        let name = schema["$ref"].as_str().unwrap_or_else(|| panic!("{schema}"));
        document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{name}")).clone()
    };
    let has_example =
        |media: &Value| media.get("example").is_some() || resolve(&media["schema"]).get("example").is_some();
    let common = ["400", "408", "413", "415", "422", "500", "503"];
    let upstream = ["404", "429", "502", "504"];
    let mut count = 0;
    for (name, operation) in operations(&document) {
        count += 1;
        for field in ["summary", "description", "operationId"] {
            assert!(operation[field].as_str().is_some_and(|text| !text.is_empty()), "{name} {field}");
        }
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|status| ["101", "200", "201"].contains(&status.as_str()))
                && responses.contains_key("500"),
            "{name}"
        );
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} {status}");
            let media = response["content"].as_object();
            assert_eq!(media.is_none(), status == "204" || status == "101", "{name} {status}");
            for (kind, media) in media.into_iter().flatten() {
                assert!(has_example(media), "{name} {status} {kind} has no example");
            }
        }
        if let Some(body) = operation.get("requestBody") {
            assert!(has_example(&body["content"]["application/json"]), "{name} has no example request");
            let chats: &[&str] = if name == "post /chat" { &upstream } else { &[] };
            assert!(common.iter().chain(chats).all(|status| responses.contains_key(*status)), "{name}");
        }
    }
    assert_eq!(count, 18);
}

#[tokio::test]
async fn what_generators_make_of_the_document_compiles() {
    let document = document().await;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    // What a language calls its own.
    let taken = [
        "Error",
        "Object",
        "String",
        "Number",
        "Boolean",
        "Array",
        "Date",
        "Map",
        "Set",
        "Symbol",
        "Promise",
        "Function",
        "Record",
        "Request",
        "Response",
        "Headers",
        "Blob",
        "File",
        "Event",
        "Any",
        "List",
        "Dict",
        "Exception",
        "Integer",
        "Optional",
        "u64",
        "i64",
        "f64",
    ];
    for name in schemas.keys() {
        assert!(!taken.contains(&name.as_str()), "{name}");
    }
    for reference in document.to_string().split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    // A text, which no program can take for an object; what the text says has a description of its own.
    for (path, method) in [("/chat", "post"), ("/chat/stream/{stream_id}", "get")] {
        let events = &document["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"];
        assert_eq!(events["schema"], serde_json::json!({"type": "string"}), "{path}");
        let example = events["example"].as_str().unwrap();
        assert!(
            example.starts_with("retry: 1000\nevent: chunk\ndata: ") && example.ends_with("\nid: 4\n\n"),
            "{example}"
        );
    }
    assert!(schemas.contains_key("StreamEvent"));
    // What has a default is there for certain to some generators, also in what is sent.
    let question = &schemas["ChatRequest"];
    assert_eq!(question["required"], serde_json::json!(["message"]));
    for (name, field) in question["properties"].as_object().unwrap() {
        assert!(field.get("default").is_none(), "{name}");
    }
    assert_eq!(document["servers"][0]["url"], ".");
    let names = ["Last-Event-ID", "last_event_id", "lastEventId", "evs_last_event_id"];
    let parameters = document["paths"]["/chat/stream/{stream_id}"]["get"]["parameters"].as_array().unwrap();
    for name in names {
        assert!(parameters.iter().any(|parameter| parameter["name"] == name), "{name}");
    }
}

#[tokio::test]
async fn whoever_reads_the_document_learns_which_routes_need_a_key_and_what_they_answer_without() {
    let upstream = ScriptedUpstream::start().await;
    let keyed = TestApp::start_with(&upstream.base_url, |config| {
        config.access.keys = vec![ApiKey::new("somebody", "a-key-of-sixteen-x")];
    });
    let document_with_keys = keyed.await.get("/openapi.json").await.json();
    let open = document().await;
    let is_public = |operation: &Value| operation["security"].as_array().unwrap().is_empty();
    for (name, operation) in operations(&open).filter(|(_, operation)| !is_public(operation)) {
        assert_eq!(operation["security"][0], serde_json::json!({}), "{name}: nobody needs to be known");
    }
    let schemes = &document_with_keys["components"]["securitySchemes"];
    assert_eq!((&schemes["bearer"]["type"], &schemes["bearer"]["scheme"]), (&"http".into(), &"bearer".into()));
    for (name, operation) in operations(&document_with_keys) {
        let needs = |scheme: &str| serde_json::json!({scheme: []});
        let expected = match name.as_str() {
            "get /" | "get /health" => Value::Array(Vec::new()),
            "get /chat/stream/{stream_id}" | "delete /chat/stream/{stream_id}" => {
                Value::Array(vec![needs("bearer"), needs("ticket")])
            }
            _ => Value::Array(vec![needs("bearer")]),
        };
        assert_eq!(operation["security"], expected, "{name}");
        for status in ["401", "403", "429", "503"] {
            assert_eq!(operation["responses"].get(status).is_some(), !is_public(operation), "{name} {status}");
        }
        assert!(operation["responses"].get("431").is_some(), "{name}");
    }
}

#[tokio::test]
async fn the_example_request_is_accepted() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let example = document().await["components"]["schemas"]["ChatRequest"]["example"].clone();
    assert_eq!(app.chat(&example).await.status, 200);
    assert_eq!(upstream.seen()[0].body["messages"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn the_pages_and_their_files_come_from_the_service() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for page in ["/docs", "/redoc"] {
        let answer = app.get(page).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let html = answer.text();
        assert!(!html.contains("http://") && !html.contains("https://"), "{html}");
        let named: Vec<_> = html
            .split('"')
            .filter(|part| part.contains(['/', '.']) && !part.contains(['<', ',', '>']) && *part != "image/png")
            .collect();
        assert!(named.len() >= 3, "{named:?}");
        for file in named {
            // A proxy may serve the page below a path of its own.
            assert!(!file.starts_with('/'), "{file}");
            assert_eq!(app.get(&format!("/{file}")).await.status, 200, "{file}");
        }
    }
    for page in ["/docs", "/redoc"] {
        let policy = app.get(page).await.header("content-security-policy").unwrap().to_owned();
        for part in ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("script-src 'self' ") && !policy.contains("http"), "{policy}");
    }
    let script = app.get("/redoc/redoc.standalone.js").await.text();
    assert!(script.len() > 500_000, "the whole script");
    assert!(!script.contains("cdn.redoc.ly") && !script.contains("redoc.standalone.js.map"));
    assert!(app.get("/docs/assets/swagger-initializer.js").await.text().contains("\"validatorUrl\": \"none\""));
    for missing in ["/docs/assets/nope.js", "/docs/assets/..%2f..%2fCargo.toml", "/docs/", "/docs/assets/"] {
        app.get(missing).await.error(404);
    }
}

#[tokio::test]
#[ignore = "needs openapi-spec-validator from PyPI; run by make test"]
async fn the_openapi_document_is_valid() {
    let validator = std::env::var("OPENAPI_SPEC_VALIDATOR").expect("make test says where the validator is");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("openapi.json");
    let document = document().await;
    std::fs::write(&file, document.to_string()).unwrap();
    let validate = || std::process::Command::new(&validator).arg(&file).output().unwrap();
    let output = validate();
    assert!(output.status.success(), "{output:?}");
    // That the validator can say no.
    let mut broken = document;
    broken["paths"]["/chat"]["post"]["responses"]["200"].as_object_mut().unwrap().remove("description");
    std::fs::write(&file, broken.to_string()).unwrap();
    assert!(!validate().status.success());
}
