//! The wire format of protocol buffers, as much as a reader of ONNX files needs. Messages are slices of the mapped file: nothing is
//! copied, nothing is allocated by a claimed length, and nothing recurses by itself.
//! Source: the protocol buffers encoding guide.

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Field<'a> {
    pub(super) fn integer(self) -> Result<i64, String> {
        match self {
            Field::Varint(v) => Ok(v as i64),
            _ => Err(self.unexpected("an integer")),
        }
    }

    pub(super) fn float(self) -> Result<f32, String> {
        match self {
            Field::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.unexpected("a float")),
        }
    }

    /// A message, a text or raw values.
    pub(super) fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(self.unexpected("bytes")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a name is not UTF-8".to_string())
    }

    /// Repeated integers: one, or several packed.
    pub(super) fn integers(self, into: &mut Vec<i64>) -> Result<(), String> {
        match self {
            Field::Bytes(bytes) => {
                let mut message = Message::new(bytes);
                while !message.rest.is_empty() {
                    into.push(message.varint()? as i64);
                }
            }
            other => into.push(other.integer()?),
        }
        Ok(())
    }

    /// Repeated floats: one, or several packed.
    pub(super) fn floats(self, into: &mut Vec<f32>) -> Result<(), String> {
        match self {
            Field::Bytes(bytes) => match bytes.as_chunks::<4>() {
                (values, []) => into.extend(values.iter().map(|b| f32::from_le_bytes(*b))),
                _ => return Err(format!("{} bytes of floats, expected four each", bytes.len())),
            },
            other => into.push(other.float()?),
        }
        Ok(())
    }

    /// Repeated doubles, rounded to f32: one, or several packed.
    pub(super) fn doubles(self, into: &mut Vec<f32>) -> Result<(), String> {
        match self {
            Field::Bytes(bytes) => match bytes.as_chunks::<8>() {
                (values, []) => into.extend(values.iter().map(|b| f64::from_le_bytes(*b) as f32)),
                _ => return Err(format!("{} bytes of doubles, expected eight each", bytes.len())),
            },
            Field::Fixed64(bytes) => into.push(f64::from_le_bytes(bytes) as f32),
            other => return Err(other.unexpected("a double")),
        }
        Ok(())
    }

    fn unexpected(self, expected: &str) -> String {
        let found = match self {
            Field::Varint(_) => "an integer",
            Field::Fixed64(_) => "eight bytes",
            Field::Bytes(_) => "bytes",
            Field::Fixed32(_) => "four bytes",
        };
        format!("a field is {found}, expected {expected}")
    }
}

/// A reader of one message's fields, in the order of the file.
pub(super) struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Message<'a> {
        Message { rest: bytes }
    }

    /// Number and value of the next field; None at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(self.array()?),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => Field::Fixed32(self.array()?),
            other => return Err(format!("field {} has wire type {other}, expected 0, 1, 2 or 5", key >> 3)),
        };
        Ok(Some((key >> 3, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(format!("a field of {length} bytes where {} are left", self.rest.len()));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32).unwrap_or(0);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err("an integer of more than ten bytes, or cut off".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_bounded() {
        // Field 1 = 300, field 2 = "ab", field 3 = 1.5 as four bytes.
        let bytes = [0x08, 0xac, 0x02, 0x12, 2, b'a', b'b', 0x1d, 0, 0, 0xc0, 0x3f];
        let mut message = Message::new(&bytes);
        assert_eq!(message.next().unwrap(), Some((1, Field::Varint(300))));
        let (number, text) = message.next().unwrap().unwrap();
        assert_eq!((number, text.text().unwrap()), (2, "ab"));
        assert!(text.integer().unwrap_err().contains("is bytes, expected an integer"));
        assert_eq!(message.next().unwrap().unwrap().1.float().unwrap(), 1.5);
        assert_eq!(message.next().unwrap(), None);
        for bad in [&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], &[0x08], &[0x0b], &[0xff; 11], &[0x1d, 0]] {
            assert!(Message::new(bad).next().is_err(), "{bad:?}");
        }
        let mut numbers = Vec::new();
        Field::Bytes(&[1, 0xac, 2]).integers(&mut numbers).unwrap();
        Field::Varint(u64::MAX).integers(&mut numbers).unwrap();
        assert_eq!(numbers, [1, 300, -1]);
        assert!(Field::Bytes(&[0; 5]).floats(&mut Vec::new()).is_err());
    }
}
