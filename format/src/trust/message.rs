//! What enrolment and renewal send, whatever carries it: one request, one answer, each in an
//! [envelope](super::envelope).

use crate::codec::{DecodeError, Problem, put_string};

use super::envelope::{Kind, put_bytes, put_option, read_bytes, read_option};
use super::name::IdentityName;
use super::refusal::Refusal;
use super::role::Role;
use super::scope::Scope;
use super::token::Secret;

/// Longest certificate or request for one, in bytes.
pub const CERTIFICATE_LEN_MAX: usize = 8 << 10;
/// Longest request or answer, in bytes: a carrier need not take more.
pub const MESSAGE_LEN_MAX: usize = 20 << 10;

const ENROL: Kind = kind("enrolment request", b"UCTRENR\x01");
const RENEW: Kind = kind("renewal request", b"UCTRREN\x01");
const ANSWER: Kind = kind("answer to an enrolment", b"UCTRANS\x01");

const fn kind(object: &'static str, magic: &'static [u8; 8]) -> Kind {
    Kind {
        object,
        magic,
        version: 1,
        len_max: MESSAGE_LEN_MAX,
    }
}

/// Asks for a first certificate, by a token. Its sender is not authenticated otherwise; the connection
/// has shown the server to have the authority that the token names.
///
/// | field | type |
/// | --- | --- |
/// | secret of the token | 16 bytes |
/// | role | 1 byte |
/// | name | string, at most 64 bytes |
/// | scope | flag; if 1, patterns of VMs and of repositories |
/// | request for a certificate | bytes, at most 8 KiB |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolRequest {
    /// The token's secret.
    pub secret: Secret,
    /// The role that is asked for.
    pub role: Role,
    /// The name that is asked for.
    pub name: IdentityName,
    /// The scope that is asked for; all that the token is for if there is none.
    pub scope: Option<Scope>,
    /// PKCS #10, DER.
    pub request: Vec<u8>,
}

/// Asks for a new certificate, over a connection that the present one authenticates.
///
/// | field | type |
/// | --- | --- |
/// | request for a certificate | bytes, at most 8 KiB |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewRequest {
    /// PKCS #10, DER.
    pub request: Vec<u8>,
}

/// What a server answers to either.
///
/// | field | type |
/// | --- | --- |
/// | outcome | 1 byte: 1 granted, 0 refused |
/// | granted: certificate, authority's certificate | bytes each, at most 8 KiB |
/// | refused: reason, and what belongs to it | see [`Refusal`] |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A certificate.
    Granted(Grant),
    /// None, and why.
    Refused(Refusal),
}

/// A new certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// That of the authority that signed it.
    pub authority: Vec<u8>,
}

impl EnrolRequest {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.secret.as_bytes().to_vec();
        body.push(self.role.code());
        put_string(&mut body, self.name.as_str());
        put_option(&mut body, self.scope.as_ref(), |out, scope| scope.put(out));
        put_bytes(&mut body, &self.request);
        ENROL.wrap(&body)
    }

    /// Reads what was sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ENROL.unwrap(bytes)?;
        let request = Self {
            secret: Secret::read(&mut reader)?,
            role: Role::read(&mut reader)?,
            name: IdentityName::read(&mut reader)?,
            scope: read_option(&mut reader, Scope::read)?,
            request: read_bytes(&mut reader, "length of a request", CERTIFICATE_LEN_MAX)?.to_vec(),
        };
        reader.finish()?;
        Ok(request)
    }
}

impl RenewRequest {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, &self.request);
        RENEW.wrap(&body)
    }

    /// Reads what was sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = RENEW.unwrap(bytes)?;
        let request = read_bytes(&mut reader, "length of a request", CERTIFICATE_LEN_MAX)?.to_vec();
        reader.finish()?;
        Ok(Self { request })
    }
}

