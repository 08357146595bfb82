//! The arguments of a call, and how they become the parameters of a function.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;

use crate::failure::Failure;

/// The arguments of a call, verbatim as the producer wrote them.
///
/// A task that takes these takes any call: [`FromArguments`].
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A JSON array: the positional arguments.
    pub args: Json,
    /// A JSON object: the keyword arguments.
    pub kwargs: Json,
}

impl Arguments {
    /// Those of a message, as they came.
    pub(crate) fn of(message: &TaskMessage) -> Arguments {
        Arguments {
            args: message.args.clone(),
            kwargs: message.kwargs.clone(),
        }
    }

    /// The positional arguments as one type, e.g. a tuple.
    ///
    /// # Errors
    /// [`Failure`] of type `TypeError` that says what does not fit: a call with wrong arguments is never retried.
    pub fn positional<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.args
            .to()
            .map_err(|err| Failure::type_error(format!("positional arguments: {err}")))
    }

    /// The keyword arguments as one type.
    ///
    /// # Errors
    /// As [`Arguments::positional`].
    pub fn keywords<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.kwargs
            .to()
            .map_err(|err| Failure::type_error(format!("keyword arguments: {err}")))
    }
}

/// What a task's function may take: any type that serde reads (a tuple or a list for positional arguments, a struct for
/// both kinds, a map for keywords), or the [`Arguments`] themselves.
///
/// A struct takes positional arguments in the order of its fields and the rest by name, as a Python function does;
/// fields with a default may be left out.
pub trait FromArguments: Sized {
    /// Reads the arguments.
    ///
    /// # Errors
    /// [`Failure`] of type `TypeError` that says what does not fit.
    fn from_arguments(args: Arguments) -> Result<Self, Failure>;

    /// The names of the parameters in their order, where it is a struct. A retry that changes only the positional or only
    /// the keyword arguments keeps of the others what it does not set by another way.
    fn parameters() -> &'static [&'static str] {
        &[]
    }
}

impl FromArguments for Arguments {
    fn from_arguments(args: Arguments) -> Result<Arguments, Failure> {
        Ok(args)
    }
}

impl<T: DeserializeOwned> FromArguments for T {
    fn from_arguments(args: Arguments) -> Result<T, Failure> {
        T::deserialize(Call(&args)).map_err(|err| Failure::type_error(err.to_string()))
    }

    fn parameters() -> &'static [&'static str] {
        let mut names: &'static [&'static str] = &[];
        let _ = T::deserialize(Fields(&mut names)); // Answers nothing but the names.
        names
    }
}

/// Learns the fields of a struct.
struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("only its fields are asked for"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The call as serde reads it.
struct Call<'a>(&'a Arguments);

type Error = serde_json::Error;

impl Call<'_> {
    fn has_positional(&self) -> bool {
        self.0.args.as_str() != "[]"
    }

    fn has_keywords(&self) -> bool {
        self.0.kwargs.as_str() != "{}"
    }

    fn only_positional(&self) -> Result<(), Error> {
        if self.has_keywords() {
            return Err(Error::custom("takes positional arguments only"));
        }
        Ok(())
    }
}

/// Names with values, one after the other.
struct Named<'a> {
    left: std::vec::IntoIter<(&'a str, Json)>,
    value: Option<Json>,
}

impl<'a> Named<'a> {
    fn new(entries: Vec<(&'a str, Json)>) -> Named<'a> {
        Named {
            left: entries.into_iter(),
            value: None,
        }
    }
}

impl<'de> MapAccess<'de> for Named<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.left.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(IntoDeserializer::<Error>::into_deserializer(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = self.value.take().unwrap_or_else(Json::null);
        read(&value, seed)
    }
}

/// Reads one argument. What serde cannot keep for long is read through an owned copy.
fn read<'de, V: DeserializeSeed<'de>>(value: &Json, seed: V) -> Result<V::Value, Error> {
    let mut reader = serde_json::Deserializer::from_reader(value.as_str().as_bytes());
    seed.deserialize(&mut reader)
}

impl<'de> Deserializer<'de> for Call<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.has_positional() {
            self.only_positional()?;
            return visitor.visit_seq(Listed::new(&self.0.args));
        }
        if self.has_keywords() {
            return self.deserialize_map(visitor);
        }
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.only_positional()?;
        if self.has_positional() {
            return Err(Error::custom("takes no arguments"));
        }
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.has_positional() || self.has_keywords() {
            visitor.visit_some(self)
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.only_positional()?;
        visitor.visit_seq(Listed::new(&self.0.args))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.only_positional()?;
        let given = self.0.args.elements().map_or(0, |args| args.len());
        if given > len {
            return Err(Error::custom(format_args!(
                "takes {len} positional arguments but {given} were given"
            )));
        }
        visitor.visit_seq(Listed::new(&self.0.args))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.has_positional() {
            return Err(Error::custom("takes keyword arguments only"));
        }
        let entries = self.0.kwargs.entries();
        visitor.visit_map(Named::new(
            entries
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()))
                .collect(),
        ))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let positional = self.0.args.elements().unwrap_or_default();
        if positional.len() > fields.len() {
            return Err(Error::custom(format_args!(
                "takes {} positional arguments but {} were given",
                fields.len(),
                positional.len()
            )));
        }
        let keywords = self.0.kwargs.entries();
        let taken = &fields[..positional.len()];
        if let Some((name, _)) = keywords.iter().find(|(name, _)| taken.contains(&name.as_str())) {
            return Err(Error::custom(format_args!("got multiple values for argument '{name}'")));
        }
        let mut entries: Vec<(&str, Json)> = taken.iter().copied().zip(positional).collect();
        // Of a doubled name the last value counts, as in Python.
        for (name, value) in &keywords {
            entries.retain(|(known, _)| known != name);
            // What nobody takes may be what no Rust type has: NaN.
            let is_skipped = !fields.contains(&name.as_str()) && value.to::<IgnoredAny>().is_err();
            entries.push((name, if is_skipped { Json::null() } else { value.clone() }));
        }
        visitor.visit_map(Named::new(entries))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit_struct enum identifier
        ignored_any
    }
}

