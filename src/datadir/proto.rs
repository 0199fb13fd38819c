//! As much of the protobuf wire format as etcd's files need: varints and length-delimited fields.

use thiserror::Error;

/// Bytes that are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a protobuf message")]
pub struct ProtoError;

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint field.
pub fn put_uint(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

/// Appends a varint field unless it is zero, as proto3 does.
pub fn put_nonzero(out: &mut Vec<u8>, field: u32, value: i64) {
    if value != 0 {
        put_uint(out, field, value as u64);
    }
}

/// Appends the head of a length-delimited field: its content of `length` bytes must follow.
pub fn put_length(out: &mut Vec<u8>, field: u32, length: usize) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, length as u64);
}

/// Appends a length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_length(out, field, value.len());
    out.extend_from_slice(value);
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'b> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2.
    Bytes(&'b [u8]),
    /// Wire types 1 and 5, which none of our messages uses.
    Fixed,
}

impl<'b> Value<'b> {
    /// The number of a varint field.
    pub fn uint(self) -> Result<u64, ProtoError> {
        if let Value::Varint(value) = self { Ok(value) } else { Err(ProtoError) }
    }

    /// The content of a length-delimited field.
    pub fn bytes(self) -> Result<&'b [u8], ProtoError> {
        if let Value::Bytes(value) = self { Ok(value) } else { Err(ProtoError) }
    }
}

/// The fields of a message, in the order in which they stand, without copying.
pub struct Fields<'b> {
    rest: &'b [u8],
}

impl<'b> Fields<'b> {
    /// The fields of `message`.
    pub fn new(message: &'b [u8]) -> Fields<'b> {
        Fields { rest: message }
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7F);
            if at == 9 && bits > 1 {
                return Err(ProtoError);
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(at + 1..).ok_or(ProtoError)?;
                return Ok(value);
            }
        }
        Err(ProtoError)
    }

    fn take(&mut self, length: u64) -> Result<&'b [u8], ProtoError> {
        let length = usize::try_from(length).map_err(|_| ProtoError)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtoError)?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Value<'b>), ProtoError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0).ok_or(ProtoError)?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(ProtoError),
        };
        Ok((number, value))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Result<(u32, Value<'b>), ProtoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Appends the varints of a packed list.
pub fn read_packed(packed: &[u8], list: &mut Vec<u64>) -> Result<(), ProtoError> {
    let mut fields = Fields::new(packed);
    while !fields.rest.is_empty() {
        list.push(fields.varint()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_come_back() {
        let mut out = Vec::new();
        put_uint(&mut out, 1, u64::MAX);
        put_bytes(&mut out, 2, b"abc");
        put_nonzero(&mut out, 3, 0);
        put_nonzero(&mut out, 4, -1);
        let fields: Result<Vec<_>, _> = Fields::new(&out).collect();
        let want = vec![(1, Value::Varint(u64::MAX)), (2, Value::Bytes(b"abc")), (4, Value::Varint(u64::MAX))];
        assert_eq!(fields, Ok(want));
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_an_error() {
        for bytes in
            [&[0x08][..], &[0x12, 5, 1], &[0x0B], &[0x00, 1], &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]]
        {
            assert!(Fields::new(bytes).any(|f| f.is_err()), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Fields::new(&bytes).count() <= bytes.len());
        }

        #[test]
        fn varints_come_back(value: u64) {
            let mut out = Vec::new();
            put_uint(&mut out, 1, value);
            prop_assert_eq!(Fields::new(&out).next(), Some(Ok((1, Value::Varint(value)))));
        }
    }
}
