//! What Kiln needs of a manifest or an index, and no more: a registry's answer of a few MiB takes many times as much where
//! all that it may hold is kept.

use std::fmt;
use std::marker::PhantomData;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The most images of an index, and layers of an image, that are read: nobody's have so many, and no container runtime takes
/// them.
const MOST: usize = 1000;

/// What a manifest or index refers to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Links {
    /// An index's images.
    #[serde(deserialize_with = "all")]
    pub(super) manifests: Vec<Link>,
    /// An image's configuration.
    pub(super) config: Option<Link>,
    /// An image's layers, from the base up.
    #[serde(deserialize_with = "all")]
    pub(super) layers: Vec<Link>,
}

/// What is referred to.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Of an index's entry.
    #[serde(default)]
    pub(super) platform: Option<LinkPlatform>,
    /// Whether it is to be fetched elsewhere.
    #[serde(default, rename = "urls", deserialize_with = "is_any")]
    pub(super) is_elsewhere: bool,
}

/// `oci_spec`'s looks for the version in `os_version`, where no index has it.
#[derive(Debug, Deserialize)]
pub(super) struct LinkPlatform {
    pub(super) os: String,
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    #[serde(default, rename = "os.version")]
    pub(super) os_version: Option<String>,
}

impl Links {
    /// `None`: the bytes are neither a manifest nor an index, or hold more than any.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl Link {
    /// As a blob, whose media type nobody asks for.
    pub(super) fn blob(self) -> Descriptor {
        Descriptor::new(MediaType::Other("application/octet-stream".to_owned()), self.size, self.digest)
    }
}

/// A list that is refused where it is longer than any.
fn all<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    let (list, is_longer) = input.deserialize_any(Few(MOST, PhantomData))?;
    if is_longer { Err(serde::de::Error::custom("the list is longer than any")) } else { Ok(list) }
}

/// The beginning of a list, or none.
pub(super) fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    input.deserialize_any(Few(MOST, PhantomData)).map(|(list, _)| list)
}

/// Whether there is anything in a list.
fn is_any<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    let (_, is_longer) = input.deserialize_any(Few::<IgnoredAny>(0, PhantomData))?;
    Ok(is_longer)
}

/// So many elements, and whether there were more.
struct Few<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
    type Value = (Vec<T>, bool);

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list or null")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok((Vec::new(), false))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut few = Vec::new();
        while few.len() < self.0 {
            match list.next_element()? {
                Some(element) => few.push(element),
                None => return Ok((few, false)),
            }
        }
        let mut is_longer = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            is_longer = true;
        }
        Ok((few, is_longer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_is_needed_is_kept() {
        let digest = super::super::sha256_digest(b"");
        let layer =
            |urls: usize| format!(r#"{{"digest":"{digest}","size":1,"urls":[{}]}}"#, vec!["\"\""; urls].join(","));
        let image = |layers: &[String]| Links::read(format!(r#"{{"layers":[{}]}}"#, layers.join(",")).as_bytes());
        let links = image(&[layer(0), layer(1_000_000)]).unwrap();
        assert_eq!(links.layers.iter().map(|layer| layer.is_elsewhere).collect::<Vec<_>>(), [false, true]);
        assert!(image(&vec![layer(0); MOST]).is_some());
        assert!(image(&vec![layer(0); MOST + 1]).is_none(), "longer than any");
        let absent = Links::read(br#"{"layers":null,"manifests":null,"config":null}"#).unwrap();
        assert!(absent.layers.is_empty() && absent.manifests.is_empty() && absent.config.is_none());
        for other in ["1", r#"{"layers":{}}"#, r#"{"layers":[1]}"#, "", "<html>"] {
            assert!(Links::read(other.as_bytes()).is_none(), "{other}");
        }
    }
}
