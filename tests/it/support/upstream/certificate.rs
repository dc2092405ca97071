//! A certificate for this machine's loopback, and the authority that signed it; both made for one upstream.

use std::{io::Write, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::NamedTempFile;

/// What a server with TLS needs, and what its clients do.
pub struct Certificate {
    /// The authority's certificate in PEM, for `UPSTREAM_CA_FILE`.
    authority: NamedTempFile,
    authority_der: CertificateDer<'static>,
    server: CertificateDer<'static>,
    key: Vec<u8>,
    server_pem: String,
    key_pem: String,
}

impl Certificate {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let params = CertificateParams::new(names).expect("valid names");
        let server = params.signed_by(&key, &issuer).expect("a certificate");
        let mut authority = NamedTempFile::new().expect("a file");
        authority.write_all(issuer.pem().as_bytes()).expect("written");
        Self {
            authority,
            authority_der: issuer.der().clone(),
            server: server.der().clone(),
            server_pem: server.pem(),
            key_pem: key.serialize_pem(),
            key: key.serialize_der(),
        }
    }

    /// Where the authority's certificate stands.
    pub fn authority_file(&self) -> &Path {
        self.authority.path()
    }

    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority_der
    }

    /// The server's certificate and its key, in PEM.
    pub fn pem(&self) -> (&str, &str) {
        (&self.server_pem, &self.key_pem)
    }

    /// A server that speaks these protocols, the preferred one first.
    pub fn server(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let mut config = builder.with_single_cert(vec![self.server.clone()], key).expect("a certificate and its key");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
