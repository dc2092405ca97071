//! Which servers are trusted: those that the system trusts, and those with a certificate of `UPSTREAM_CA_FILE`.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, client::danger::ServerCertVerifier, crypto::aws_lc_rs::default_provider,
    pki_types::CertificateDer,
};
use rustls_platform_verifier::Verifier;

/// How TLS connections are made. Which protocol is offered inside them is for the caller to add.
///
/// # Errors
/// The system has no certificates, or one of `authorities` is not one.
pub(super) fn client_config(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let verifier = Verifier::new_with_extra_roots(authorities.iter().cloned(), Arc::clone(&provider))?;
    let verifier: Arc<dyn ServerCertVerifier> = Arc::new(verifier);
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        // The name only warns that a verifier could be one that trusts everybody; this one is the system's.
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}
