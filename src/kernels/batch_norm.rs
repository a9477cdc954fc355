//! Batch norm over the tokens of all images, with the statistics of the batch, with given ones, which may differ from image to image, or
//! between given ones and those of the batch or of each image.

use super::slices::{tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::slice::ChunksExact;

/// Added to the variance (PyTorch, `nn.BatchNorm2d`).
const NORM_EPS: f64 = 1e-5;

/// Mean and variance of each channel (C).
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMoments {
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
}

impl ChannelMoments {
    /// Over images and tokens of `x` (N, T, C).
    pub fn of(x: &Tensor) -> Result<Self> {
        let channels = x.dim(2)?;
        with_values(x, |x| Ok(moments(x, channels)))
    }

    /// These, moved the share `share` of their way to `others`.
    pub fn moved(&self, others: &Self, share: f32) -> Self {
        let moved = |from: &[f32], to: &[f32]| from.iter().zip(to).map(|(from, to)| (1.0 - share) * from + share * to).collect();
        Self { mean: moved(&self.mean, &others.mean), variance: moved(&self.variance, &others.variance) }
    }

    /// Of each image of `x` (N, T, C) by itself.
    pub fn of_images(x: &Tensor) -> Result<Vec<Self>> {
        let (_, tokens, channels) = x.dims3()?;
        with_values(x, |x| Ok(x.chunks_exact(tokens * channels).map(|image| moments(image, channels)).collect()))
    }

    /// Takes in `others` with the share `share` of the whole: the moments of the mixture, whose variance has that between the means, too.
    pub fn take_in(&mut self, others: &Self, share: f32) {
        for c in 0..self.mean.len() {
            let apart = others.mean[c] - self.mean[c];
            self.mean[c] += share * apart;
            self.variance[c] = (1.0 - share) * (self.variance[c] + share * apart * apart) + share * others.variance[c];
        }
    }
}

/// Which moments a norm takes.
#[derive(Clone, Copy, Debug)]
pub enum NormMoments<'a> {
    /// Those of `x`; the gradient goes through them.
    Batch,
    /// Given ones, one for each image or one for all, moved the share `share` of their way to those of that image, or of all; the
    /// gradient goes through that share.
    Mixed { given: &'a [&'a ChannelMoments], share: f32 },
}

/// y (N, T, C) = (x - mean) / sqrt(variance + eps) * scale + shift; `scale` and `shift` are (C).
pub fn batch_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, moments: NormMoments<'_>) -> Result<Tensor> {
    let (given, share) = match moments {
        NormMoments::Batch => (&[][..], 1.0),
        NormMoments::Mixed { given, share } => (given, share),
    };
    let given = given.iter().map(|&moments| moments.clone()).collect();
    x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, BatchNorm { given, share })
}

struct BatchNorm {
    /// One for each image, or one for all, or none.
    given: Vec<ChannelMoments>,
    /// Of the images' own moments, 0..=1; 1 without given ones.
    share: f32,
}

/// Two passes, with sums in f64 in the order of the rows.
fn moments(x: &[f32], channels: usize) -> ChannelMoments {
    let mean = means(x, channels, |_, value| f64::from(value));
    let variance = means(x, channels, |c, value| (f64::from(value) - mean[c]).powi(2));
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
    ChannelMoments { mean: narrow(&mean), variance: narrow(&variance) }
}

