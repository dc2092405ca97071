//! What the guard decides by.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

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
    /// Whether the first request that comes through a proxy nobody knows of is still to be told of. Of a service that tells
    /// its callers apart, for which all behind that proxy are one address.
    watches_for_proxies: AtomicBool,
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
        let watches_for_proxies = AtomicBool::new(access.trusted_proxies.is_empty() && !authenticator.is_open());
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
            watches_for_proxies,
        }
    }

    /// Tells, once, of a proxy that is not believed.
    pub(super) fn watch_for_proxies(&self, is_forwarded: impl FnOnce() -> bool) {
        if self.watches_for_proxies.load(Ordering::Relaxed)
            && is_forwarded()
            && self.watches_for_proxies.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(
                "a request came with X-Forwarded-For, which is not believed: set TRUSTED_PROXIES to the proxy's address, or \
                 all callers behind it share one",
            );
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
