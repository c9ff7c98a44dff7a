//! The bearer token of a file, as client-go takes it: without the white space around it, read again while a process lives.

use std::fs;
use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, header};
use kube::client::{AuthError, Body};
use kube::{Config, Error};

/// How long a token is used before its file is looked at again.
const READ_EVERY: Duration = Duration::from_secs(30);

/// A file and what was in it.
#[derive(Clone)]
pub(super) struct TokenFile {
    path: PathBuf,
    read: Arc<Mutex<(Instant, HeaderValue)>>,
}

impl TokenFile {
    /// The file that a configuration takes its token from, if it does. From then on this one serves it, not kube.
    ///
    /// # Errors
    /// The file cannot be read, or what is in it is no token.
    pub(super) fn of(config: &mut Config) -> Result<Option<TokenFile>, Error> {
        let auth = &mut config.auth_info;
        let other = auth.token.is_some() || auth.auth_provider.is_some() || auth.username.is_some();
        let Some(path) = auth.token_file.take_if(|_| !other).map(PathBuf::from) else { return Ok(None) };
        auth.exec = None;
        let header = header_of(&path).map_err(|error| Error::Auth(AuthError::ReadTokenFile(error, path.clone())))?;
        Ok(Some(TokenFile { path, read: Arc::new(Mutex::new((Instant::now(), header))) }))
    }

    /// The request with the token.
    pub(super) fn sign(&self, mut request: Request<Body>) -> Request<Body> {
        request.headers_mut().insert(header::AUTHORIZATION, self.header());
        request
    }

    /// A file that is gone, or being written, leaves the token as it was.
    fn header(&self) -> HeaderValue {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0.elapsed() >= READ_EVERY {
            let header = header_of(&self.path).unwrap_or_else(|_| read.1.clone());
            *read = (Instant::now(), header);
        }
        read.1.clone()
    }
}

fn header_of(path: &Path) -> Result<HeaderValue, IoError> {
    let text = fs::read_to_string(path)?;
    let token = text.trim();
    // Never shown, whatever it is.
    let none = || IoError::new(ErrorKind::InvalidData, "there is no token in it: one line of printable characters");
    let mut header =
        HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| !token.is_empty()).ok_or_else(none)?;
    header.set_sensitive(true);
    Ok(header)
}
