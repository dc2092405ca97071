//! What each model has taught us about the parameters it takes.
//!
//! Models differ: reasoning models refuse `max_tokens` and any `temperature`, some compatible servers know no
//! `max_completion_tokens`. A table of names would age; the upstream's own 400 names the parameter, so one refusal
//! teaches the model's dialect and later requests speak it from the start.

use dashmap::DashMap;

use crate::openai::wire::ErrorBody;

/// How to write a request for one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dialect {
    /// The token limit goes by its newer name, `max_completion_tokens`.
    pub(super) newer_limit_name: bool,
    /// The model takes no `temperature`.
    pub(super) no_temperature: bool,
}

/// A parameter that was refused and can be written otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    MaxTokens,
    MaxCompletionTokens,
    Temperature,
}

impl Dialect {
    /// The dialect to try next after `error`, or `None` when it names nothing that can be repaired, or something
    /// that was repaired already.
    pub(super) fn repaired(self, error: &ErrorBody) -> Option<Self> {
        match refused(error)? {
            Refused::MaxTokens if !self.newer_limit_name => Some(Self { newer_limit_name: true, ..self }),
            Refused::MaxCompletionTokens if self.newer_limit_name => Some(Self { newer_limit_name: false, ..self }),
            Refused::Temperature if !self.no_temperature => Some(Self { no_temperature: true, ..self }),
            _ => None,
        }
    }
}

fn refused(error: &ErrorBody) -> Option<Refused> {
    let by_code = matches!(error.code.as_str(), "unsupported_parameter" | "unsupported_value");
    // Some models send the same sentence with a null code.
    let by_text = ["Unsupported parameter", "Unsupported value"].iter().any(|start| error.message.starts_with(start));
    if !by_code && !by_text {
        return None;
    }
    let quoted = error.message.split('\'').nth(1).unwrap_or_default();
    let name = if error.param.is_empty() { quoted } else { error.param.as_str() };
    match name {
        "max_tokens" => Some(Refused::MaxTokens),
        "max_completion_tokens" => Some(Refused::MaxCompletionTokens),
        "temperature" => Some(Refused::Temperature),
        _ => None,
    }
}

/// The dialects learned so far, by model. Models that take the usual parameters are not in it.
#[derive(Debug, Default)]
pub(super) struct Dialects(DashMap<String, Dialect>);

impl Dialects {
    /// Most models remembered. The names come from callers, and a model must exist upstream to refuse a
    /// parameter, so this is never reached in practice; past it, a repair is made anew each time.
    const MAX_MODELS: usize = 1000;

    pub(super) fn of(&self, model: &str) -> Dialect {
        self.0.get(model).map(|known| *known).unwrap_or_default()
    }

    pub(super) fn learn(&self, model: &str, dialect: Dialect) {
        if self.0.len() < Self::MAX_MODELS || self.0.contains_key(model) {
            self.0.insert(model.to_owned(), dialect);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, param: &str, message: &str) -> ErrorBody {
        ErrorBody { message: message.into(), kind: String::new(), param: param.into(), code: code.into() }
    }

    #[test]
    fn each_refusal_repairs_one_parameter_once() {
        let usual = Dialect::default();
        let limit =
            error("unsupported_parameter", "max_tokens", "Unsupported parameter: 'max_tokens' is not supported");
        let newer = usual.repaired(&limit).unwrap();
        assert!(newer.newer_limit_name && !newer.no_temperature);
        assert_eq!(newer.repaired(&limit), None);

        let value = error("unsupported_value", "temperature", "Unsupported value: 'temperature' does not support 0.2");
        let both = newer.repaired(&value).unwrap();
        assert!(both.newer_limit_name && both.no_temperature);
        assert_eq!(both.repaired(&value), None);
    }

    #[test]
    fn a_refusal_without_code_or_param_is_understood_by_its_sentence() {
        let bare = error("", "", "Unsupported parameter: 'temperature' is not supported with this model.");
        assert!(Dialect::default().repaired(&bare).unwrap().no_temperature);
    }

    #[test]
    fn other_errors_repair_nothing() {
        for other in [
            error("invalid_value", "temperature", "too hot"),
            error("unsupported_parameter", "top_p", "Unsupported parameter: 'top_p'"),
            error("unsupported_parameter", "", ""),
            error("", "", ""),
        ] {
            assert_eq!(Dialect::default().repaired(&other), None);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let dialects = Dialects::default();
        let learned = Dialect { no_temperature: true, ..Dialect::default() };
        for n in 0..Dialects::MAX_MODELS + 5 {
            dialects.learn(&n.to_string(), learned);
        }
        assert_eq!(dialects.0.len(), Dialects::MAX_MODELS);
        assert_eq!(dialects.of("3"), learned);
        assert_eq!(dialects.of("unknown"), Dialect::default());
    }
}
