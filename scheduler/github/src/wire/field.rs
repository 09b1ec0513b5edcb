//! A JSON field that keeps absent, null, understood and odd apart.

use std::{borrow::Cow, collections::BTreeMap, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        DeserializeSeed, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
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

/// What a field may hold: read in one pass, so that a webhook's ten kilobytes are not copied from form to form.
pub trait Wire: Sized {
    /// Reads one field. Without `keep`, what is not modelled is passed over instead of kept.
    fn wire<'de, D: Deserializer<'de>>(from: D, keep: bool) -> Result<Field<Self>, D::Error>;
}

impl<'de, T: Wire> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::wire(deserializer, true)
    }
}

/// A field as a seed, to say whether what is not modelled is kept.
pub struct Read<T> {
    pub keep: bool,
    pub what: PhantomData<T>,
}

impl<T> Read<T> {
    pub fn new(keep: bool) -> Self {
        Self {
            keep,
            what: PhantomData,
        }
    }
}

impl<'de, T: Wire> DeserializeSeed<'de> for Read<T> {
    type Value = Field<T>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Field<T>, D::Error> {
        T::wire(from, self.keep)
    }
}

/// The odd one of another type: kept, or passed over.
pub(crate) fn odd_map<'de, T, A: MapAccess<'de>>(map: A) -> Result<Field<T>, A::Error> {
    Value::deserialize(MapAccessDeserializer::new(map)).map(Field::Odd)
}

/// As `odd_map`, of a list.
pub(crate) fn odd_list<'de, T, A: SeqAccess<'de>>(list: A) -> Result<Field<T>, A::Error> {
    Value::deserialize(SeqAccessDeserializer::new(list)).map(Field::Odd)
}

/// What every reader answers to the types it does not want, besides `null`.
macro_rules! others_are_odd {
    ($($visit:ident($type:ty)),* $(,)?) => {
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("any JSON")
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(crate::wire::Field::Null)
        }
        $(
            fn $visit<E: serde::de::Error>(self, value: $type) -> Result<Self::Value, E> {
                Ok(crate::wire::Field::Odd(value.into()))
            }
        )*
    };
}
pub(crate) use others_are_odd;

/// Readers of plain values: one wanted type, all others odd.
macro_rules! plain {
    ($type:ty, $reader:ident, $wanted:ident($from:ty), [$($other:ident($odd:ty)),*]) => {
        impl Wire for $type {
            fn wire<'de, D: Deserializer<'de>>(from: D, _: bool) -> Result<Field<Self>, D::Error> {
                struct $reader;
                impl<'de> Visitor<'de> for $reader {
                    type Value = Field<$type>;
                    others_are_odd!($($other($odd)),*);
                    fn $wanted<E: serde::de::Error>(self, value: $from) -> Result<Self::Value, E> {
                        Ok(Field::Value(value.into()))
                    }
                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                        odd_map(map)
                    }
                    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                        odd_list(list)
                    }
                }
                from.deserialize_any($reader)
            }
        }
    };
}

plain!(
    String,
    Text,
    visit_str(&str),
    [
        visit_bool(bool),
        visit_u64(u64),
        visit_i64(i64),
        visit_f64(f64)
    ]
);
plain!(
    bool,
    Truth,
    visit_bool(bool),
    [
        visit_str(&str),
        visit_u64(u64),
        visit_i64(i64),
        visit_f64(f64)
    ]
);
plain!(
    u64,
    Number,
    visit_u64(u64),
    [
        visit_str(&str),
        visit_bool(bool),
        visit_i64(i64),
        visit_f64(f64)
    ]
);

