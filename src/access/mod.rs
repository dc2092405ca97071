//! Who calls, from where, and whether that is allowed. Pure: no I/O, and no HTTP but the values of headers.
//!
//! What is judged here comes from outside and is hostile until it is judged: tokens, tickets, and what proxies say.

mod address;
mod failures;
mod ticket;
mod token;

pub use address::{AddressKey, AddressRules, Verdict};
pub use failures::Failures;
pub use ticket::Tickets;
pub use token::{Authenticator, Denied};