/// Mean of a term over the rows, by channel.
fn means(x: &[f32], channels: usize, term: impl Fn(usize, f32) -> f64) -> Vec<f64> {
    let mut sums = vec![0f64; channels];
    for row in x.chunks_exact(channels) {
        for (c, (sum, &value)) in sums.iter_mut().zip(row).enumerate() {
            *sum += term(c, value);
        }
    }
    let count = (x.len() / channels) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// 1 / sqrt(variance + eps)
fn reciprocals(variance: &[f32]) -> Vec<f32> {
    variance.iter().map(|&variance| (1.0 / (f64::from(variance) + NORM_EPS).sqrt()) as f32).collect()
}

impl BatchNorm {
    /// What is normalised together of `x` (N, T, C): each image, or all.
    fn groups<'a>(&self, x: &'a [f32], images: usize) -> ChunksExact<'a, f32> {
        x.chunks_exact(if self.given.len() > 1 { x.len() / images } else { x.len() })
    }

    /// The moments that each group of `x` is normalised by, and its own where they have a share.
    fn moments(&self, x: &[f32], images: usize, channels: usize) -> Vec<(ChannelMoments, Option<ChannelMoments>)> {
        let of_group = |(i, x): (usize, &[f32])| {
            let own = (self.share > 0.0).then(|| moments(x, channels));
            let taken = match (self.given.get(i), &own) {
                (Some(given), Some(own)) => given.moved(own, self.share),
                (given, own) => given.or(own.as_ref()).expect("without given moments a group has its own").clone(),
            };
            (taken, own)
        };
        self.groups(x, images).enumerate().map(of_group).collect()
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, _, c) = x_layout.shape().dims3()?;
        let (x, scale, shift) = (values(x, x_layout)?, values(scale, scale_layout)?, values(shift, shift_layout)?);
        if self.given.len() > 1 && self.given.len() != n {
            bail!("{} moments for {n} images", self.given.len());
        }
        for ChannelMoments { mean, variance } in &self.given {
            if [mean.len(), variance.len()] != [c; 2] {
                bail!("mean {}, variance {} for {c} channels", mean.len(), variance.len());
            }
        }
        if [scale.len(), shift.len()] != [c; 2] {
            bail!("scale {}, shift {} for {c} channels", scale.len(), shift.len());
        }
        let mut y = Vec::with_capacity(x.len());
        for (x, (ChannelMoments { mean, variance }, _)) in self.groups(x, n).zip(self.moments(x, n, c)) {
            let factors: Vec<f32> = reciprocals(&variance).iter().zip(scale).map(|(r, scale)| r * scale).collect();
            let offsets: Vec<f32> = (0..c).map(|i| shift[i] - mean[i] * factors[i]).collect();
            for row in x.chunks_exact(c) {
                y.extend(row.iter().zip(&factors).zip(&offsets).map(|((x, &factor), &offset)| x.mul_add(factor, offset)));
            }
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    /// With x^ = (x - mean) r: dshift = sum g, dscale = sum g x^, dx = r scale g, and with the share a of the group's own
    /// moments, of mean m, dx = r scale (g - a mean(g) - a (x - m) r mean(g x^)), means over the group.
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _shift: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, _, c) = x.dims3()?;
        let (mut dscale, mut dshift, mut dx) = (vec![0f32; c], vec![0f32; c], Vec::with_capacity(x.elem_count()));
        let scale = scale.to_vec1::<f32>()?;
        with_values(x, |x| {
            with_values(gradient, |g| {
                for ((x, g), (taken, own)) in self.groups(x, n).zip(self.groups(g, n)).zip(self.moments(x, n, c)) {
                    let (mean, reciprocal) = (&taken.mean, reciprocals(&taken.variance));
                    let (mut by_scale, mut by_shift) = (vec![0f32; c], vec![0f32; c]);
                    let rows = || x.chunks_exact(c).zip(g.chunks_exact(c));
                    for (x, g) in rows() {
                        for i in 0..c {
                            by_shift[i] += g[i];
                            by_scale[i] += g[i] * ((x[i] - mean[i]) * reciprocal[i]);
                        }
                    }
                    let (share, own_mean) = (self.share / (x.len() / c) as f32, own.as_ref().map_or(mean, |own| &own.mean));
                    for (x, g) in rows() {
                        dx.extend((0..c).map(|i| {
                            let normal = (x[i] - own_mean[i]) * reciprocal[i];
                            reciprocal[i] * scale[i] * (g[i] - share * (by_shift[i] + normal * by_scale[i]))
                        }));
                    }
                    for i in 0..c {
                        dscale[i] += by_scale[i];
                        dshift[i] += by_shift[i];
                    }
                }
                Ok(())
            })
        })?;
        let of_channel = Shape::from(c);
        Ok((Some(tensor(dx, x.shape())), Some(tensor(dscale, &of_channel)), Some(tensor(dshift, &of_channel))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_taken_in_makes_the_moments_of_both_together() {
        let values: Vec<f32> = (0..24u8).map(|i| f32::from(i * i % 11)).collect();
        let of =
            |values: &[f32]| ChannelMoments::of(&Tensor::from_slice(values, (1, values.len() / 2, 2), &Device::Cpu).expect("a tensor"));
        let (mut first, rest, all) = (of(&values[..6]).expect("x"), of(&values[6..]).expect("x"), of(&values).expect("x"));
        first.take_in(&rest, 0.75);
        for (taken, expected) in first.mean.iter().chain(&first.variance).zip(all.mean.iter().chain(&all.variance)) {
            assert!((taken - expected).abs() < 1e-5, "{taken} against {expected}");
        }
    }
}
