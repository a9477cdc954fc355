//! Weights of published DiTs: their names and layouts, made ours.
//!
//! The layout is that of `DiTTransformer2DModel` (diffusers). It differs from ours by more than names: query, key and value
//! are apart, each block has a copy of the embedding of timestep and class, positions are not stored, values of a patch go
//! by place before channel, the last layer may predict a variance beside the noise, and the table of classes may end with
//! the row of no class. The mix of neighbouring tokens, which the published model lacks, is zero.
//! What is computed with them is what the authors' code computes (facebookresearch/DiT); the library has other frequencies
//! of the timestep. Absent on purpose: sizes, which the configuration gives (`patch_window` must be `patch`, `mlp_ratio` 4),
//! and the autoencoder of models of latents.

use super::blocks::sine_embedding;
use super::dit::DitConfig;
use super::parameters::{ParameterError, Tensors};
use crate::kernels;
use candle_core::{DType, Device, Tensor};

/// A tensor that every published model has, and none of ours.
const MARK: &str = "proj_out_2.weight";

/// The parameters of a [`super::Dit`] of `config` with `ada_ln` conditioning; `tensors` that are not in the published layout are given
/// back as they are.
///
/// # Errors
/// `Missing`, `Unknown` and `Shape` by published name, `Copy` where blocks embed a timestep or class differently. Shapes that are
/// kept are left to [`super::Dit::load`].
pub fn to_own_layout(tensors: Tensors, config: &DitConfig) -> Result<Tensors, ParameterError> {
    if !tensors.contains_key(MARK) {
        return Ok(tensors);
    }
    let mut conversion = Conversion { published: tensors, own: Tensors::new(), config };
    conversion.embeddings()?;
    for block in 0..config.trunk.depth {
        conversion.block(block)?;
    }
    conversion.rename_layer("proj_out_1", "final.modulation")?;
    conversion.readout()?;
    match conversion.published.into_keys().next() {
        Some(name) => Err(ParameterError::Unknown { name }),
        None => Ok(conversion.own),
    }
}

/// Tensors move from one side to the other, so that none is left out unseen.
struct Conversion<'a> {
    published: Tensors,
    own: Tensors,
    config: &'a DitConfig,
}

