//! What a TLS handshake failed of. A certificate that is not accepted stays so, however often it is shown: such a
//! failure is told apart from a server that does not answer.

use std::error::Error;
use std::io;

/// Why one side refused the other, if that is somewhere in the chain of causes.
pub(super) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return is_refusal(tls).then(|| tls.to_string());
        }
        // What an I/O error wraps is not among its sources.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = refusal(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn is_refusal(error: &rustls::Error) -> bool {
    use rustls::Error::{
        AlertReceived, InconsistentKeys, InvalidCertificate, NoCertificatesPresented, PeerIncompatible,
    };
    matches!(
        error,
        AlertReceived(_) | InconsistentKeys(_) | InvalidCertificate(_) | NoCertificatesPresented | PeerIncompatible(_)
    )
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error};

    use super::*;

    #[test]
    fn a_refused_certificate_is_found_below_io_errors() {
        let tls = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(tls()));
        assert_eq!(refusal(&wrapped).unwrap(), tls().to_string());
        assert_eq!(refusal(&tls()).unwrap(), tls().to_string());
    }

    #[test]
    fn a_broken_connection_refuses_nobody() {
        assert_eq!(refusal(&io::Error::other(Error::HandshakeNotComplete)), None);
        assert_eq!(refusal(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
