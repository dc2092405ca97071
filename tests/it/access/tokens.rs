//! API keys and JSON Web Tokens, whatever signs them.

use std::io::Write;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use base64::Engine;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::{ALICE, Service};
use crate::support::{ScriptedUpstream, TestApp};

/// A token of the issuer that the tests know, or of what `change` makes of it.
pub(super) fn jwt(secret: &str, change: impl FnOnce(&mut Value)) -> String {
    encode(&Header::default(), &claims(change), &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let soon = chrono::Utc::now().timestamp() + 300;
    let mut claims = json!({"sub": "carol", "iss": "https://login.example", "aud": "ai-service", "exp": soon});
    change(&mut claims);
    claims
}

/// The text form of a key.
fn pem(what: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

/// A new key, and the file of its public half.
fn pair(algorithm: Algorithm) -> (EncodingKey, tempfile::NamedTempFile) {
    fn halves(private: &[u8], public: PublicKeyX509Der<'_>) -> (String, String) {
        (pem("PRIVATE KEY", private), pem("PUBLIC KEY", public.as_ref()))
    }
    let (key, public) = match algorithm {
        Algorithm::RS256 => {
            let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
            let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
            let (private, public) = halves(private.as_ref(), pair.public_key().as_der().unwrap());
            (EncodingKey::from_rsa_pem(private.as_bytes()), public)
        }
        Algorithm::ES256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let private = pair.to_pkcs8v1().unwrap();
            let (private, public) = halves(private.as_ref(), pair.public_key().as_der().unwrap());
            (EncodingKey::from_ec_pem(private.as_bytes()), public)
        }
        _ => {
            let pair = Ed25519KeyPair::generate().unwrap();
            let private = pair.to_pkcs8v1().unwrap();
            let (private, public) = halves(private.as_ref(), pair.public_key().as_der().unwrap());
            (EncodingKey::from_ed_pem(private.as_bytes()), public)
        }
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(public.as_bytes()).unwrap();
    (key.unwrap(), file)
}

#[tokio::test]
async fn public_keys_of_three_kinds_know_their_tokens_and_no_others() {
    let upstream = ScriptedUpstream::start().await;
    for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let (private, public) = pair(algorithm);
        let sign = |private: &EncodingKey, change: fn(&mut Value)| {
            encode(&Header::new(algorithm), &claims(change), private).unwrap()
        };
        let variables = [
            ("JWT_PUBLIC_KEY_FILE", public.path().to_str().unwrap()),
            ("JWT_AUDIENCE", "ai-service"),
            ("JWT_ISSUER", "https://login.example"),
        ];
        let app = TestApp::start_from(&upstream.base_url, &variables).await;
        let status = async |token: &str| app.asked_by(token).get("/models").await.status.as_u16();
        assert_eq!(status(&sign(&private, |_| {})).await, 200, "{algorithm:?}");
        let late = |claims: &mut Value| claims["exp"] = (chrono::Utc::now().timestamp() - 50).into();
        assert_eq!(status(&sign(&private, late)).await, 200, "within the leeway");

        let of_others: [fn(&mut Value); 4] = [
            |claims| claims["exp"] = (chrono::Utc::now().timestamp() - 70).into(),
            |claims| claims["aud"] = "other".into(),
            |claims| claims["iss"] = "https://evil.example".into(),
            |claims| drop(claims.as_object_mut().unwrap().remove("exp")),
        ];
        for change in of_others {
            assert_eq!(status(&sign(&private, change)).await, 401, "{algorithm:?}");
        }
        assert_eq!(status(&sign(&pair(algorithm).0, |_| {})).await, 401, "another key of {algorithm:?}");
        // The oldest trick: the public key, which everybody has, as the secret of another algorithm.
        let pem = std::fs::read_to_string(public.path()).unwrap();
        assert_eq!(status(&jwt(&pem, |_| {})).await, 401, "{algorithm:?}");
        assert_eq!(status("sk-x").await, 401);
    }
}

#[tokio::test]
async fn how_long_a_token_is_good_is_its_issuers_decision() {
    let secret = "a secret of at least thirty-two bytes";
    let pairs = [("JWT_SECRET", secret), ("JWT_ISSUER", "https://login.example")];
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_from(&upstream.base_url, &pairs).await;
    let exp = claims(|_| {})["exp"].as_i64().unwrap();
    for (token, status) in [
        (jwt(secret, |claims| claims["exp"] = json!(exp * 1000)), 200),
        (jwt(secret, |claims| claims["iss"] = json!(["https://other.example", "https://login.example"])), 200),
        (jwt(secret, |claims| claims["iss"] = json!(["https://other.example"])), 401),
    ] {
        assert_eq!(app.asked_by(&token).get("/models").await.status, status, "{token}");
    }
}

#[tokio::test]
async fn a_caller_is_whom_the_token_names_and_never_whom_a_key_names() {
    let secret = "canary-jwt-secret-of-32-bytes-and-more";
    let service = Service::start_with(&[("JWT_SECRET", secret)]).await;
    let as_subject =
        |subject: &'static str| service.app.asked_by(&jwt(secret, |claims| claims["sub"] = subject.into()));
    let (named_alike, other) = (as_subject("alice"), as_subject("dave"));
    service.alice.put("/conversations/trip", &json!([])).await;
    assert_eq!(service.alice.get("/conversations/trip").await.status, 200);
    for caller in [&named_alike, &other, &as_subject("key:alice")] {
        caller.get("/conversations/trip").await.error(404);
    }
    named_alike.put("/conversations/trip", &json!([{"role": "user", "content": "x"}])).await;
    assert_eq!(as_subject("alice").get("/conversations/trip").await.json()["total_messages"], 1, "by another token");
    assert_eq!(service.alice.get("/conversations/trip").await.json()["total_messages"], 0);
}

#[tokio::test]
async fn the_scheme_may_be_written_in_any_case_and_followed_by_spaces() {
    let service = Service::start().await;
    for value in [format!("bearer {ALICE}"), format!("BEARER {ALICE}"), format!("Bearer   {ALICE}")] {
        let answer = service.app.asked_with(&[("authorization", &value)]).get("/models").await;
        assert_eq!(answer.status, 200, "{value}");
    }
}

#[tokio::test]
async fn a_header_of_no_text_is_401() {
    let service = Service::start().await;
    for value in [&b"Bearer \xff\xfe"[..], "Bearer 열쇠".as_bytes(), b"\xff", b"Bearer \t"] {
        let request = [b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: ", value, b"\r\n\r\n"];
        let answer = service.app.raw(&request.concat()).await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("www-authenticate: Bearer"), "{answer}");
    }
}

#[tokio::test]
async fn a_caller_with_two_keys_is_one_caller_so_that_a_key_can_be_changed() {
    let upstream = ScriptedUpstream::start().await;
    let keys = [("API_KEYS", "alice:the-old-key-of-alice,alice:the-new-key-of-alice,bob:the-key-of-bob-itself")];
    let app = TestApp::start_from(&upstream.base_url, &keys).await;
    let (old, new) = (app.asked_by("the-old-key-of-alice"), app.asked_by("the-new-key-of-alice"));
    old.chat(&json!({"message": "x", "conversation_id": "c"})).await;
    assert_eq!(new.get("/conversations/c/messages").await.json().as_array().unwrap().len(), 2);
    app.asked_by("the-key-of-bob-itself").get("/conversations/c").await.error(404);
}
