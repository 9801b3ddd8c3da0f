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
    pub(crate) fn new(hint: Option<String>, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { hint, error: error.into() }
    }

    /// The advice that comes with an error or one of its causes.
    pub(crate) fn of(error: &anyhow::Error) -> Option<&str> {
        error.chain().find_map(|cause| cause.downcast_ref::<Self>())?.hint.as_deref()
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
