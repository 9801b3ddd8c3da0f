//! Errors that come with advice.

use std::error::Error;
use std::fmt;

/// An error, and what the user can do about it: printed after the error as `hint: …`.
#[derive(Debug)]
pub(crate) struct Hinted {
    hint: Option<String>,
    error: Box<dyn Error + Send + Sync>,
}

impl Hinted {
    /// Adds advice, if there is any, to an error.
    pub(crate) fn new(hint: Option<String>, error: impl Error + Send + Sync + 'static) -> Self {
        Self { hint, error: Box::new(error) }
    }

    /// The advice.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Hinted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}
