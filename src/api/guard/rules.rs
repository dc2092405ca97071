//! What the guard decides by.

use std::sync::Arc;

use crate::{
    access::{AddressRules, Authenticator, Failures, Tickets},
    config::{Access, RateLimits},
    limits::{Quota, RateLimiter},
};

use super::standing::{RECONNECTS, requests_quota, tokens_quota};

/// Who and what is let in, and how much of it.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(super) authenticator: Authenticator,
    pub(super) addresses: AddressRules,
    pub(super) failures: Failures,
    pub(super) tickets: Arc<Tickets>,
    pub(super) limiter: Arc<dyn RateLimiter>,
    pub(super) requests: Option<Quota>,
    pub(super) tokens: Option<Quota>,
    pub(super) max_in_flight: usize,
    /// Whether there is anything to decide besides room: with nothing configured the service is open, as the original.
    pub(super) is_active: bool,
}

impl Rules {
    pub(crate) fn new(
        access: &Access,
        limits: &RateLimits,
        limiter: Arc<dyn RateLimiter>,
        tickets: Arc<Tickets>,
    ) -> Self {
        let authenticator = Authenticator::new(access);
        let has_addresses = !access.blocked.is_empty() || !access.allowed.is_empty();
        let is_active = has_addresses || !authenticator.is_open() || limits.needs_callers();
        Self {
            authenticator,
            addresses: AddressRules::new(access),
            failures: Failures::default(),
            tickets,
            limiter,
            requests: requests_quota(limits),
            tokens: tokens_quota(limits),
            max_in_flight: limits.in_flight,
            is_active,
        }
    }

    /// Whether nobody is told apart.
    pub(crate) fn is_open(&self) -> bool {
        self.authenticator.is_open()
    }

    /// How often one stream may be read again, if that is counted.
    pub(crate) fn reconnects(&self) -> Option<Quota> {
        self.is_active.then_some(RECONNECTS)
    }
}