impl Conversion<'_> {
    fn take(&mut self, name: &str) -> Result<Tensor, ParameterError> {
        self.published.remove(name).ok_or_else(|| ParameterError::Missing { name: name.to_owned() })
    }

    fn put(&mut self, name: &str, tensor: Tensor) {
        self.own.insert(name.to_owned(), tensor);
    }

    fn rename_layer(&mut self, from: &str, to: &str) -> Result<(), ParameterError> {
        for part in ["weight", "bias"] {
            let tensor = self.take(&format!("{from}.{part}"))?;
            self.put(&format!("{to}.{part}"), tensor);
        }
        Ok(())
    }

    /// Of patches, positions, timesteps and classes.
    fn embeddings(&mut self) -> Result<(), ParameterError> {
        let weight = self.take("pos_embed.proj.weight")?.flatten_from(1)?; // (D, C, patch, patch) -> (D, P)
        self.put("embed.weight", weight);
        let bias = self.take("pos_embed.proj.bias")?;
        self.put("embed.bias", bias);
        self.put("position", positions(self.config)?);
        self.drop_copies()?;
        self.rename_layer(&format!("{}.timestep_embedder.linear_1", embedding(0)), "timestep.expand")?;
        self.rename_layer(&format!("{}.timestep_embedder.linear_2", embedding(0)), "timestep.contract")?;
        let name = format!("{}.class_embedder.embedding_table.weight", embedding(0));
        let (table, classes) = (self.take(&name)?, self.config.classes);
        if ![classes, classes + 1].contains(&table.dim(0)?) {
            return Err(ParameterError::Shape { name, expected: vec![classes + 1, self.config.trunk.hidden], got: table.dims().to_vec() });
        }
        self.put("class_embeddings", table.narrow(0, 0, classes)?); // (K or K + 1, D) -> (K, D)
        Ok(())
    }

    /// Drops the embeddings of all blocks but the first: ours has one, which must be theirs.
    fn drop_copies(&mut self) -> Result<(), ParameterError> {
        for block in 1..self.config.trunk.depth {
            for part in ["timestep_embedder.linear_1", "timestep_embedder.linear_2", "class_embedder.embedding_table"] {
                for values in ["weight", "bias"] {
                    let of_block = |block| format!("{}.{part}.{values}", embedding(block));
                    let Some(first) = self.published.get(&of_block(0)).cloned() else {
                        continue; // a table has no bias
                    };
                    let copy = self.take(&of_block(block))?;
                    let is_copy = copy.dims() == first.dims() && copy.ne(&first)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? == 0;
                    if !is_copy {
                        return Err(ParameterError::Copy { name: of_block(block), of: of_block(0) });
                    }
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, index: usize) -> Result<(), ParameterError> {
        let (from, to) = (format!("transformer_blocks.{index}"), format!("blocks.{index:02}"));
        for values in ["weight", "bias"] {
            let parts = ["to_q", "to_k", "to_v"].map(|part| self.take(&format!("{from}.attn1.{part}.{values}")));
            let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?; // 3 x (D, ..)
            self.put(&format!("{to}.qkv.{values}"), Tensor::cat(&parts, 0)?); // (3 D, ..)
        }
        let names =
            [("attn1.to_out.0", "projection"), ("ff.net.0.proj", "expand"), ("ff.net.2", "contract"), ("norm1.linear", "modulation")];
        for (published, own) in names {
            self.rename_layer(&format!("{from}.{published}"), &format!("{to}.{own}"))?;
        }
        let inner = self.config.trunk.hidden * self.config.trunk.mlp_ratio;
        self.put(&format!("{to}.neighbours"), Tensor::zeros((kernels::NEIGHBOURS, inner), DType::F32, &Device::Cpu)?);
        Ok(())
    }

    /// Rows (patch * patch, C or 2 C) of the last layer, of which the first C are the noise, become rows (C, patch * patch).
    fn readout(&mut self) -> Result<(), ParameterError> {
        let (places, channels) = (self.config.trunk.patch.pow(2), self.config.trunk.image.channels);
        for (name, own) in [(MARK, "readout.weight"), ("proj_out_2.bias", "readout.bias")] {
            let tensor = self.take(name)?;
            let (rows, values) = (tensor.dim(0)?, tensor.dims()[1..].iter().product::<usize>());
            if rows != places * channels && rows != 2 * places * channels {
                let mut expected = tensor.dims().to_vec();
                expected[0] = 2 * places * channels;
                return Err(ParameterError::Shape { name: name.to_owned(), expected, got: tensor.dims().to_vec() });
            }
            let mut shape = tensor.dims().to_vec();
            shape[0] = places * channels;
            let of_noise = tensor.reshape((places, rows / places, values))?.narrow(1, 0, channels)?; // (places, C, values)
            self.put(own, of_noise.transpose(0, 1)?.reshape(shape)?); // (P, values) or (P)
        }
        Ok(())
    }
}

/// Name of the embedding of timestep and class in a block.
fn embedding(block: usize) -> String {
    format!("transformer_blocks.{block}.norm1.emb")
}

/// Sines then cosines of the column in the first half, of the row in the second (DiT, `get_2d_sincos_pos_embed`), (1, T, D).
fn positions(config: &DitConfig) -> Result<Tensor, ParameterError> {
    let (rows, columns) = config.trunk.grid();
    let half = config.trunk.hidden / 2;
    let mut positions = Vec::with_capacity(config.trunk.tokens() * config.trunk.hidden);
    for row in 0..rows {
        for column in 0..columns {
            for place in [column, row] {
                let mut sines: Vec<f32> = sine_embedding(place as f64, half).collect();
                sines.rotate_left(half / 2); // from cosines first to sines first
                positions.extend(sines);
            }
        }
    }
    Ok(Tensor::from_vec(positions, (1, config.trunk.tokens(), config.trunk.hidden), &Device::Cpu)?)
}
