//! Error bodies.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Extra, Field, Wire, field::document};

document!(
    /// `{message, documentation_url, status?, errors?}`.
    ErrorBody {
        message: String,
        documentation_url: String,
        errors: Vec<ErrorDetail>,
    }
);

/// 422 details: objects on most endpoints, plain strings on the runner endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ErrorDetail {
    Text(String),
    Object(Extra),
}

impl Wire for Vec<ErrorDetail> {
    fn wire<'de, D: Deserializer<'de>>(from: D, _: bool) -> Result<Field<Self>, D::Error> {
        Ok(match Value::deserialize(from)? {
            Value::Null => Field::Null,
            value => match Self::deserialize(&value) {
                Ok(details) => Field::Value(details),
                Err(_) => Field::Odd(value),
            },
        })
    }
}

impl ErrorBody {
    /// One line for people: message and details.
    pub fn summary(&self) -> String {
        let mut line = self.message.text().unwrap_or("no message").to_owned();
        let details: Vec<String> = self
            .errors
            .get()
            .into_iter()
            .flatten()
            .map(|detail| match detail {
                ErrorDetail::Text(text) => text.clone(),
                ErrorDetail::Object(object) => ["resource", "field", "code", "message"]
                    .iter()
                    .filter_map(|key| object.get(*key).and_then(|value| value.as_str()))
                    .collect::<Vec<_>>()
                    .join(" "),
            })
            .collect();
        if !details.is_empty() {
            line.push_str(": ");
            line.push_str(&details.join("; "));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_422_details_are_told() {
        let text: ErrorBody =
            serde_json::from_str(r#"{"message":"Validation Failed","errors":["name is taken"]}"#)
                .unwrap();
        assert_eq!(text.summary(), "Validation Failed: name is taken");
        let object: ErrorBody = serde_json::from_str(
            r#"{"message":"Validation Failed","errors":[{"resource":"Runner","field":"name","code":"missing_field","value":3}]}"#,
        )
        .unwrap();
        assert_eq!(
            object.summary(),
            "Validation Failed: Runner name missing_field"
        );
        assert_eq!(ErrorBody::default().summary(), "no message");
    }
}
