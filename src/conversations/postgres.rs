//! How PostgreSQL is reached: by an address that is understood before it is used, and not through a pooler that gives each
//! transaction another session.

use std::{str::FromStr, time::Duration};

use sqlx::{ConnectOptions, Connection, PgConnection, Row, postgres::PgConnectOptions};
use tokio::time::timeout;
use url::Url;

use crate::conversations::error::code;

/// The parameters of an address that have an effect. Source: sqlx-postgres, `options/parse.rs`.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "options",
];

/// How long finding out about a pooler may take. One with a single session to give keeps whoever needs two waiting.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the sessions are compared: a pooler that is busy, or takes turns, may give the right one by chance.
const PROBES: u8 = 4;

/// Why a server will not do, whatever is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// What is said on one connection is heard on another: prepared statements would be other programs', and so would settings.
    Pooler,
    /// The address asks for TLS, and the server has none.
    NoTls,
    /// TLS does not come about, for this reason.
    Tls(String),
    /// A pooler does not take along what the address sets.
    Settings,
}

impl Unfit {
    pub(super) fn problem(&self) -> String {
        match self {
            Self::Pooler => "a pooler in transaction mode is not supported".to_owned(),
            Self::NoTls => "the server offers no TLS, which sslmode asks for".to_owned(),
            Self::Tls(reason) => format!("TLS does not come about: {reason}"),
            Self::Settings => "a pooler in front refuses the options that the address sets".to_owned(),
        }
    }

    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Pooler | Self::Settings => "Let DATABASE_URL name the server itself, or a pool in session mode",
            Self::NoTls => "Turn TLS on at the server, or change sslmode in DATABASE_URL",
            Self::Tls(_) => "Let sslrootcert in DATABASE_URL name the server's authority, or change sslmode",
        }
    }
}

/// What an address says. What of it is not known is left out, for sqlx would show its value in the log; the names of it are
/// logged here.
pub(super) fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let mut url = Url::parse(url).map_err(|error| sqlx::Error::Configuration(error.into()))?;
    let is_known =
        |name: &str| PARAMETERS.contains(&name) || name == "application_name" || name.starts_with("options[");
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    if url.query().is_some() {
        url.set_query(None);
        for (name, value) in &pairs {
            if is_known(name) {
                url.query_pairs_mut().append_pair(name, value);
            } else {
                let name: String = name.chars().filter(char::is_ascii_graphic).take(40).collect();
                tracing::warn!(name, "DATABASE_URL has a parameter that is not known and has no effect");
            }
        }
    }
    let options = PgConnectOptions::from_str(url.as_str())?;
    // Poolers refuse what they do not know, and no number with a fraction is read.
    Ok(options.application_name("ai-service").extra_float_digits(None))
}

/// Whether the server can be used, as far as it answers. `Err` is what stands in the way, which may pass.
pub(super) async fn probe(options: &PgConnectOptions) -> Result<Option<Unfit>, sqlx::Error> {
    let probe = async {
        let mut one = options.connect().await?;
        let mut other = options.connect().await?;
        let is_shared = is_shared(&mut one, &mut other).await;
        drop((one.close().await, other.close().await));
        is_shared
    };
    match timeout(PROBE_TIMEOUT, probe).await {
        Ok(Ok(is_shared)) => Ok(is_shared.then_some(Unfit::Pooler)),
        Ok(Err(error)) => unfit(&error).map_or(Err(error), |unfit| Ok(Some(unfit))),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// Whether one connection hears what another says to its session. All of it by the simple protocol, which prepares nothing.
async fn is_shared(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const READ: &str = "SELECT coalesce(current_setting('ai_service.session', true), '')";
    for _ in 0..PROBES {
        sqlx::raw_sql("SET ai_service.session = 'one'").execute(&mut *one).await?;
        // Holds whatever session it gets, so that the first one cannot have it back.
        sqlx::raw_sql("BEGIN").execute(&mut *other).await?;
        let heard: String = sqlx::raw_sql(READ).fetch_one(&mut *other).await?.try_get(0)?;
        if heard.is_empty() {
            let kept: String = sqlx::raw_sql(READ).fetch_one(&mut *one).await?.try_get(0)?;
            sqlx::raw_sql("ROLLBACK").execute(&mut *other).await?;
            if kept == "one" {
                continue;
            }
        } else {
            sqlx::raw_sql("RESET ai_service.session; ROLLBACK").execute(&mut *other).await?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// What waiting will not mend about a connection.
fn unfit(error: &sqlx::Error) -> Option<Unfit> {
    match error {
        sqlx::Error::Tls(error) if error.to_string() == "server does not support TLS" => Some(Unfit::NoTls),
        sqlx::Error::Tls(error) => Some(Unfit::Tls(error.to_string())),
        // What the handshake comes to arrives as an error of the connection.
        sqlx::Error::Io(error) => {
            let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>())?;
            Some(Unfit::Tls(tls.to_string()))
        }
        // What PgBouncer says: to what a connection asks for at its beginning, or to a transaction where it has none.
        sqlx::Error::Database(said) if code(error).as_deref() == Some("08P01") => {
            let is_about_settings = said.message().contains("startup parameter");
            Some(if is_about_settings { Unfit::Settings } else { Unfit::Pooler })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_comes_to_is_no_outage() {
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let untrusted = sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, untrusted));
        let Some(Unfit::Tls(reason)) = unfit(&untrusted) else { panic!("TLS") };
        assert!(reason.contains("UnknownIssuer"), "{reason}");
        assert_eq!(unfit(&sqlx::Error::Tls("server does not support TLS".into())), Some(Unfit::NoTls));
        assert_eq!(unfit(&sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into())), None);
        assert_eq!(unfit(&sqlx::Error::PoolTimedOut), None);
    }

    #[test]
    fn what_is_known_of_an_address_is_kept() {
        let url = "postgres://app:pass%40word@db.example:6000/chat?sslmode=verify-full&sslpassword=x&application_name=y\
                   &options[search_path]=a&target_session_attrs=any";
        let options = options(url).unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_username()), ("db.example", 6000, "app"));
        assert_eq!(options.get_database(), Some("chat"));
        assert!(matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::VerifyFull));
        assert_eq!(options.get_options(), Some("-c search_path=a"));
        assert_eq!(options.get_application_name(), Some("ai-service"));
    }
}