impl Answer {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Granted(grant) => {
                body.push(1);
                put_bytes(&mut body, &grant.certificate);
                put_bytes(&mut body, &grant.authority);
            }
            Self::Refused(refusal) => {
                body.push(0);
                refusal.put(&mut body);
            }
        }
        ANSWER.wrap(&body)
    }

    /// Reads what was sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ANSWER.unwrap(bytes)?;
        let at = reader.clone();
        let certificate = |reader: &mut _| -> Result<Vec<u8>, DecodeError> {
            let bytes = read_bytes(reader, "length of a certificate", CERTIFICATE_LEN_MAX)?;
            Ok(bytes.to_vec())
        };
        let answer = match reader.u8()? {
            1 => Self::Granted(Grant {
                certificate: certificate(&mut reader)?,
                authority: certificate(&mut reader)?,
            }),
            0 => Self::Refused(Refusal::read(&mut reader)?),
            _ => return Err(at.error(Problem::Invalid("outcome"))),
        };
        reader.finish()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::envelope::assert_only_whole;
    use super::super::scope::tests::any_scope;
    use super::super::serial::Serial;
    use super::super::time::UnixMs;
    use super::*;

    fn enrol_request(scope: Option<Scope>) -> EnrolRequest {
        EnrolRequest {
            secret: Secret::from_bytes([0xa5; 16]),
            role: Role::Ingest,
            name: "proxy-1".parse().unwrap(),
            scope,
            request: vec![0x30; 200],
        }
    }

    fn refusals() -> Vec<Refusal> {
        let name: IdentityName = "proxy-1".parse().unwrap();
        let serial = Serial::from_random([3; 8]);
        let at = UnixMs::from_seconds(1_764_000_000);
        vec![
            Refusal::TokenUnknown,
            Refusal::TokenUsed {
                by: name.clone(),
                at,
            },
            Refusal::TokenExpired { at, now: at },
            Refusal::Role {
                asked: Role::Admin,
                granted: Role::Ingest,
            },
            Refusal::Name {
                asked: name.clone(),
                granted: name.clone(),
            },
            Refusal::NameTaken { name: name.clone() },
            Refusal::Scope,
            Refusal::Request,
            Refusal::Revoked {
                name: name.clone(),
                serial,
            },
            Refusal::Expired {
                name: name.clone(),
                serial,
                at,
            },
            Refusal::NotListed { name, serial },
            Refusal::Full,
            Refusal::Unavailable,
        ]
    }

    #[test]
    fn messages_round_trip_and_any_changed_byte_is_found() {
        for scope in [None, Some(Scope::everything())] {
            let request = enrol_request(scope);
            assert_eq!(EnrolRequest::decode(&request.encode()), Ok(request.clone()));
            assert_only_whole(&request.encode(), EnrolRequest::decode);
        }
        let request = RenewRequest {
            request: vec![7; 100],
        };
        assert_eq!(RenewRequest::decode(&request.encode()), Ok(request.clone()));
        assert_only_whole(&request.encode(), RenewRequest::decode);
        let granted = Answer::Granted(Grant {
            certificate: vec![1; 300],
            authority: vec![2; 400],
        });
        let refused = refusals().into_iter().map(Answer::Refused);
        for answer in refused.chain([granted]) {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer.clone()));
            assert_only_whole(&answer.encode(), Answer::decode);
        }
    }

    #[test]
    fn a_message_of_another_kind_is_refused() {
        let bytes = enrol_request(None).encode();
        assert!(RenewRequest::decode(&bytes).is_err());
        assert!(Answer::decode(&bytes).is_err());
        let long = vec![0; MESSAGE_LEN_MAX + 1];
        assert!(matches!(
            EnrolRequest::decode(&long).unwrap_err().problem,
            Problem::Limit { .. }
        ));
    }

    #[test]
    fn the_longest_answer_fits_a_message() {
        let answer = Answer::Granted(Grant {
            certificate: vec![1; CERTIFICATE_LEN_MAX],
            authority: vec![2; CERTIFICATE_LEN_MAX],
        });
        assert!(Answer::decode(&answer.encode()).is_ok());
    }

    proptest! {
        #[test]
        fn every_scope_can_be_asked_for(scope in any_scope()) {
            let request = enrol_request(Some(scope));
            prop_assert_eq!(EnrolRequest::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn any_body_is_a_message_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = ENROL.wrap(&body);
            if let Ok(request) = EnrolRequest::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes);
            }
            let bytes = ANSWER.wrap(&body);
            if let Ok(answer) = Answer::decode(&bytes) {
                prop_assert_eq!(answer.encode(), bytes);
            }
        }
    }
}