impl<T: Wire> Wire for Vec<Field<T>> {
    fn wire<'de, D: Deserializer<'de>>(from: D, keep: bool) -> Result<Field<Self>, D::Error> {
        struct List<T>(Read<T>);
        impl<'de, T: Wire> Visitor<'de> for List<T> {
            type Value = Field<Vec<Field<T>>>;
            others_are_odd!(
                visit_str(&str),
                visit_bool(bool),
                visit_u64(u64),
                visit_i64(i64),
                visit_f64(f64),
            );
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element_seed(Read::new(self.0.keep))? {
                    items.push(item);
                }
                Ok(Field::Value(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                odd_map(map)
            }
        }
        from.deserialize_any(List(Read::<T>::new(keep)))
    }
}

impl<T: Wire> Wire for BTreeMap<String, Field<T>> {
    fn wire<'de, D: Deserializer<'de>>(from: D, keep: bool) -> Result<Field<Self>, D::Error> {
        struct Table<T>(Read<T>);
        impl<'de, T: Wire> Visitor<'de> for Table<T> {
            type Value = Field<BTreeMap<String, Field<T>>>;
            others_are_odd!(
                visit_str(&str),
                visit_bool(bool),
                visit_u64(u64),
                visit_i64(i64),
                visit_f64(f64),
            );
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    entries.insert(key, map.next_value_seed(Read::new(self.0.keep))?);
                }
                Ok(Field::Value(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                odd_list(list)
            }
        }
        from.deserialize_any(Table(Read::<T>::new(keep)))
    }
}

/// A key of an object, borrowed where it holds no escape.
#[derive(Deserialize)]
pub(crate) struct Key<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// A field's name in JSON: `r#type` is `type`.
pub(crate) const fn name_of(identifier: &'static str) -> &'static str {
    match identifier.as_bytes() {
        [b'r', b'#', ..] => identifier.split_at(2).1,
        _ => identifier,
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
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
        pub struct $name {
            $(
                $(#[$fdoc])*
                #[serde(skip_serializing_if = "crate::wire::Field::is_absent")]
                pub $field: crate::wire::Field<$type>,
            )*
            /// Everything else.
            #[serde(flatten)]
            pub extra: crate::wire::Extra,
        }

        impl crate::wire::Wire for $name {
            fn wire<'de, D: serde::Deserializer<'de>>(
                from: D,
                keep: bool,
            ) -> Result<crate::wire::Field<Self>, D::Error> {
                use crate::wire::field;
                struct Reader(bool);
                impl<'de> serde::de::Visitor<'de> for Reader {
                    type Value = crate::wire::Field<$name>;
                    field::others_are_odd!(
                        visit_str(&str),
                        visit_bool(bool),
                        visit_u64(u64),
                        visit_i64(i64),
                        visit_f64(f64),
                    );
                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut document = $name::default();
                        while let Some(field::Key(key)) = map.next_key::<field::Key<'_>>()? {
                            $(
                                if key == const { field::name_of(stringify!($field)) } {
                                    document.$field =
                                        map.next_value_seed(field::Read::new(self.0))?;
                                    continue;
                                }
                            )*
                            if self.0 {
                                document.extra.insert(key.into_owned(), map.next_value()?);
                            } else {
                                map.next_value::<serde::de::IgnoredAny>()?;
                            }
                        }
                        Ok(crate::wire::Field::Value(document))
                    }
                    fn visit_seq<A: serde::de::SeqAccess<'de>>(
                        self,
                        list: A,
                    ) -> Result<Self::Value, A::Error> {
                        field::odd_list(list)
                    }
                }
                from.deserialize_any(Reader(keep))
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                match <Self as crate::wire::Wire>::wire(from, true)? {
                    crate::wire::Field::Value(document) => Ok(document),
                    _ => Err(serde::de::Error::custom("not an object")),
                }
            }
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
    fn what_is_not_modelled_is_passed_over_when_nobody_needs_it() {
        let text = r#"{"id": 3, "new": {"a": [1]}, "items": [{"id": 4, "other": "x"}, 7]}"#;
        let mut from = serde_json::Deserializer::from_str(text);
        let read = Read::<Sample>::new(false).deserialize(&mut from).unwrap();
        let sample = read.get().unwrap();
        assert!(sample.extra.is_empty());
        let item = sample.items.items().next().unwrap();
        assert_eq!((item.id.id(), item.extra.len()), (Some(4), 0));
        assert_eq!(sample.items.odd_items(), 1);
    }

    #[test]
    fn nothing_but_an_object_is_a_document() {
        for text in ["[]", "7", "null", "\"x\"", "true", "{", ""] {
            assert!(serde_json::from_str::<Sample>(text).is_err(), "{text}");
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