/// Values, one after the other.
struct Listed(std::vec::IntoIter<Json>);

impl Listed {
    fn new(array: &Json) -> Listed {
        Listed(array.elements().unwrap_or_default().into_iter())
    }
}

impl<'de> SeqAccess<'de> for Listed {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|value| read(&value, seed)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Resize {
        url: String,
        #[serde(default)]
        width: u32,
        mode: Option<String>,
    }

    fn read<T: FromArguments>(args: &str, kwargs: &str) -> Result<T, Failure> {
        T::from_arguments(Arguments {
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
        })
    }

    fn resize(width: u32, mode: Option<&str>) -> Resize {
        Resize {
            url: "u".into(),
            width,
            mode: mode.map(str::to_owned),
        }
    }

    #[test]
    fn a_struct_takes_arguments_by_position_and_by_name() {
        for (args, kwargs, expected) in [
            (r#"["u", 3]"#, "{}", resize(3, None)),
            ("[]", r#"{"url": "u", "width": 3}"#, resize(3, None)),
            (r#"["u"]"#, r#"{"mode": "x"}"#, resize(0, Some("x"))),
            (r#"["u"]"#, "{}", resize(0, None)),
            (r#"["u", 3, null]"#, r#"{"unknown": NaN}"#, resize(3, None)),
        ] {
            assert_eq!(read::<Resize>(args, kwargs).unwrap(), expected, "{args} {kwargs}");
        }
        for (args, kwargs, why) in [
            (r#"["u"]"#, r#"{"url": "v"}"#, "multiple values for argument 'url'"),
            (
                r#"["u", 1, "m", 4]"#,
                "{}",
                "takes 3 positional arguments but 4 were given",
            ),
            ("[]", "{}", "missing field `url`"),
        ] {
            let failure = read::<Resize>(args, kwargs).unwrap_err();
            assert!(failure.message.contains(why), "{failure}");
            assert_eq!((failure.exc_type.as_str(), failure.is_retryable), ("TypeError", false));
        }
    }

    #[test]
    fn a_struct_names_its_parameters() {
        assert_eq!(Resize::parameters(), ["url", "width", "mode"]);
        assert!(<(i64, i64)>::parameters().is_empty() && Arguments::parameters().is_empty());
    }

    #[test]
    fn other_types_take_their_kind() {
        assert_eq!(read::<(i64, i64)>("[2, 3]", "{}").unwrap(), (2, 3));
        assert_eq!(read::<Vec<i64>>("[]", "{}").unwrap(), Vec::<i64>::new());
        assert!(matches!(read::<()>("[]", "{}"), Ok(())));
        assert_eq!(
            read::<std::collections::BTreeMap<String, i64>>("[]", r#"{"a": 1}"#).unwrap(),
            std::iter::once(("a".to_owned(), 1)).collect()
        );
        assert_eq!(read::<Option<(i64,)>>("[]", "{}").unwrap(), None);
        assert!(read::<(i64, i64)>("[2]", "{}").is_err());
        assert!(read::<(i64,)>("[2, 3]", "{}").is_err());
        assert!(read::<(i64,)>("[2]", r#"{"b": 3}"#).is_err());
        assert!(read::<()>("[2]", "{}").is_err());
        let any = read::<Arguments>("[NaN]", r#"{"a": 1}"#).unwrap();
        assert_eq!((any.args.as_str(), any.kwargs.as_str()), ("[NaN]", r#"{"a": 1}"#));
    }
}
