//! The one list of models that misbehave, so that every error can be seen without spending a cent.

/// A model name and what goes wrong when it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Misbehaviour {
    pub model: &'static str,
    /// For people.
    pub what: &'static str,
    pub(super) act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// An error with this status, `error.type`, `error.code` and message.
    Error(u16, &'static str, &'static str, &'static str),
    /// A page of HTML with status 502.
    Html,
    /// Status 200 with something that is not an answer.
    Garbage,
    /// A redirect elsewhere.
    Redirect,
    /// The connection breaks in the middle of the answer.
    Cut,
    /// The answer ends in the middle, in good order and without saying that it is complete.
    Truncated,
    /// Begins to answer and falls silent for ever.
    Stall,
    /// Ten times slower.
    Slow,
    /// An error event in the middle of a stream, or in a body with status 200.
    ErrorInside,
    /// A stream event that is not JSON, or half a JSON body.
    Malformed,
    /// A complete answer without text, its token budget spent on thought.
    Empty,
    /// A refusal instead of content.
    Refusal,
    /// Stops at its token limit.
    Length,
    /// Two thousand words.
    Long,
    /// Refuses `max_tokens` and `temperature`, as reasoning models do.
    Reasoning,
}

/// Every model that misbehaves. README lists the same ones.
pub const MISBEHAVIOURS: &[Misbehaviour] = &[
    of(
        "sim-error-400",
        "the messages are too long for the model",
        Act::Error(
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "This model's maximum context length is 16385 tokens. However, your messages resulted in 20000 tokens.",
        ),
    ),
    of(
        "sim-error-401",
        "OpenAI does not accept the key",
        Act::Error(
            401,
            "invalid_request_error",
            "invalid_api_key",
            "Incorrect API key provided: sk-sim******1234. You can find your API key in your account.",
        ),
    ),
    of(
        "sim-error-403",
        "the key may not do this",
        Act::Error(
            403,
            "request_forbidden",
            "unsupported_country_region_territory",
            "Country, region, or territory not supported",
        ),
    ),
    of(
        "sim-error-404",
        "no such model",
        Act::Error(
            404,
            "invalid_request_error",
            "model_not_found",
            "The model `sim-error-404` does not exist or you do not have access to it.",
        ),
    ),
    of(
        "sim-error-429",
        "too many requests",
        Act::Error(
            429,
            "requests",
            "rate_limit_exceeded",
            "Rate limit reached for sim-error-429 in organization org-sim on requests per min (RPM): Limit 3, Used 3.",
        ),
    ),
    of(
        "sim-error-quota",
        "the account has no money left",
        Act::Error(
            429,
            "insufficient_quota",
            "insufficient_quota",
            "You exceeded your current quota, please check your plan and billing details.",
        ),
    ),
    of(
        "sim-error-500",
        "OpenAI fails",
        Act::Error(500, "server_error", "", "The server had an error while processing your request. Sorry about that!"),
    ),
    of(
        "sim-error-503",
        "OpenAI is overloaded",
        Act::Error(503, "service_unavailable_error", "server_is_overloaded", "The server is currently overloaded."),
    ),
    of("sim-html", "a proxy in between answers with a page of HTML", Act::Html),
    of("sim-garbage", "status 200 with something that is not an answer", Act::Garbage),
    of("sim-redirect", "a redirect elsewhere, which is not followed", Act::Redirect),
    of("sim-cut", "the connection breaks in the middle of the answer", Act::Cut),
    of("sim-truncated", "the answer ends in the middle, in good order", Act::Truncated),
    of("sim-stall", "the answer begins and falls silent for ever", Act::Stall),
    of("sim-slow", "ten times slower than usual", Act::Slow),
    of("sim-error-inside", "an error in the middle of the answer, after status 200", Act::ErrorInside),
    of("sim-malformed", "JSON that is broken in the middle of the answer", Act::Malformed),
    of("sim-empty", "a complete answer without any text", Act::Empty),
    of("sim-refusal", "the model refuses", Act::Refusal),
    of("sim-length", "the answer stops at its token limit", Act::Length),
    of("sim-long", "two thousand words", Act::Long),
    of("sim-reasoning", "refuses max_tokens and temperature, as reasoning models do", Act::Reasoning),
];

const fn of(model: &'static str, what: &'static str, act: Act) -> Misbehaviour {
    Misbehaviour { model, what, act }
}

pub(super) fn act_of(model: &str) -> Option<Act> {
    MISBEHAVIOURS.iter().find(|known| known.model == model).map(|known| known.act)
}
