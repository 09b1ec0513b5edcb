//! A JSON field that keeps absent, null, understood and odd apart.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

/// Fields we do not model, kept as they came.
pub type Extra = serde_json::Map<String, Value>;

/// One field of GitHub's JSON. Use with `#[serde(default, skip_serializing_if = "Field::is_absent")]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<T> {
    #[default]
    Absent,
    Null,
    Value(T),
    /// Another type than documented, e.g. `""` for a number; kept as it came.
    Odd(Value),
}

impl<T> Field<T> {
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// The value when it is there and of the documented type.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            _ => None,
        }
    }

    pub fn is_odd(&self) -> bool {
        matches!(self, Self::Odd(_))
    }
}

impl Field<String> {
    /// The text when there is any: null, absent and `""` are alike.
    pub fn text(&self) -> Option<&str> {
        self.get()
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }
}

impl Field<u64> {
    /// The id when there is one: null, absent, `""` and 0 are alike.
    pub fn id(&self) -> Option<u64> {
        self.get().copied().filter(|id| *id != 0)
    }
}

impl Field<bool> {
    pub fn is_true(&self) -> bool {
        matches!(self, Self::Value(true))
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// The understood elements; an odd one does not hide the others.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.get().into_iter().flatten().filter_map(Field::get)
    }

    /// How many elements were not understood.
    pub fn odd_items(&self) -> usize {
        self.get()
            .map_or(0, |items| items.iter().filter(|item| item.is_odd()).count())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::Null => Self::Null,
            value => match T::deserialize(&value) {
                Ok(understood) => Self::Value(understood),
                Err(_) => Self::Odd(value),
            },
        })
    }
}

impl<T: Serialize> Serialize for Field<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Value(value) => value.serialize(serializer),
            Self::Odd(value) => value.serialize(serializer),
        }
    }
}

/// Declares a document: every named field optional and tolerant, the rest kept.
macro_rules! document {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
        pub struct $name {
            $(
                $(#[$fdoc])*
                #[serde(default, skip_serializing_if = "crate::wire::Field::is_absent")]
                pub $field: crate::wire::Field<$type>,
            )*
            /// Everything else.
            #[serde(flatten)]
            pub extra: crate::wire::Extra,
        }
    };
}
pub(crate) use document;

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro makes public documents")]
mod tests {
    use super::*;
    use serde_json::json;

    document!(
        /// A sample.
        Sample {
            id: u64,
            name: String,
            items: Vec<Field<Sample>>,
        }
    );

    #[test]
    fn absent_null_odd_and_unknown_survive_a_round_trip() {
        for text in [
            json!({}),
            json!({"id": null, "name": "", "new": {"a": [1, 2.5]}}),
            json!({"id": "", "name": 7}),
            json!({"id": 9_007_199_254_740_993_u64, "items": [{"id": 1}, 3, null]}),
            json!({"items": {"not": "a list"}}),
        ] {
            let sample: Sample = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(serde_json::to_value(&sample).unwrap(), text);
        }
    }

    #[test]
    fn null_zero_and_empty_are_alike_when_asked() {
        for text in [
            json!({}),
            json!({"id": 0, "name": ""}),
            json!({"id": "", "name": null}),
        ] {
            let sample: Sample = serde_json::from_value(text).unwrap();
            assert_eq!((sample.id.id(), sample.name.text()), (None, None));
        }
    }

    #[test]
    fn an_odd_element_does_not_hide_its_neighbours() {
        let sample: Sample =
            serde_json::from_value(json!({"items": [{"id": 1}, "odd", {"id": 2}]})).unwrap();
        assert_eq!(
            sample
                .items
                .items()
                .filter_map(|s| s.id.id())
                .collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(sample.items.odd_items(), 1);
    }
}
