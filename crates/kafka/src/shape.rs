//! A walk over a request's bytes before they are decoded, which checks every length and count against what is there.
//!
//! The decoder reserves memory for as many elements as a request claims (12 bytes can claim 200 GB), and many small
//! elements take far more memory decoded than encoded. After this walk neither can happen: counts are covered by
//! bytes, and a request names at most [`KAFKA_REQUEST_ELEMENTS_MAX`] elements. It needs the schemas of the requests
//! that the listener takes, and nothing else; nothing is allocated.

use base::limits::KAFKA_REQUEST_ELEMENTS_MAX;
use kafka_protocol::messages::ApiKey;

/// What a field looks like.
enum Shape {
    /// So many bytes.
    Fixed(usize),
    /// A string, nullable or not: 16-bit length, or compact.
    Text,
    /// Bytes, nullable or not: 32-bit length, or compact.
    Blob,
    /// An array of plain values of so many bytes.
    FixedArray(usize),
    /// An array of strings.
    TextArray,
    /// An array of structures.
    StructArray(&'static [Field]),
}

use Shape::{Blob, Fixed, FixedArray, StructArray, Text, TextArray};

/// A field, and the versions that have it.
struct Field {
    shape: Shape,
    since: i16,
    until: i16,
}

const fn always(shape: Shape) -> Field {
    Field { shape, since: 0, until: i16::MAX }
}

const fn since(since: i16, shape: Shape) -> Field {
    Field { shape, since, until: i16::MAX }
}

const fn until(until: i16, shape: Shape) -> Field {
    Field { shape, since: 0, until }
}

const PRODUCE: &[Field] = &[always(Text), always(Fixed(2)), always(Fixed(4)), always(StructArray(PRODUCE_TOPIC))];
const PRODUCE_TOPIC: &[Field] = &[until(12, Text), since(13, Fixed(16)), always(StructArray(PRODUCE_PARTITION))];
const PRODUCE_PARTITION: &[Field] = &[always(Fixed(4)), always(Blob)];

const FETCH: &[Field] = &[
    until(14, Fixed(4)),
    always(Fixed(4 + 4 + 4 + 1)),
    since(7, Fixed(4 + 4)),
    always(StructArray(FETCH_TOPIC)),
    since(7, StructArray(FETCH_FORGOTTEN)),
    since(11, Text),
];
const FETCH_TOPIC: &[Field] = &[until(12, Text), since(13, Fixed(16)), always(StructArray(FETCH_PARTITION))];
const FETCH_PARTITION: &[Field] = &[
    always(Fixed(4)),
    since(9, Fixed(4)),
    always(Fixed(8)),
    since(12, Fixed(4)),
    since(5, Fixed(8)),
    always(Fixed(4)),
];
const FETCH_FORGOTTEN: &[Field] = &[until(12, Text), since(13, Fixed(16)), always(FixedArray(4))];

const LIST_OFFSETS: &[Field] =
    &[always(Fixed(4)), since(2, Fixed(1)), always(StructArray(LIST_OFFSETS_TOPIC)), since(10, Fixed(4))];
const LIST_OFFSETS_TOPIC: &[Field] = &[always(Text), always(StructArray(LIST_OFFSETS_PARTITION))];
const LIST_OFFSETS_PARTITION: &[Field] = &[always(Fixed(4)), since(4, Fixed(4)), always(Fixed(8))];

const METADATA: &[Field] = &[
    always(StructArray(METADATA_TOPIC)),
    since(4, Fixed(1)),
    Field { shape: Fixed(1), since: 8, until: 10 },
    since(8, Fixed(1)),
];
const METADATA_TOPIC: &[Field] = &[since(10, Fixed(16)), always(Text)];

const FIND_COORDINATOR: &[Field] = &[until(3, Text), since(1, Fixed(1)), since(4, TextArray)];

const API_VERSIONS: &[Field] = &[since(3, Text), since(3, Text)];

const CREATE_TOPICS: &[Field] = &[always(StructArray(CREATE_TOPIC)), always(Fixed(4)), since(1, Fixed(1))];
const CREATE_TOPIC: &[Field] =
    &[always(Text), always(Fixed(4 + 2)), always(StructArray(CREATE_ASSIGNMENT)), always(StructArray(CREATE_CONFIG))];
const CREATE_ASSIGNMENT: &[Field] = &[always(Fixed(4)), always(FixedArray(4))];
const CREATE_CONFIG: &[Field] = &[always(Text), always(Text)];

const DELETE_TOPICS: &[Field] = &[since(6, StructArray(DELETE_TOPIC)), until(5, TextArray), always(Fixed(4))];
const DELETE_TOPIC: &[Field] = &[always(Text), always(Fixed(16))];

/// Fields of the body, and the first version whose encoding is flexible (KIP-482).
fn schema(api: ApiKey) -> Option<(&'static [Field], i16)> {
    Some(match api {
        ApiKey::Produce => (PRODUCE, 9),
        ApiKey::Fetch => (FETCH, 12),
        ApiKey::ListOffsets => (LIST_OFFSETS, 6),
        ApiKey::Metadata => (METADATA, 9),
        ApiKey::FindCoordinator => (FIND_COORDINATOR, 3),
        ApiKey::ApiVersions => (API_VERSIONS, 3),
        ApiKey::CreateTopics => (CREATE_TOPICS, 5),
        ApiKey::DeleteTopics => (DELETE_TOPICS, 4),
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ShapeError {
    #[error("the request is cut short, or a length or count in it is larger than the request")]
    Short,
    #[error("the request names more than {KAFKA_REQUEST_ELEMENTS_MAX} elements")]
    Elements,
    #[error("the request cannot be read")]
    Unknown,
}

/// Checks header and body of a request.
pub(crate) fn check(api: ApiKey, version: i16, request: &[u8]) -> Result<(), ShapeError> {
    let (fields, flexible_since) = schema(api).ok_or(ShapeError::Unknown)?;
    let flexible = version >= flexible_since;
    let mut walk = Walk { rest: request, elements: 0, version, flexible: false };
    walk.skip(8)?; // API, version, correlation id.
    walk.shape(&Text)?; // The client's id is in the old encoding in both headers.
    walk.flexible = flexible;
    walk.tags()?;
    walk.fields(fields)
}

struct Walk<'a> {
    rest: &'a [u8],
    elements: usize,
    version: i16,
    flexible: bool,
}

impl Walk<'_> {
    fn skip(&mut self, bytes: usize) -> Result<(), ShapeError> {
        self.rest = self.rest.get(bytes..).ok_or(ShapeError::Short)?;
        Ok(())
    }

    fn fields(&mut self, fields: &'static [Field]) -> Result<(), ShapeError> {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.shape(&field.shape)?;
            }
        }
        self.tags()
    }

