//! Values of the host, which are f32 or the bits of u32, in the bytes of a buffer.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use crate::base::DType;

/// The bytes of `values` in a buffer of this type: whole words of four bytes, the last of them filled up with zeros.
pub(super) fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    if dtype != DType::F16 {
        return bytemuck::cast_slice(values).to_vec();
    }
    let mut halves = vec![f16::ZERO; values.len().next_multiple_of(2)];
    halves[..values.len()].convert_from_f32_slice(values);
    halves.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `len` values from the bytes of a buffer of this type.
pub(super) fn from_bytes(bytes: &[u8], dtype: DType, len: usize) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes.chunks_exact(2).take(len).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect(),
        DType::F32 | DType::U32 => bytes.chunks_exact(4).take(len).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_where_the_type_holds_them() {
        let values = [0.5, -2.0, 65_504.0, f32::INFINITY, 0.25];
        for (dtype, bytes) in [(DType::F16, 12), (DType::F32, 20)] {
            let packed = to_bytes(&values, dtype);
            assert_eq!((packed.len(), from_bytes(&packed, dtype, 5)), (bytes, values.to_vec()));
        }
        let index = f32::from_bits(0x7fc0_0001);
        assert_eq!(from_bytes(&to_bytes(&[index], DType::U32), DType::U32, 1)[0].to_bits(), index.to_bits());
    }
}
