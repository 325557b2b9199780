//! The input tensors of `forward`.

use crate::base::{Array, DType, Error, Kind, Result};
use crate::models::{Inputs, Port};
use crate::plan::{Layout, Tape};
use crate::weights::Store;

/// Tensors of an input file, read with the shapes that a component wants.
pub(crate) struct Tensors {
    store: Store,
}

impl Tensors {
    pub(crate) fn new(store: Store) -> Tensors {
        Tensors { store }
    }

    /// An f32 tensor in our axis order.
    pub(crate) fn tensor(&self, name: &str) -> Result<Array> {
        Ok(self.store.array(name)?.to_channels_last())
    }

    pub(crate) fn indices(&self, name: &str) -> Result<Vec<u32>> {
        self.store.indices(name)
    }
}

/// Makes an input of the tape of each port that the file has a tensor for, and gives their values by name.
pub(crate) fn read_ports(tape: &mut Tape, ports: &[Port], store: &Store) -> Result<(Inputs, Vec<(String, Vec<f32>)>)> {
    let (mut inputs, mut values) = (Vec::new(), Vec::new());
    for port in ports {
        let Some(shape) = store.shape(&port.name) else {
            if port.optional {
                continue;
            }
            let names: Vec<&str> = store.names().take(8).collect();
            let fact = format!("the model needs this input, the file has {}", names.join(", "));
            return Err(Error::new(Kind::Usage, &port.name, fact).remark(store.place()));
        };
        // A number without axes serves as a batch of one.
        let mut dims = if shape.is_empty() { vec![1] } else { shape.to_vec() };
        let data = match port.dtype {
            DType::U32 => bytemuck::cast_slice(&indices(port, store)?).to_vec(),
            _ => {
                let mut array = store.array(&port.name)?;
                if port.layout == Layout::Image {
                    array = array.to_channels_last();
                    dims = array.dims().to_vec();
                }
                array.data
            }
        };
        inputs.push((port.name.clone(), tape.input(&port.name, &dims, port.dtype)));
        values.push((port.name.clone(), data));
    }
    Ok((Inputs::new(inputs), values))
}

fn indices(port: &Port, store: &Store) -> Result<Vec<u32>> {
    let indices = store.indices(&port.name)?;
    let below = port.below.unwrap_or(usize::MAX);
    match indices.iter().find(|&&index| index as usize >= below) {
        Some(index) => Err(Error::new(Kind::Usage, &port.name, format!("{index}, expected 0 to {}", below - 1))),
        None => Ok(indices),
    }
}