    fn shape(&mut self, shape: &'static Shape) -> Result<(), ShapeError> {
        match shape {
            Fixed(bytes) => self.skip(*bytes),
            Text => {
                let length = self.length(2)?;
                self.skip(length)
            }
            Blob => {
                let length = self.length(4)?;
                self.skip(length)
            }
            FixedArray(bytes) => self.array(&Fixed(*bytes)),
            TextArray => self.array(&Text),
            StructArray(fields) => {
                for _ in 0..self.count()? {
                    self.fields(fields)?;
                }
                Ok(())
            }
        }
    }

    fn array(&mut self, element: &Shape) -> Result<(), ShapeError> {
        for _ in 0..self.count()? {
            match element {
                Fixed(bytes) => self.skip(*bytes)?,
                _ => {
                    let length = self.length(2)?;
                    self.skip(length)?;
                }
            }
        }
        Ok(())
    }

    /// How many elements follow. Each takes a byte at least.
    fn count(&mut self) -> Result<usize, ShapeError> {
        let count = self.length(4)?;
        if count > self.rest.len() {
            return Err(ShapeError::Short);
        }
        self.count_elements(count)?;
        Ok(count)
    }

    fn count_elements(&mut self, count: usize) -> Result<(), ShapeError> {
        self.elements = self.elements.saturating_add(count);
        if self.elements > KAFKA_REQUEST_ELEMENTS_MAX { Err(ShapeError::Elements) } else { Ok(()) }
    }

    /// A length or count: big-endian in `bytes` bytes with -1 for null, or compact with 0 for null; null is 0 long.
    fn length(&mut self, bytes: usize) -> Result<usize, ShapeError> {
        if self.flexible {
            return Ok((self.varint()? as usize).saturating_sub(1));
        }
        let (head, _) = self.rest.split_at_checked(bytes).ok_or(ShapeError::Short)?;
        let negative = head.first().is_some_and(|byte| byte & 0x80 != 0);
        let value = head.iter().fold(0usize, |value, byte| value << 8 | usize::from(*byte));
        let null = head.iter().all(|byte| *byte == 0xff);
        self.skip(bytes)?;
        match (negative, null) {
            (false, _) => Ok(value),
            (true, true) => Ok(0),
            (true, false) => Err(ShapeError::Short),
        }
    }

    fn varint(&mut self) -> Result<u32, ShapeError> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = *self.rest.first().ok_or(ShapeError::Short)?;
            self.skip(1)?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ShapeError::Short)
    }

    /// The tagged fields at the end of a flexible structure.
    fn tags(&mut self) -> Result<(), ShapeError> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.varint()? as usize;
        if count > self.rest.len() {
            return Err(ShapeError::Short);
        }
        self.count_elements(count)?;
        for _ in 0..count {
            self.varint()?;
            let bytes = self.varint()? as usize;
            self.skip(bytes)?;
        }
        Ok(())
    }
}
