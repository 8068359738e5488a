//! The weights of parity, and of what replaces lost units.

use crate::Sum;
use cobalt_dma::Buf;
use rustfs_erasure_codec::galois_8::ReedSolomon;

/// Most units per group: the field has 256 elements.
pub const UNITS_MAX: usize = 256;

/// A code of N data and K parity units.
pub struct Codec {
    data: usize,
    parity: usize,
    /// `None` when there is no parity.
    code: Option<ReedSolomon>,
    /// For each parity unit, the weight of each data unit.
    weights: Vec<Vec<u8>>,
}

/// Why a code cannot be built, or a unit not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// N is zero, or N+K above [`UNITS_MAX`].
    #[error(
        "a code of {data} data and {parity} parity units does not exist: take 1 to 256 units, at least 1 of data"
    )]
    Shape { data: usize, parity: usize },
    /// Fewer than N units are there, or more than that, or one twice, or one that is wanted.
    #[error("{have:?} are not the units that {want:?} can be decoded from")]
    Units { have: Vec<usize>, want: Vec<usize> },
}

impl Codec {
    /// The code of `data` and `parity` units. Its parity bytes are those of the crate reed-solomon-erasure.
    ///
    /// # Errors
    /// [`CodecError::Shape`].
    pub fn new(data: usize, parity: usize) -> Result<Codec, CodecError> {
        let shape = || CodecError::Shape { data, parity };
        if data == 0 || data.saturating_add(parity) > UNITS_MAX {
            return Err(shape());
        }
        if parity == 0 {
            return Ok(Codec { data, parity, code: None, weights: Vec::new() });
        }
        let code = ReedSolomon::new(data, parity).map_err(|_| shape())?;
        // Unit vectors in, columns of the matrix out: byte j of a parity unit is the weight of data unit j.
        let identity = (0..data).map(|unit| unit_vector(data, unit)).collect::<Vec<_>>();
        let mut weights = vec![vec![0; data]; parity];
        code.encode_sep(&identity, &mut weights).map_err(|_| shape())?;
        Ok(Codec { data, parity, code: Some(code), weights })
    }

    /// N.
    pub fn data_units(&self) -> usize {
        self.data
    }

    /// K.
    pub fn parity_units(&self) -> usize {
        self.parity
    }

    /// Begins the parity of a group in `bufs`, one for each parity unit; add the data units as they arrive.
    pub fn parity(&self, bufs: Vec<Buf>) -> Sum {
        assert_eq!(bufs.len(), self.parity, "one buffer for each parity unit");
        let columns =
            (0..self.data).map(|unit| (unit, self.weights.iter().map(|row| row[unit]).collect())).collect();
        Sum::new(columns, bufs)
    }

    /// Begins the units `want` in `bufs`, to be decoded from the N units `have`; add those as they arrive.
    /// Units are numbered from 0: data, then parity. A data unit beyond the end of a partial group is one of zero bytes, and
    /// counts as had.
    ///
    /// # Errors
    /// [`CodecError::Units`] unless `have` are N units, and none of them wanted.
    pub fn decode(&self, have: &[usize], want: &[usize], bufs: Vec<Buf>) -> Result<Sum, CodecError> {
        assert_eq!(bufs.len(), want.len(), "one buffer for each unit that is wanted");
        let bad = || CodecError::Units { have: have.to_vec(), want: want.to_vec() };
        let total = self.data + self.parity;
        let mut there = vec![None; total];
        for (place, unit) in have.iter().enumerate() {
            if there.get_mut(*unit).ok_or_else(bad)?.replace(place).is_some() {
                return Err(bad());
            }
        }
        if have.len() != self.data || want.iter().any(|unit| there.get(*unit).is_none_or(Option::is_some)) {
            return Err(bad());
        }
        let rows: Vec<Vec<u8>> = if want.is_empty() {
            Vec::new()
        } else {
            let mut units: Vec<Option<Vec<u8>>> =
                there.iter().map(|place| place.map(|place| unit_vector(self.data, place))).collect();
            // As for the parity: unit vectors in, weights out.
            self.code.as_ref().ok_or_else(bad)?.reconstruct(&mut units).map_err(|_| bad())?;
            want.iter()
                .map(|unit| units.get(*unit).cloned().flatten().ok_or_else(bad))
                .collect::<Result<_, _>>()?
        };
        let columns = have
            .iter()
            .enumerate()
            .map(|(place, unit)| (*unit, rows.iter().map(|row| row[place]).collect()))
            .collect();
        Ok(Sum::new(columns, bufs))
    }
}

fn unit_vector(len: usize, place: usize) -> Vec<u8> {
    let mut vector = vec![0; len];
    vector[place] = 1;
    vector
}
