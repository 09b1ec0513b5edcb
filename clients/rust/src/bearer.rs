//! The token that goes with every call.

use secrecy::{ExposeSecret, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A connection whose calls show the token, if there is one.
pub(crate) type Connection = InterceptedService<Channel, Bearer>;

/// The header's value. Marked sensitive: nothing prints it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// `None` when the token has characters that no header may have.
    pub(crate) fn new(token: &SecretString) -> Option<Bearer> {
        let text = token.expose_secret().trim();
        let mut value = MetadataValue::try_from(format!("Bearer {text}")).ok()?;
        value.set_sensitive(true);
        Some(Bearer(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_to_the_scheduler_and_to_nobody_else() {
        let token = SecretString::from("lst_1_secret\n");
        let mut bearer = Bearer::new(&token).unwrap();
        assert!(!format!("{bearer:?} {token:?}").contains("secret"));
        let sent = bearer.call(Request::new(())).unwrap();
        let value = sent.metadata().get("authorization").unwrap();
        assert_eq!(value.to_str().unwrap(), "Bearer lst_1_secret");
        assert!(!format!("{sent:?}").contains("secret"));
        let plain = Bearer::default().call(Request::new(())).unwrap();
        assert!(plain.metadata().is_empty());
        assert!(Bearer::new(&SecretString::from("a\nb")).is_none());
    }
}
