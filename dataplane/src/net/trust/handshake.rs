//! What a failed handshake means, in words: TLS itself says no more than "certificate unknown".

use rustls::{AlertDescription, CertificateError, Error};

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Why two ends do not trust each other, as seen at one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// At the client: the server is not the one that was enrolled with.
    #[error(
        "the server's authority is not the one that is trusted here: either this is another server, or its trust directory was lost and made anew. If that is meant, enrol anew with a new token; otherwise somebody may be in the middle"
    )]
    WrongServer,
    /// At the client: the server's certificate is not valid by the client's clock.
    #[error(
        "the server's certificate is not valid at this machine's time: set the clocks of both machines; if they are right, restart the server, which renews its certificate"
    )]
    ServerExpired,
    /// At the client: the server has ended the certificate.
    #[error(
        "the server says that this machine's certificate has expired: enrol anew with a new token"
    )]
    Expired,
    /// At the client: the server revoked the certificate.
    #[error(
        "the server says that this machine's certificate was revoked: enrol anew with a new token"
    )]
    Revoked,
    /// At the client: the certificate is another authority's.
    #[error(
        "the server does not trust the authority of this machine's certificate: it was enrolled with another server; enrol with this one"
    )]
    OtherAuthority,
    /// At the client: the certificate is not on the server's list.
    #[error(
        "the server does not have this machine's certificate on its list: enrol anew with a new token"
    )]
    NotListed,
    /// At the client: there is no certificate to show.
    #[error("the server wants a certificate, and this machine has none: enrol it with a token")]
    NotEnrolled,
    /// At the server: the client's certificate is another authority's.
    #[error(
        "the client's certificate was signed by another authority: it was enrolled with another server, and has to enrol with this one"
    )]
    ForeignClient,
    /// At the server: the client's certificate has ended.
    #[error("the client's certificate has expired: it has to enrol anew with a new token")]
    ClientExpired,
    /// At the server: the client's certificate was revoked.
    #[error(
        "the client's certificate was revoked: if it is to be let in, it has to enrol anew with a new token"
    )]
    ClientRevoked,
    /// At the server: the client's certificate is not on the list.
    #[error(
        "the client's certificate is not on the list of identities: if it is to be let in, it has to enrol anew with a new token"
    )]
    ClientNotListed,
    /// At the server: the client does not trust the server's authority.
    #[error(
        "the client does not trust this server's authority: it has a token or a certificate of another server"
    )]
    Distrusted,
    /// At the server: its certificate is not valid by the client's clock.
    #[error(
        "this server's certificate is not valid at the client's time: set the clocks of both machines; if they are right, restart the server, which renews its certificate"
    )]
    Untimely,
    /// The two have no protocol in common.
    #[error(
        "the two ends have no protocol in common: one is a repository server and the other wants a proxy, or the other way round; otherwise use the same version of undercroft on both"
    )]
    Protocol,
}

impl HandshakeError {
    /// What `error` means at `side`; `None` if it is not about trust.
    pub fn of(side: Side, error: &Error) -> Option<Self> {
        match error {
            Error::AlertReceived(alert) => Self::of_alert(side, (*alert).into()),
            Error::InvalidCertificate(problem) => Self::of_certificate(side, problem),
            Error::NoApplicationProtocol => Some(Self::Protocol),
            Error::NoCertificatesPresented if side == Side::Client => Some(Self::WrongServer),
            _ => None,
        }
    }

    /// What the TLS alert with the number `alert`, which the other end sent, means at `side`; `None` if it
    /// is not about trust. QUIC reports alerts as errors 0x100 and up (RFC 9001 section 4.8).
    pub fn of_alert(side: Side, alert: u8) -> Option<Self> {
        let alert = AlertDescription::from(alert);
        if alert == AlertDescription::NoApplicationProtocol {
            return Some(Self::Protocol);
        }
        match side {
            Side::Client => match alert {
                AlertDescription::CertificateExpired => Some(Self::Expired),
                AlertDescription::CertificateRevoked => Some(Self::Revoked),
                AlertDescription::UnknownCA
                | AlertDescription::DecryptError
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate => Some(Self::OtherAuthority),
                AlertDescription::AccessDenied => Some(Self::NotListed),
                AlertDescription::CertificateRequired => Some(Self::NotEnrolled),
                _ => None,
            },
            Side::Server => match alert {
                AlertDescription::CertificateExpired => Some(Self::Untimely),
                AlertDescription::UnknownCA
                | AlertDescription::DecryptError
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate => Some(Self::Distrusted),
                _ => None,
            },
        }
    }

    /// What the TLS alert with the number `alert` means at `side`, which sent it itself; `None` if it is not
    /// about trust.
    pub fn of_own_alert(side: Side, alert: u8) -> Option<Self> {
        let alert = AlertDescription::from(alert);
        let is_certificates = matches!(
            alert,
            AlertDescription::UnknownCA
                | AlertDescription::DecryptError
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
        );
        Some(match (side, alert) {
            (_, AlertDescription::NoApplicationProtocol) => Self::Protocol,
            (Side::Client, AlertDescription::CertificateExpired) => Self::ServerExpired,
            (Side::Client, _) if is_certificates => Self::WrongServer,
            (Side::Server, AlertDescription::CertificateExpired) => Self::ClientExpired,
            (Side::Server, AlertDescription::CertificateRevoked) => Self::ClientRevoked,
            (Side::Server, AlertDescription::AccessDenied) => Self::ClientNotListed,
            (Side::Server, _) if is_certificates => Self::ForeignClient,
            _ => return None,
        })
    }

    fn of_certificate(side: Side, problem: &CertificateError) -> Option<Self> {
        use CertificateError::{
            ApplicationVerificationFailure, Expired, ExpiredContext, NotValidYet,
            NotValidYetContext, Revoked,
        };
        Some(match (side, problem) {
            (
                Side::Client,
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
            ) => Self::ServerExpired,
            (Side::Client, _) => Self::WrongServer,
            (Side::Server, Expired | ExpiredContext { .. }) => Self::ClientExpired,
            (Side::Server, Revoked) => Self::ClientRevoked,
            (Side::Server, ApplicationVerificationFailure) => Self::ClientNotListed,
            (Side::Server, _) => Self::ForeignClient,
        })
    }
}
