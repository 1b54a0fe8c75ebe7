//! Who a peer is: what the authority wrote into its certificate.
//!
//! Role, name and scope are one URI among the subject's alternative names, which `openssl x509 -text`
//! shows: `undercroft:ROLE/NAME?vm=PATTERN&repository=PATTERN`. There is one text for an identity, and
//! any other is refused.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::name::IdentityName;
use super::pattern::Pattern;
use super::role::Role;
use super::scope::Scope;
use super::serial::Serial;

const SCHEME: &str = "undercroft:";

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its name.
    pub name: IdentityName,
    /// What it may do.
    pub role: Role,
    /// To what.
    pub scope: Scope,
    /// The number of the certificate.
    pub serial: Serial,
}

/// A certificate that names no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is none.
    #[error("the peer showed no certificate: enrol it first")]
    NoCertificate,
    /// It is no X.509 certificate.
    #[error("the peer's certificate cannot be parsed")]
    Unparsable,
    /// It has no serial number of ours.
    #[error("the peer's certificate has a serial number that no authority of Undercroft gives")]
    ForeignSerial,
    /// It does not name one identity.
    #[error(
        "the peer's certificate names no identity of Undercroft: it was made for something else"
    )]
    NoIdentity,
}

/// The identity in the first certificate of `chain`.
///
/// It trusts the bytes: the handshake that gave them verified who signed them.
///
/// # Errors
/// [`IdentityError`] if there is none.
pub fn identity_of(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityError> {
    let certificate = chain.first().ok_or(IdentityError::NoCertificate)?;
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unparsable)?;
    let serial =
        Serial::from_bytes(certificate.raw_serial()).ok_or(IdentityError::ForeignSerial)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Unparsable)?
        .ok_or(IdentityError::NoIdentity)?;
    match &names.value.general_names[..] {
        [GeneralName::URI(uri)] => parse_uri(uri, serial).ok_or(IdentityError::NoIdentity),
        _ => Err(IdentityError::NoIdentity),
    }
}

/// The URI that stands for an identity in its certificate.
pub(super) fn uri(role: Role, name: &IdentityName, scope: &Scope) -> String {
    let mut text = format!("{SCHEME}{role}/{name}");
    let mut separator = '?';
    for (key, patterns) in [("vm", scope.vms()), ("repository", scope.repositories())] {
        for pattern in patterns {
            text.push(separator);
            text.push_str(key);
            text.push('=');
            put_escaped(&mut text, pattern.as_str());
            separator = '&';
        }
    }
    text
}

fn parse_uri(text: &str, serial: Serial) -> Option<PeerIdentity> {
    let rest = text.strip_prefix(SCHEME)?;
    let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (role, name) = head.split_once('/')?;
    let (mut vms, mut repositories) = (Vec::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let pattern: Pattern = unescape(value)?.parse().ok()?;
        match key {
            "vm" => vms.push(pattern),
            "repository" => repositories.push(pattern),
            _ => return None,
        }
    }
    let identity = PeerIdentity {
        name: name.parse().ok()?,
        role: role.parse().ok()?,
        scope: Scope::new(vms, repositories).ok()?,
        serial,
    };
    (uri(identity.role, &identity.name, &identity.scope) == text).then_some(identity)
}

/// RFC 3986 section 2.1, with `*` as it is.
fn put_escaped(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::support::{any_scope, scope};
    use super::*;

    fn serial() -> Serial {
        Serial::from_random([1; 8])
    }

    #[test]
    fn an_identity_reads_well() {
        let scope = scope(&["web*", "db main"], &["main"]);
        let text = uri(Role::Ingest, &"proxy-1".parse().unwrap(), &scope);
        assert_eq!(
            text,
            "undercroft:ingest/proxy-1?vm=db%20main&vm=web*&repository=main"
        );
        assert_eq!(parse_uri(&text, serial()).unwrap().scope, scope);
    }

    #[test]
    fn another_text_for_the_same_identity_is_refused() {
        for text in [
            "undercroft:ingest/p?vm=web*&vm=db",
            "undercroft:ingest/p?vm=%64b",
            "undercroft:ingest/p?vm=db&vm=db",
            "undercroft:ingest/p?repository=a&vm=b",
            "undercroft:ingest/p?",
            "undercroft:ingest/p?vm=a&&vm=b",
            "undercroft:root/p",
            "undercroft:ingest/",
            "undercroft:ingest/p?vm=%2",
            "https://example.org/",
        ] {
            assert_eq!(parse_uri(text, serial()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn identities_round_trip(scope in any_scope()) {
            let name: IdentityName = "p".parse().unwrap();
            let text = uri(Role::Restore, &name, &scope);
            prop_assert!(text.is_ascii());
            let identity = PeerIdentity { name, role: Role::Restore, scope, serial: serial() };
            prop_assert_eq!(parse_uri(&text, serial()), Some(identity));
        }

        #[test]
        fn any_text_is_an_identity_or_nothing(text in "undercroft:(ingest|admin)/[a-z]?[?&%=vm*a0é]{0,12}") {
            if let Some(identity) = parse_uri(&text, serial()) {
                prop_assert_eq!(uri(identity.role, &identity.name, &identity.scope), text);
            }
        }
    }
}
